"""Text and tables for LaTeX."""

import re
from collections.abc import Sequence
from typing import Any

_SPECIAL = str.maketrans(
    {character: f"\\{character}" for character in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
)


class Latex(str):
    """Text that is LaTeX already; `escaped` leaves it as it is."""


def escaped(text: str) -> str:
    """Text for LaTeX: `code` between grave accents becomes typewriter, a hyphen before a number a minus sign,
    and the x of sizes and factors a multiplication sign.
    """
    if isinstance(text, Latex):
        return text
    text = re.sub(r"`([^`]*)`", r"\\texttt{\1}", text.translate(_SPECIAL))
    text = re.sub(r"(?<![\w.)}-])-(?=\d)", "$-$", text)
    return re.sub(r"(?<=\d)x(?=\d|\b)|\bx(?=\d+\b)", r"$\\times$", text)


def power(value: float, digits: int = 1) -> Latex:
    """A number as a power of ten, such as 2.0e-4."""
    mantissa, exponent = f"{value:.{digits}e}".split("e")
    return Latex(f"${mantissa}\\cdot10^{{{int(exponent)}}}$")


def table(head: Sequence[str], body: Sequence[Sequence[Any]], columns: str) -> str:
    """A LaTeX table of strings and numbers; an empty row is a rule."""
    lines = [f"\\begin{{tabular}}{{{columns}}}", "\\toprule", " & ".join(map(escaped, head)) + r" \\", "\\midrule"]
    for row in body:
        cells = " & ".join(escaped(cell if isinstance(cell, str) else str(cell)) for cell in row)
        lines.append("\\midrule" if not row else f"{cells} \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}"]) + "\n"


def commands(texts: dict[str, str]) -> str:
    """A \\newcommand for each name (letters only) and text."""
    return "".join(f"\\newcommand{{\\{name}}}{{{escaped(text)}}}\n" for name, text in texts.items())
