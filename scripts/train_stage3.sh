#!/usr/bin/env bash
# Stage 3: Data-LDCC (the list that scripts/build_data_ldcc.sh writes) and DF2K, from the averaged weights of stage 2.
#
#     bash scripts/train_stage3.sh
#     INIT=my_weights.safetensors bash scripts/train_stage3.sh      # from other weights
#
# DATA, RUNS, GPUS and PYTHON: see scripts/stage.sh; LDCC names the list (default: $DATA/Data-LDCC/data_ldcc.txt), whose
# images are drawn by their weights where it has some (LIST_weights.txt). The same command resumes after a stop.
source "$(dirname "$0")/stage.sh"

init=${INIT:-$RUNS/stage2} # train.py refuses a run that has not come to its end
list=${LDCC:-$DATA/Data-LDCC/data_ldcc.txt}
[ -e "$list" ] || fail "$list is missing: make it with scripts/build_data_ldcc.sh, or name another list in LDCC"
weights=${list%.txt}_weights.txt
[ ! -e "$weights" ] || list="hr=$list,image_weights=$weights"
mapfile -t images < <(df2k)
mapfile -t valid < <(validation)
say "Stage 3: $init, $list ${images[*]} -> $RUNS/stage3"
launch --config configs/stage3_ldcc.yaml --data "$list" "${images[@]}" --init "$init" "${valid[@]}" \
    --out "$RUNS/stage3" "$@"
