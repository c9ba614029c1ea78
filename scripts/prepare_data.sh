#!/usr/bin/env bash
# Make the submission's training sets ready, where they lie in DATA (default: datasets; see docs/data.md):
#
#     bash scripts/prepare_data.sh df2k        # sub-images of DIV2K and Flickr2K -> DF2K_sub
#     bash scripts/prepare_data.sh imagenet    # list of the images that are large enough -> ImageNet/train.txt
#     bash scripts/prepare_data.sh lsdir       # list -> LSDIR/train.txt
#
# Sizes and times are printed. Stopped, the same command goes on. Further words go to scripts/prepare_data.py, which can
# also pack tar shards.
source "$(dirname "$0")/stage.sh"

set_name=${1:-}
[ $# -eq 0 ] || shift
prepare() { "$PYTHON" scripts/prepare_data.py "$@"; }
case "$set_name" in
df2k) prepare sub-images "$DATA/DIV2K/DIV2K_train_HR" "$DATA/Flickr2K/Flickr2K_HR" --expect df2k --out "$DATA/DF2K_sub" "$@" ;;
imagenet) prepare list "$DATA/ImageNet/train/**" --expect imagenet --bad_images skip --out "$DATA/ImageNet/train.txt" "$@" ;;
lsdir) prepare list "$DATA/LSDIR/**" --expect lsdir --out "$DATA/LSDIR/train.txt" "$@" ;;
*) fail "name a set to prepare: df2k, imagenet or lsdir (got '$set_name')" ;;
esac
