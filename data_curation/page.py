"""The report's HTML: one page that needs no network."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #f4f5f7; color: #1f2733; font: 16px/1.55 system-ui, "Segoe UI", Roboto, sans-serif; }
header { background: #14213d; color: #fff; padding: 44px 24px 36px; }
header > div, main { max-width: 1180px; margin: 0 auto; }
h1 { margin: 0 0 6px; font-size: 34px; letter-spacing: -0.5px; }
header p { margin: 0; opacity: 0.8; }
.figures { display: flex; flex-wrap: wrap; gap: 36px; margin-top: 26px; }
.figures b { display: block; font-size: 30px; font-variant-numeric: tabular-nums; line-height: 1.1; }
.figures span { opacity: 0.75; font-size: 14px; }
main { padding: 8px 24px 60px; }
section { background: #fff; border-radius: 10px; box-shadow: 0 1px 3px rgb(20 33 61 / 12%); padding: 22px 28px 26px;
  margin-top: 26px; }
h2 { margin: 0 0 4px; font-size: 21px; }
section > p { margin: 0 0 16px; color: #566071; max-width: 62em; }
section img { max-width: 100%; display: block; }
svg { width: 100%; height: auto; }
svg text { font: 14px system-ui, "Segoe UI", Roboto, sans-serif; fill: #1f2733; }
svg .count { font-weight: 650; font-size: 16px; } svg .loss { fill: #c8372d; } svg .cut { fill: #c8372d; }
svg .tick { fill: #7a8494; font-size: 12px; }
.key span { display: inline-block; margin: 0 22px 8px 0; color: #566071; font-size: 14px; }
.key i { display: inline-block; width: 11px; height: 11px; border-radius: 50%; margin-right: 7px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums; width: 100%; }
th { text-align: left; color: #566071; font-weight: 600; border-bottom: 2px solid #dde1e8; padding: 6px 12px 6px 0; }
td { border-bottom: 1px solid #edf0f4; padding: 5px 12px 5px 0; vertical-align: top; }
td:first-child { overflow-wrap: anywhere; }
.note { background: #fff6e5; border-left: 4px solid #e07b1a; padding: 10px 14px; border-radius: 4px; color: #1f2733; }
"""


def page(title: str, lead: str, figures: Sequence[tuple[str, str]], sections: Sequence[str]) -> str:
    """The whole page.

    Args:
        title, lead: the head's two lines.
        figures: value and what it counts.
        sections: see `section`.
    """
    counts = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for value, what in figures)
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n<title>{escape(title)}</title>\n'
        f"<style>{_STYLE}</style>\n</head>\n<body>\n<header><div><h1>{escape(title)}</h1><p>{escape(lead)}</p>"
        f'<div class="figures">{counts}</div></div></header>\n<main>\n' + "\n".join(sections) + "\n</main>\n</body>\n"
        "</html>\n"
    )


def section(heading: str, lead: str, *content: str) -> str:
    """A card of the page; `content` is HTML."""
    return f"<section><h2>{escape(heading)}</h2>\n<p>{escape(lead)}</p>\n" + "\n".join(content) + "\n</section>"


def image(file: str, alt: str) -> str:
    """A picture that lies beside the page."""
    return f'<img src="{escape(file)}" alt="{escape(alt)}">'


def note(words: str) -> str:
    """A remark that must not be overlooked."""
    return f'<p class="note">{escape(words)}</p>'


def key(entries: Sequence[tuple[str, str]]) -> str:
    """What colours mean: colour and words."""
    dots = (f'<span><i style="background:{colour}"></i>{escape(words)}</span>' for colour, words in entries)
    return f'<div class="key">{"".join(dots)}</div>'


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table; its cells are escaped."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead>\n<tbody>{body}</tbody></table></div>'
