#!/usr/bin/env bash
# All that a machine with GPUs should tell about this repository, in one command of about half an hour.
#
#     bash scripts/gpu_check.sh --data photographs --bench $DATA/bench
#     bash scripts/gpu_check.sh --help
#
# Steps: the tests that need a GPU; parity with the CPU; forward passes and training steps beside the reference HAT; the
# largest micro-batch of each stage; memory constants; two minutes of training on all GPUs; and, in the minutes that are
# left, training of the shipped weights to a full decay. Every step leaves its log and its results in --out, finished ones
# are not repeated, and the last lines (also in --out/page.md) say what passed.
# PYTHON names another interpreter than that of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment dev
exec "$PYTHON" -m scripts.gpu_check "$@"
