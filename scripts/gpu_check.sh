#!/usr/bin/env bash
# What a machine with GPUs should show of this repository, in 15 minutes at most.
#
#     bash scripts/gpu_check.sh PHOTOGRAPHS [OUT]       # a folder to train on; logs and results go to OUT (runs/gpu_check)
#
# A line for each check, with its seconds; a failed check stops nothing, and the status is 1 at the end. The last check
# trains `light` for MINUTES (default: 4). PYTHON names another interpreter than that of .venv.
set -uo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
data=${1:?name a folder of photographs}
out=${2:-runs/gpu_check}
ensure_environment dev
mkdir -p "$out"
failed=0

check() { # NAME SECONDS COMMAND...
    local name=$1 limit=$2 began=$SECONDS verdict=ok
    timeout --kill-after 30 "$limit" "${@:3}" > "$out/$name.log" 2>&1 || { verdict="FAILED ($?): $out/$name.log"; failed=1; }
    printf '%-14s %4d s  %s\n' "$name" $((SECONDS - began)) "$verdict"
}

gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
[ "$gpus" -gt 0 ] || fail "PyTorch finds no GPU"
run=(train.py --config configs/light.yaml --data "$data" --precision bf16 --patch 64 --batch 64)

check tests 150 "$PYTHON" -m pytest -m gpu
check parity 90 "$PYTHON" -m pytest tests/test_network.py
speed=("$PYTHON" -m benchmarks.speed --device cuda --what)
check forward 120 "${speed[@]}" forward --presets base large --sizes 128x128 --bf16 --out "$out/forward.md"
check step 90 "${speed[@]}" step --presets base --batch 8 --out "$out/step.md"
check memory 60 "${speed[@]}" memory --presets large --rounds 1 --out "$out/memory.md"
check torchrun 120 "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node "$gpus" "${run[@]}" --max_minutes 1 --out "$out/torchrun"
check training $((${MINUTES:-4} * 60 + 30)) "$PYTHON" "${run[@]}" --max_minutes "${MINUTES:-4}" --out "$out/training" \
    --init model_zoo/team08_HATFreq/hatfreq_light_x4.safetensors --device cuda:0
exit "$failed"
