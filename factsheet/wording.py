"""Sentences on measured differences, worded from their intervals."""

from collections.abc import Mapping, Sequence

from benchmarks.paired import LEVEL, Difference


def told_apart(subject: str, other: str, difference: Difference) -> str:
    """Whether the subject did better or worse than another, or cannot be told from it; dB."""
    low, high = difference.interval
    figures = f"{difference.mean:+.4f} dB, {LEVEL:.0%} interval {low:+.4f} to {high:+.4f}"
    says = {1: "did better than", -1: "did worse than", 0: "cannot be told from"}[difference.direction]
    return f"{subject} {says} {other} ({figures})."


def against_base(base: str, differences: Mapping[str, Difference]) -> str:
    """What several variants do against the same one; the last is the one that matters most."""
    apart = {name: one for name, one in differences.items() if one.direction}
    if apart:
        return " ".join(told_apart(name, base, one) for name, one in apart.items()) + _rest(base, differences, apart)
    *_, (name, last) = differences.items()
    low, high = last.interval
    return (
        f"No variant can be told from {base}: every {LEVEL:.0%} interval holds 0. What {name} changes lies between "
        f"{low:+.3f} and {high:+.3f} dB; an effect smaller than that would not have been seen."
    )


def against_start(differences: Mapping[str, Difference]) -> str:
    """What training on each of several choices did to the network that it began with."""
    words = {1: "better", -1: "worse", 0: "neither better nor worse, as far as can be told,"}
    groups = {words[one]: [n for n, d in differences.items() if d.direction == one] for one in words}
    for word, names in groups.items():
        if len(names) == len(differences):
            return f"Whatever it was trained on, the network did {word} than at the start."
    parts = [f"{word} with {listed(names)}" for word, names in groups.items() if names]
    return f"Compared with the start, the network did {'; '.join(parts)}."


def listed(names: Sequence[str]) -> str:
    """`a, b and c`."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _rest(base: str, differences: Mapping[str, Difference], apart: Mapping[str, Difference]) -> str:
    names = [name for name in differences if name not in apart]
    return f" {listed(names)} cannot be told from {base}." if names else ""
