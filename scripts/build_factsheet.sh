#!/usr/bin/env bash
# The factsheet: tables from the results files, then factsheet/HATFreq_factsheet.pdf. The same inputs give the same bytes.
#
#     bash scripts/build_factsheet.sh
#
# Needs TeX; on Debian and Ubuntu:
#     apt install texlive-latex-recommended texlive-fonts-recommended texlive-pictures lmodern
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

for need in booktabs.sty:texlive-latex-recommended lmodern.sty:lmodern tikz.sty:texlive-pictures; do
    kpsewhich "${need%:*}" > /dev/null 2>&1 || fail "TeX's ${need%:*} is missing: apt install ${need#*:}"
done
ensure_environment dev

# The end of the challenge, and not the commit's date: the PDF is part of the commit.
export SOURCE_DATE_EPOCH=1742515200 FORCE_SOURCE_DATE=1
"$PYTHON" -m factsheet.tables
build=$(mktemp -d)
trap 'rm -rf "$build"' EXIT
for pass in 1 2; do
    (cd factsheet && pdflatex -interaction=nonstopmode -halt-on-error -output-directory "$build" factsheet.tex > "$build/out") \
        || { tail -n 30 "$build/out" >&2; fail "pdflatex stopped (above: the end of its log)"; }
done
! grep -E "^LaTeX Warning: (Reference|Citation)" "$build/out" || fail "the text refers to something that is not there"
mv "$build/factsheet.pdf" factsheet/HATFreq_factsheet.pdf
say "factsheet/HATFreq_factsheet.pdf"
