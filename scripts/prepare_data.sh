#!/usr/bin/env bash
# Make training sets ready. The submission's, where they lie in DATA (default: datasets; see docs/data.md):
#
#     bash scripts/prepare_data.sh df2k        # sub-images of DIV2K and Flickr2K -> DF2K_sub
#     bash scripts/prepare_data.sh imagenet    # list of the images that are large enough -> ImageNet/train.txt
#     bash scripts/prepare_data.sh lsdir       # list -> LSDIR/train.txt
#
# Any other set: python -m scripts.prepare_data --help. Stopped, the same command resumes.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment train
DATA=${DATA:-datasets}

command=${1:-}
[ $# -eq 0 ] || shift
prepare() { "$PYTHON" -m scripts.prepare_data "$@"; }
case "$command" in
df2k) prepare sub-images "$DATA/DIV2K/DIV2K_train_HR" "$DATA/Flickr2K/Flickr2K_HR" --expect 3450 --out "$DATA/DF2K_sub" "$@" ;;
imagenet) prepare list "$DATA/ImageNet/train/**" --expect 1281167 --bad_images skip --out "$DATA/ImageNet/train.txt" "$@" ;;
lsdir) prepare list "$DATA/LSDIR/**" --expect 84991 --out "$DATA/LSDIR/train.txt" "$@" ;;
*) fail "name a set to prepare: df2k, imagenet or lsdir (got '$command')" ;;
esac
