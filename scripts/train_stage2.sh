#!/usr/bin/env bash
# Stage 2: DF2K, from the averaged weights of stage 1.
#
#     bash scripts/train_stage2.sh
#     INIT=my_weights.safetensors bash scripts/train_stage2.sh      # from other weights
#
# DATA, RUNS, GPUS and PYTHON: see scripts/stage.sh. The same command resumes after a stop.
source "$(dirname "$0")/stage.sh"

init=${INIT:-$RUNS/stage1} # train.py refuses a run that has not come to its end
mapfile -t images < <(df2k)
mapfile -t valid < <(validation)
say "Stage 2: $init, ${images[*]} -> $RUNS/stage2"
launch --config configs/stage2_df2k.yaml --data "${images[@]}" --init "$init" "${valid[@]}" --out "$RUNS/stage2" "$@"
