"""The report's drawings as SVG: the flow of the pool, the histogram of scores, the map of the embeddings."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

GREY, BLUE, ORANGE, RED, INK = "#c3c8cf", "#2f6fdb", "#e07b1a", "#c8372d", "#1f2733"
_WIDTH = 960


def flow(stages: Sequence[tuple[str, int]], losses: Sequence[Sequence[tuple[str, int]]]) -> str:
    """What is left of the pool stage by stage, as bars of proportional width; what goes, beside them.

    Args:
        stages: name and images left, the whole pool first.
        losses: for every stage but the first, the reasons and counts of what went before it.
    """
    whole, row, bar, left = max(stages[0][1], 1), 74, 40, 210
    room = 430
    parts = []
    for number, (name, count) in enumerate(stages):
        y, width = 8 + number * row, max(2.0, room * count / whole)
        colour = BLUE if number == len(stages) - 1 else "#8fa9d6"
        parts.append(_text(left - 12, y + 26, name, "end", "name"))
        parts.append(f'<rect x="{left}" y="{y}" width="{width:.1f}" height="{bar}" rx="4" fill="{colour}"/>')
        parts.append(_text(left + width + 10, y + 26, f"{count:,}", "start", "count"))
        if number:
            before = max(2.0, room * stages[number - 1][1] / whole)
            top = y - row + bar
            shape = f"M{left} {top} H{left + before:.1f} L{left + width:.1f} {y} H{left} Z"
            parts.append(f'<path d="{shape}" fill="#8fa9d6" opacity="0.22"/>')
            words = "; ".join(f"{gone:,} {reason}" for reason, gone in losses[number - 1] if gone) or "none lost"
            parts.append(_text(left + room + 100, top + 22, words, "start", "loss"))
    return _svg(_WIDTH + 260, 8 + len(stages) * row, parts)


def histogram(edges: Sequence[float], eligible: Sequence[int], chosen: Sequence[int], cut: float) -> str:
    """The scores of the images that passed the gates, those chosen in colour, with the lowest score chosen."""
    filled = np.flatnonzero(eligible)
    first, last = max(int(filled[0]) - 2, 0), min(int(filled[-1]) + 3, len(eligible))
    height, foot, left = 260, 34, 56
    peak, step = max(eligible), (_WIDTH - left - 20) / (last - first)
    parts = []
    for level in (0.5, 1.0):
        y = 20 + height * (1 - level)
        parts.append(f'<line x1="{left}" x2="{_WIDTH - 20}" y1="{y:.1f}" y2="{y:.1f}" stroke="#e6e9ee"/>')
        parts.append(_text(left - 8, y + 4, f"{peak * level:,.0f}", "end", "tick"))
    for number in range(first, last):
        x = left + (number - first) * step
        for count, colour in ((eligible[number], GREY), (chosen[number], BLUE)):
            if count:
                tall = height * count / peak
                title = f"{edges[number]:.2f} to {edges[number + 1]:.2f}: {chosen[number]:,} of {eligible[number]:,}"
                parts.append(
                    f'<rect x="{x:.1f}" y="{20 + height - tall:.1f}" width="{max(step - 1, 0.6):.1f}" '
                    f'height="{tall:.1f}" fill="{colour}"><title>{title} chosen</title></rect>'
                )
        if (number - first) % max(1, (last - first) // 10) == 0:
            parts.append(_text(x, 20 + height + 20, f"{edges[number]:.2f}", "middle", "tick"))
    x = left + (cut - edges[first]) / (edges[1] - edges[0]) * step
    parts.append(f'<line x1="{x:.1f}" x2="{x:.1f}" y1="8" y2="{20 + height}" stroke="{RED}" stroke-dasharray="5 4"/>')
    side, anchor = (6, "start") if x < _WIDTH * 0.7 else (-6, "end")
    parts.append(_text(x + side, 18, f"lowest chosen: {cut:.3f}", anchor, "cut"))
    return _svg(_WIDTH, 20 + height + foot, parts)


def scatter(groups: Sequence[tuple[str, str, float, NDArray[np.float64], Sequence[str]]]) -> str:
    """Points of several groups, each with its name as a tooltip.

    Args:
        groups: label, colour, radius, places `n 2` in [0, 1] and names; drawn in this order.
    """
    height, edge = 560, 16
    parts = []
    for _, colour, radius, places, names in groups:
        parts.append(f'<g fill="{colour}" fill-opacity="0.75">')
        for (x, y), name in zip(places, names, strict=True):
            across, down = edge + x * (_WIDTH - 2 * edge), height - edge - y * (height - 2 * edge)
            parts.append(
                f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{radius}"><title>{escape(name)}</title></circle>'
            )
        parts.append("</g>")
    return _svg(_WIDTH, height, parts)


def _text(x: float, y: float, words: str, anchor: str, kind: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(words)}</text>'


def _svg(width: int, height: int, parts: Sequence[str]) -> str:
    return f'<svg viewBox="0 0 {width} {height}" role="img">\n' + "\n".join(parts) + "\n</svg>"
