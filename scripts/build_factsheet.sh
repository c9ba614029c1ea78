#!/usr/bin/env bash
# The factsheet: tables and figures from the results files, then factsheet/HATFreq_factsheet.pdf and the zip of its sources in
# factsheet/build/. The same inputs give the same bytes.
#
#     bash scripts/build_factsheet.sh
#
# Needs TeX; on Debian and Ubuntu: apt install texlive-latex-recommended texlive-fonts-recommended lmodern
# PYTHON names another interpreter than that of .venv; OUT another folder for the PDF.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

needs() { # FILE PACKAGE: a TeX file that must be installed
    kpsewhich "$1" > /dev/null || fail "TeX's $1 is missing: apt install $2"
}
command -v pdflatex > /dev/null || fail "pdflatex is missing: apt install texlive-latex-recommended"
needs booktabs.sty texlive-latex-recommended
needs caption.sty texlive-latex-recommended
needs microtype.sty texlive-latex-recommended
needs lmodern.sty lmodern
needs xcolor.sty texlive-latex-recommended

if [ -z "${PYTHON:-}" ]; then ensure_environment train; fi
OUT=${OUT:-factsheet}
mkdir -p "$OUT/generated" "$OUT/build"
build=$(mktemp -d "$(cd "$OUT/build" && pwd)/.partial-XXXXXX") # beside its place: a rename between disks would be a copy
trap 'rm -rf "$build"' EXIT
SOURCE_DATE_EPOCH=$("$PYTHON" -c "from factsheet import EPOCH; print(EPOCH)")
export SOURCE_DATE_EPOCH FORCE_SOURCE_DATE=1

say "Tables and figures"
"$PYTHON" -m factsheet.generate --out "$build/sources/generated"
cp factsheet/factsheet.tex "$build/sources"
say "PDF"
for pass in 1 2; do
    (cd "$build/sources" && pdflatex -interaction=nonstopmode -halt-on-error factsheet.tex > "$build/log.txt") \
        || { tail -n 30 "$build/log.txt" >&2; fail "pdflatex stopped (above: the end of its log)"; }
done
! grep -E "^LaTeX Warning: (Reference|Citation)" "$build/log.txt" || fail "the text refers to something that is not there"
"$PYTHON" -m factsheet.sources "$build/sources" "$OUT/build/HATFreq_factsheet_sources.zip"
for old in "$OUT"/generated/*; do # what an earlier version of the generator made
    if [ ! -e "$build/sources/generated/${old##*/}" ]; then rm -f "$old"; fi
done
mv "$build"/sources/generated/* "$OUT/generated/"
mv "$build/sources/factsheet.pdf" "$OUT/HATFreq_factsheet.pdf"
say "$OUT/HATFreq_factsheet.pdf"
