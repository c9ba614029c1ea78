#!/usr/bin/env bash
# Make training sets ready. The submission's, where they lie in DATA (default: datasets; see docs/data.md):
#
#     bash scripts/prepare_data.sh df2k        # sub-images of DIV2K and Flickr2K -> DF2K_sub
#     bash scripts/prepare_data.sh imagenet    # list of the images that are large enough -> ImageNet/train.txt
#     bash scripts/prepare_data.sh lsdir       # list -> LSDIR/train.txt
#
# and any other, by the commands of scripts/prepare_data.py (paths are then seen from where you stand):
#
#     bash scripts/prepare_data.sh sub-images photographs --out sub_images
#     bash scripts/prepare_data.sh list 'photographs/**' --min_side 400 --out photographs.txt
#     bash scripts/prepare_data.sh shards photographs.txt --out shards
#     bash scripts/prepare_data.sh parquet s3://bucket/photographs --out shards
#
# Counts, sizes and times are printed. Stopped, the same command resumes.
here=$PWD
source "$(dirname "$0")/stage.sh"

command=${1:-}
[ $# -eq 0 ] || shift
export PYTHONPATH=$PWD
prepare() { "$PYTHON" -m scripts.prepare_data "$@"; }
case "$command" in
df2k) prepare sub-images "$DATA/DIV2K/DIV2K_train_HR" "$DATA/Flickr2K/Flickr2K_HR" --expect df2k --out "$DATA/DF2K_sub" "$@" ;;
imagenet) prepare list "$DATA/ImageNet/train/**" --expect imagenet --bad_images skip --out "$DATA/ImageNet/train.txt" "$@" ;;
lsdir) prepare list "$DATA/LSDIR/**" --expect lsdir --out "$DATA/LSDIR/train.txt" "$@" ;;
sub-images | list | shards | parquet) cd "$here" && prepare "$command" "$@" ;;
*) fail "name a set to prepare, df2k, imagenet or lsdir, or a command, sub-images, list, shards or parquet (got '$command')" ;;
esac
