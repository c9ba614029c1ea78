"""The factsheet: LaTeX sources, and the tables and figures that they are filled with."""

# 21 March 2025, the end of the challenge: the date of PDF and zip, so that equal inputs give equal bytes. The commit's
# date would not do: the PDF is part of the commit.
EPOCH = 1742515200
