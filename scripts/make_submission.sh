#!/usr/bin/env bash
# What is sent to the organisers: checks the repository by their rules, then builds code archive, factsheet, weights, e-mail
# and a manifest with checksums into dist/.
#
#     bash scripts/make_submission.sh             # refused while submission.yaml is incomplete
#     bash scripts/make_submission.sh --draft     # with visible gaps
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
ensure_environment train
case " $* " in *" -h "* | *" --help "*) exec "$PYTHON" scripts/make_submission.py --help ;; esac
say "1/2  The organisers' rules"
"$PYTHON" scripts/check_submission.py
say "2/2  Packages"
"$PYTHON" scripts/make_submission.py "$@"
