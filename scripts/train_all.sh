#!/usr/bin/env bash
# The submission's training: the three stages, each from the averaged weights of the one before.
#
#     bash scripts/train_all.sh
#
# DATA, RUNS, GPUS and PYTHON: see scripts/stage.sh. Further words go to every stage. A finished stage is passed over, one
# that was stopped is resumed: the same command can be started again after any stop.
set -euo pipefail
cd "$(dirname "$0")"
for stage in 1 2 3; do
    bash "train_stage$stage.sh" "$@"
done
