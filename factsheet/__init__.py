"""The factsheet: LaTeX sources, and the tables and figures that they are filled with."""
