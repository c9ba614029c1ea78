#!/usr/bin/env bash
# Stage 1: ImageNet, from scratch.
#
#     bash scripts/train_stage1.sh
#     bash scripts/train_stage1.sh --init HAT-L_SRx4_ImageNet-pretrain.pth --fusion_lr_scale 4    # from official weights
#
# DATA, RUNS, GPUS and PYTHON: see scripts/stage.sh. The same command resumes after a stop.
source "$(dirname "$0")/stage.sh"

if [ -e "$DATA/ImageNet/train.txt" ]; then images="$DATA/ImageNet/train.txt"; else images="$DATA/ImageNet/train/**"; fi
mapfile -t valid < <(validation)
say "Stage 1: $images -> $RUNS/stage1"
launch --config configs/stage1_imagenet.yaml --data "$images" "${valid[@]}" --out "$RUNS/stage1" "$@"
