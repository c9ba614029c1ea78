#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment that it makes itself.
#
#     bash scripts/run_tests.sh                  # the quick tests: some two minutes on two quiet cores
#     bash scripts/run_tests.sh --all            # the slow ones too: kills, several processes, browser, ONNX
#     bash scripts/run_tests.sh -k tiles -x      # further words go to pytest; -n 0 for one process, whose output -s shows
#
# Tests that need evaluation data (Set5, Set14, BSD100; see docs/data.md), a GPU, a browser or TeX are skipped without, and
# the summary says so.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment dev

words=()
if [ "${1:-}" = --all ]; then
    shift
    words=(-m "not artefacts")
fi

say "Lint"
"$PYTHON" -m ruff check .
say "Format"
"$PYTHON" -m ruff format --check .
say "Types"
"$PYTHON" -m mypy
say "Tests"
# Two processes: most tests keep one core busy. A file's tests stay together, for they share what they set up.
if ! "$PYTHON" -m pytest -ra -n 2 --dist loadfile "${words[@]}" "$@"; then
    say "Failed"
    "$PYTHON" -m pytest --cache-show cache/lastfailed
    exit 1
fi
