#!/usr/bin/env bash
# Lint, format, types and tests, in a virtual environment that it makes itself.
#
#     bash scripts/run_tests.sh                  # everything (about ten minutes on two cores)
#     bash scripts/run_tests.sh -m "not slow"    # further words go to pytest
#
# Tests that need evaluation data (Set5, Set14, BSD100; see docs/data.md) or a GPU skip without, saying so.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment dev

say "Lint"
"$PYTHON" -m ruff check .
say "Format"
"$PYTHON" -m ruff format --check .
say "Types"
"$PYTHON" -m mypy
say "Tests"
"$PYTHON" -m pytest -ra "$@"
