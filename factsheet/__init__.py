"""The factsheet: a LaTeX text, and the module that writes its tables."""
