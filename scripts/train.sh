#!/usr/bin/env bash
# The submission's training from beginning to end: three stages, each from the averaged weights of the one before.
#
#     bash scripts/train.sh               # the real one: eight large GPUs, days
#     bash scripts/train.sh --toy         # everything once at toy size, data included: two minutes on a CPU
#
# Stopped, the same command resumes; a finished stage is passed over. Further words go to every stage's train.py.
#     DATA      folder of the training sets, laid out as in docs/data.md (default: datasets)
#     RUNS      folder of the run folders (default: runs)
#     GPUS      processes to start, one a GPU (default: all GPUs; without one, a single process on the CPU)
#     INIT      weights that stage 1 starts from (default: from scratch)
#     PYTHON    interpreter to use (default: .venv, made if need be)
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
# glibc's allocator keeps a step's memory instead of giving it back: 5 to 30 % less time for a training step on a CPU. It reads
# these when a process starts. Not for test.py, whose peak they raise.
export MALLOC_MMAP_THRESHOLD_=${MALLOC_MMAP_THRESHOLD_:-4294967296} MALLOC_TRIM_THRESHOLD_=${MALLOC_TRIM_THRESHOLD_:-8589934592}
export THP_MEM_ALLOC_ENABLE=${THP_MEM_ALLOC_ENABLE:-1}
toy=
if [ "${1:-}" = --toy ]; then
    toy=1
    shift
fi
if [ "$toy" ]; then ensure_environment train,curation,demo; else ensure_environment train; fi
export PYTHON GPUS=${GPUS:-${toy:+1}} DATA=${DATA:-${toy:+rehearsal/data}} RUNS=${RUNS:-${toy:+rehearsal/runs}}
DATA=${DATA:-datasets} RUNS=${RUNS:-runs} GPUS=${GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}

# stage NUMBER TOY_STEPS TOY_BATCH TOY_PATCH "TOY_MILESTONES" CONFIG WORDS...
stage() {
    local number=$1 words=(--config "configs/$6" --out "$RUNS/stage$1" "${@:7}")
    [ ! -d "$DATA/DIV2K/DIV2K_valid_HR" ] || words+=(--valid_hr "$DATA/DIV2K/DIV2K_valid_HR")
    if [ "$toy" ]; then # the factsheet's steps, batch and patch divided by 1000, 32 and 4
        words+=(--preset light --model_overrides embed_dim=12 depths=1,1 num_heads=2,2 window_size=8 --steps "$2"
            --batch "$3" --patch "$4" --milestones $5 --warmup 2 --lr 0.002 --ema 0.9 --precision auto --workers 0
            --valid_every 25 --no-tensorboard)
    fi
    say "Stage $number -> $RUNS/stage$number"
    if [ "$GPUS" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$GPUS" train.py "${words[@]}" "${extra[@]}"
    else
        "$PYTHON" train.py "${words[@]}" "${extra[@]}"
    fi
}
extra=("$@")

# --- Data: the toy sets are cut from photographs that scikit-image ships; the real ones lie in DATA already.
if [ "$toy" ]; then
    say "Toy training sets -> $DATA"
    [ -e "$DATA/complete" ] || "$PYTHON" -m scripts.rehearsal_data "$DATA"
    bash scripts/prepare_data.sh imagenet --min_side 160
    bash scripts/prepare_data.sh df2k --side 160 --step 96
fi
[ -d "$DATA" ] || fail "the folder $DATA is missing: name that of the training sets in DATA (docs/data.md)"

# --- Stage 1: ImageNet, from scratch.
images="$DATA/ImageNet/train/**"
[ ! -e "$DATA/ImageNet/train.txt" ] || images=$DATA/ImageNet/train.txt
stage 1 70 8 16 "26 44 57 61 66" stage1_imagenet.yaml --data "$images" ${INIT:+--init "$INIT"}

# --- Stage 2: DF2K, from stage 1's average.
df2k=("$DATA/DIV2K/DIV2K_train_HR" "$DATA/Flickr2K/Flickr2K_HR")
[ ! -d "$DATA/DF2K_sub" ] || df2k=("$DATA/DF2K_sub")
stage 2 50 4 24 "25 40 45 48" stage2_df2k.yaml --data "${df2k[@]}" --init "$RUNS/stage1"

# --- Data-LDCC: chosen by the test images' embeddings.
list=${LDCC:-$DATA/Data-LDCC/data_ldcc.txt}
if [ "$toy" ]; then
    POOL="$DATA/LSDIR/** $DATA/Flickr2K/Flickr2K_HR" ENCODER="--backbone alexnet --weights $DATA/encoder.safetensors" \
        SELECT="--top_k 6" bash scripts/build_data_ldcc.sh
    grep -q copy_of_the_test_image "$DATA/Data-LDCC/duplicates/removed.txt" || fail "the copy of the test image was not found"
fi
[ -e "$list" ] || fail "$list is missing: make it with scripts/build_data_ldcc.sh, or name another list in LDCC"

# --- Stage 3: Data-LDCC and DF2K, from stage 2's average.
stage 3 20 2 28 "10 16 18 19" stage3_ldcc.yaml --data "$list" "${df2k[@]}" --init "$RUNS/stage2"

# --- Test: the toy's score means nothing; it shows that everything works together.
if [ "$toy" ]; then
    out=$(dirname "$RUNS")
    "$PYTHON" test.py --test_dir "$DATA/DIV2K_test_LR" --save_dir "$out/results" --weights "$RUNS/stage3/best.safetensors" \
        --ensemble 1
    "$PYTHON" eval.py --output_folder "$out/results/08_HATFreq/test" --target_folder "$DATA/DIV2K_test_HR" \
        --lq_folder "$DATA/DIV2K_test_LR" --metrics psnr,ssim --metrics_save_path "$out/IQA_results"
    say "Rehearsed in $SECONDS s -> $out"
fi
