"""The card of weights in the model zoo: what they are and how they were trained."""

import re
from dataclasses import dataclass
from pathlib import Path

_RUN = re.compile(
    r"^\| sha256 \| `(\w+)` \|\n\| steps \| ([\d,]+), [^\n]*\n\| seen \| ([\d,]+) patches[^\n]*\n"
    r"\| training time \| ([\d,]+) minutes \|\n\| machine \| ([^|\n]+) \|",
    re.M,
)
_DATA = re.compile(r"^Data: ([\d,]+) photographs", re.M)


class CardError(ValueError):
    """A card is missing or of another form; the message names it and the command that writes it."""


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        sha256: of the weights that it ended with.
        steps: of the optimiser.
        patches: seen.
        minutes: taken.
        machine: in words.
    """

    sha256: str
    steps: int
    patches: int
    minutes: int
    machine: str


@dataclass(frozen=True)
class Card:
    """What a card says.

    Attributes:
        runs: each from the weights of the one before; the last one's weights are those of the zoo.
        photographs: that they were trained on.
    """

    runs: tuple[Run, ...]
    photographs: int


def read_card(path: Path) -> Card:
    """Read a card.

    Raises:
        CardError: it is missing, or does not say what scripts/release_weights.py writes.
    """
    remedy = "python scripts/release_weights.py writes it (--help tells how)"
    if not path.is_file():
        raise CardError(f"{path} does not exist: {remedy}")
    text = path.read_text(encoding="utf-8")
    found: dict[str, Run] = {}  # a card repeats what the cards before it said
    for sha256, *counts, machine in _RUN.findall(text):
        steps, patches, minutes = (int(count.replace(",", "")) for count in counts)
        found.setdefault(sha256, Run(sha256, steps, patches, minutes, machine.strip()))
    if not found or not (data := _DATA.search(text)):
        raise CardError(f"{path} does not tell runs and data: {remedy}")
    return Card(tuple(reversed(found.values())), int(data[1].replace(",", "")))
