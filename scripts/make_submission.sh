#!/usr/bin/env bash
# What is sent to the organisers, from the last commit, into dist/: code, weights, factsheet with its sources, e-mail, checksums.
#
#     bash scripts/make_submission.sh             # refused while submission.yaml is incomplete
#     bash scripts/make_submission.sh --draft     # with visible gaps, into dist/DRAFT_...
#
# With TeX the factsheet is built again first. PYTHON names another interpreter than that of .venv.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh
export TZ=UTC # git archive writes local times into a zip
case "$*" in "" | --draft) ;; *) sed -n '2,7s/^# \{0,1\}//p' "$0"; case "$*" in -h | --help) exit ;; *) exit 2 ;; esac ;; esac
ensure_environment train
clean() { [ -z "$(git status --porcelain)" ] || fail "$1: $(git status --porcelain | head -n 3 | tr '\n' ' ')"; }

clean "commit or remove these changes first"
say "1/3  The organisers' rules"
"$PYTHON" -m scripts.check_submission "$@"
say "2/3  The factsheet"
if command -v pdflatex > /dev/null; then
    PYTHON=$PYTHON bash scripts/build_factsheet.sh
else
    "$PYTHON" -m factsheet.tables
    echo "no TeX here: the committed PDF is taken as it is, if its tables are not out of date"
fi
clean "the factsheet has changed: look at it (with TeX: scripts/build_factsheet.sh) and commit it"

say "3/3  The packages"
name=$("$PYTHON" -c "from utils.submission import read_facts; print(read_facts().folder)")
out=dist/${1:+DRAFT_}$name
partial=dist/.partial-$name
rm -rf "$partial"
mkdir -p "$partial"
git archive --format=zip -0 --prefix="$name/" -o "$partial/${name}_code.zip" HEAD
git archive --format=zip -0 --prefix="${name}_factsheet/" -o "$partial/${name}_factsheet_sources.zip" HEAD \
    factsheet benchmarks/results docs/images
git archive HEAD "model_zoo/$name" factsheet/HATFreq_factsheet.pdf | tar -x -C "$partial"
mv "$partial/factsheet/HATFreq_factsheet.pdf" "$partial/${name}_factsheet.pdf" && rmdir "$partial/factsheet"
"$PYTHON" -m scripts.check_submission --email > "$partial/email.txt"
(cd "$partial" && find . -type f ! -name SHA256SUMS | LC_ALL=C sort | xargs sha256sum > SHA256SUMS)
rm -rf "$out"
mv "$partial" "$out"
cat "$out/SHA256SUMS"
say "commit $(git rev-parse HEAD) -> $out"
