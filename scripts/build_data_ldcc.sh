#!/usr/bin/env bash
# Data-LDCC: from a pool of images and the test's low-resolution images to the list that stage 3 trains on.
#
#     bash scripts/build_data_ldcc.sh
#
# Four stages with files between them, each of which resumes where it was stopped: embed, dedup, select, report.
# Besides DATA, GPUS and PYTHON (scripts/train.sh) it obeys, words separated by blanks:
#
#     POOL      images to choose from (default: $DATA/LSDIR/** $DATA/HQ-50K/** $DATA/Flickr2K/Flickr2K_HR)
#     QUERIES   the test's low-resolution images (default: $DATA/DIV2K_test_LR)
#     GUARD     high-resolution evaluation images, which must not be trained on either (default: DIV2K_valid_HR in
#               $DATA/DIV2K, and $DATA/benchmark/**, as far as they are there)
#     ENCODER   words for data_curation.embed (default: --model ViT-L-14 --pretrained openai)
#     RAY       a Ray cluster that embeds, HOST:PORT (default: this machine's GPUs)
#     SELECT    words for data_curation.select (default: --top_k 40000)
#     TRAINED   images that stage 3 trains on beside the list, which are left out of it (default: DIV2K_train_HR and
#               Flickr2K_HR, as far as they are there; empty to leave out none)
#     OUT       (default: $DATA/Data-LDCC)
#
# The list holds relative paths: DATA may be moved or copied to another machine with the list inside.
#
# Results: OUT/data_ldcc.txt, .csv and .json, OUT/report/index.html.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment train
DATA=${DATA:-datasets}
set -f # ** is for the programs below, not for the shell

pool=("$DATA/LSDIR/**" "$DATA/HQ-50K/**" "$DATA/Flickr2K/Flickr2K_HR") # DATA itself may hold blanks
queries=("$DATA/DIV2K_test_LR")
[ -z "${POOL:-}" ] || read -ra pool <<< "$POOL"
[ -z "${QUERIES:-}" ] || read -ra queries <<< "$QUERIES"
read -ra encoder <<< "${ENCODER:---model ViT-L-14 --pretrained openai}"
read -ra chosen <<< "${SELECT:---top_k 40000}"
OUT=${OUT:-$DATA/Data-LDCC}
guard=()
if [ -n "${GUARD:-}" ]; then
    read -ra guard <<< "$GUARD"
else
    [ ! -d "$DATA/DIV2K/DIV2K_valid_HR" ] || guard+=("$DATA/DIV2K/DIV2K_valid_HR")
    [ ! -d "$DATA/benchmark" ] || guard+=("$DATA/benchmark/**")
fi
trained=()
if [ -n "${TRAINED+given}" ]; then
    read -ra trained <<< "$TRAINED"
else
    for folder in "$DATA/DIV2K/DIV2K_train_HR" "$DATA/Flickr2K/Flickr2K_HR"; do
        [ ! -d "$folder" ] || trained+=("$folder")
    done
fi
[ ${#trained[@]} -eq 0 ] || chosen+=(--trained_on "${trained[@]}")

embed() {
    local gpus=${GPUS:-$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')}
    if [ -n "${RAY:-}" ]; then
        "$PYTHON" -m data_curation.embed "${encoder[@]}" "$@" --ray "$RAY"
    elif [ "$gpus" -gt 1 ]; then
        "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$gpus" -m data_curation.embed "${encoder[@]}" "$@"
    else
        "$PYTHON" -m data_curation.embed "${encoder[@]}" "$@"
    fi
}

say "1/4  Embedding: queries, then evaluation images and pool at the queries' scale"
embed "${queries[@]}" --out "$OUT/features/queries"
evaluation=("$OUT/features/queries")
if [ ${#guard[@]} -gt 0 ]; then
    embed "${guard[@]}" --downscale 4 --out "$OUT/features/guard"
    evaluation+=("$OUT/features/guard")
fi
embed "${pool[@]}" --downscale 4 --out "$OUT/features/pool"

say "2/4  Near-duplicates of evaluation images, and within the pool"
"$PYTHON" -m data_curation.dedup --pool "$OUT/features/pool" --evaluation "${evaluation[@]}" --out "$OUT/duplicates"

say "3/4  Selection"
"$PYTHON" -m data_curation.select --pool "$OUT/features/pool" --queries "$OUT/features/queries" \
    --duplicates "$OUT/duplicates" "${chosen[@]}" --relative --out "$OUT"

say "4/4  Report"
"$PYTHON" -m data_curation.report --selection "$OUT" --duplicates "$OUT/duplicates" --out "$OUT/report"
echo "List:   $OUT/data_ldcc.txt"
echo "Report: $OUT/report/index.html"
