#!/usr/bin/env bash
# The submission's whole training at toy size, to see that everything works before the real one: training sets prepared,
# stage 1, stage 2, Data-LDCC selected, stage 3, the result tested and scored. Some minutes on a CPU, without a network.
#
#     bash scripts/rehearse.sh              # into rehearsal/
#     bash scripts/rehearse.sh FOLDER
#
# Every stage is started by its own script with its own configuration; the network is tiny, and patch, batch and steps are
# the factsheet's divided by 4, 32 and 1000. Stopped, the same command resumes. The images restored are worth nothing.
# GPUS and PYTHON: see scripts/stage.sh (here one process is the default).
set -euo pipefail
case "${1:-}" in -*) sed -n '2,10s/^# \{0,1\}//p' "$0"; exit 2 ;; esac
cd "$(dirname "$0")/.." || exit
source scripts/environment.sh
OUT=$(realpath -m "${1:-rehearsal}")
case "$OUT" in *[[:space:]]*) fail "$OUT holds a blank, at which POOL and ENCODER would be split: name another folder" ;; esac
ensure_environment train,curation,demo
export PYTHON GPUS=${GPUS:-0} DATA=$OUT/data RUNS=$OUT/runs
seconds=$SECONDS

# stage NUMBER STEPS BATCH PATCH MILESTONES...: a stage's script, made small.
stage() {
    bash "scripts/train_stage$1.sh" --preset light --model_overrides embed_dim=12 depths=1,1 num_heads=2,2 window_size=8 \
        --steps "$2" --batch "$3" --patch "$4" --milestones "${@:5}" --warmup 2 --lr 0.002 --ema 0.9 --precision auto \
        --workers 0 --valid_every 25 --sample_images 0 --no-tensorboard
}

say "1/6  Toy training sets -> $DATA"
[ -e "$DATA/complete" ] || "$PYTHON" -m scripts.rehearsal_data "$DATA"
bash scripts/prepare_data.sh imagenet --min_side 160
bash scripts/prepare_data.sh df2k --side 160 --step 96

say "2/6  Stage 1"
stage 1 70 8 16 26 44 57 61 66
say "3/6  Stage 2"
stage 2 50 4 24 25 40 45 48

say "4/6  Data-LDCC"
POOL="$DATA/LSDIR/** $DATA/Flickr2K/Flickr2K_HR" ENCODER="--backbone alexnet --weights $DATA/encoder.safetensors" \
    SELECT="--top_k 6" bash scripts/build_data_ldcc.sh
list=$DATA/Data-LDCC/data_ldcc.txt
grep -q copy_of_the_test_image "$DATA/Data-LDCC/duplicates/removed.txt" || fail "the copy of the test image was not found"

say "5/6  Stage 3"
stage 3 20 2 28 10 16 18 19

say "6/6  Test"
"$PYTHON" test.py --test_dir "$DATA/DIV2K_test_LR" --save_dir "$OUT/results" --weights "$RUNS/stage3/best.safetensors" \
    --ensemble 1
"$PYTHON" eval.py --output_folder "$OUT/results/08_HATFreq/test" --target_folder "$DATA/DIV2K_test_HR" \
    --lq_folder "$DATA/DIV2K_test_LR" --metrics psnr,ssim --metrics_save_path "$OUT/IQA_results"
psnr=$(awk -F': ' '$1 == "psnr" {printf "%.2f", $2}' "$OUT/IQA_results/08_HATFreq--test.txt")
say "Rehearsed in $((SECONDS - seconds)) s: 3 stages (140 steps), $(grep -c '^[^#]' "$list") images selected, the planted copy" \
    "removed, 1 image restored (PSNR $psnr dB, of no meaning at this size) -> $OUT"
