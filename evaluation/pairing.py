"""Which target belongs to which restored image."""

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from image_data.geometry import cut_to_scale
from image_data.pairs import LR_SUFFIX, partner_stems
from models.team08_HATFreq.image_io import list_images, read_rgb
from utils.files import UserError, listed

RGB = NDArray[np.uint8]


class EvaluationError(UserError):
    """Folders that cannot be scored; the message names the files and the remedy."""


@dataclass(frozen=True)
class Pair:
    """A restored image, and its target and low-resolution input where they are known."""

    restored: Path
    target: Path | None = None
    lq: Path | None = None

    @property
    def name(self) -> str:
        """The restored file's name, by which the tables know it."""
        return self.restored.name

    def read(self) -> tuple[RGB, RGB | None]:
        """Restored image and target, uint8 `h w 3`; the target is cropped to a multiple of 4 as the organisers do.

        Raises:
            EvaluationError: their sizes differ.
            ImageError: a file cannot be read.
        """
        restored = read_rgb(self.restored)
        if self.target is None:
            return restored, None
        target = cut_to_scale(read_rgb(self.target))
        if restored.shape != target.shape:
            sizes = " and its target ".join(
                f"{path} is {image.shape[1]}x{image.shape[0]}"
                for path, image in ((self.restored, restored), (self.target, target))
            )
            raise EvaluationError(f"{sizes}: restore the target's own LR image at x4 (nothing is resized here)")
        return restored, target


def find_pairs(output_folder: Path, target_folder: Path | None, lq_folder: Path | None) -> list[Pair]:
    """Every restored image of a folder with its target: the target of `0901x4.png` is `0901.png` or `0901x4.png`.

    Args:
        output_folder: restored PNG files.
        target_folder: ground truth, one image for each restored one; None if there is none.
        lq_folder: the low-resolution inputs, named like the restored images; None if they are not at hand.

    Raises:
        EvaluationError: an empty folder, or images without a partner or with two (the first ten are named).
    """
    restored = [path for path in list_images(output_folder) if path.suffix.lower() == ".png"]
    if not restored:
        raise EvaluationError(f"{output_folder} holds no PNG files: name the folder that test.py wrote")
    targets = partners(restored, target_folder, "target")
    inputs = partners(restored, lq_folder, "low-resolution image")
    if target_folder is not None:
        unused = sorted(path.name for path in set(list_images(target_folder)) - set(targets.values()))
        if unused:
            raise EvaluationError(f"{target_folder} has targets without a restored image: {listed(unused)}")
    return [Pair(path, targets.get(path), inputs.get(path)) for path in restored]


def partners(restored: list[Path], folder: Path | None, kind: str) -> dict[Path, Path]:
    """Restored image -> its partner in another folder; empty without a folder.

    Raises:
        EvaluationError: partners are missing or ambiguous.
    """
    if folder is None:
        return {}
    by_stem: dict[str, list[Path]] = defaultdict(list)
    for path in list_images(folder):
        by_stem[path.stem].append(path)
    result = {path: [p for stem in partner_stems(path.stem) for p in by_stem.get(stem, [])] for path in restored}
    if missing := [path.name for path, candidates in result.items() if not candidates]:
        raise EvaluationError(
            f"{folder} lacks the {kind} of {len(missing)} of {len(restored)}: {listed(missing)}; "
            f"partners have the same name, with or without {LR_SUFFIX} or _{LR_SUFFIX} at its end"
        )
    for path, candidates in result.items():
        if len(candidates) > 1:
            names = " and ".join(candidate.name for candidate in candidates)
            raise EvaluationError(f"{folder} holds {names}, and either could be the {kind} of {path.name}: remove one")
    chosen = {path: candidates[0] for path, candidates in result.items()}
    _refuse_sharing(chosen, kind)
    return chosen


def _refuse_sharing(chosen: dict[Path, Path], kind: str) -> None:
    """`0901.png` and `0901x4.png` side by side would both be scored against `0901.png`."""
    owners: dict[Path, list[str]] = defaultdict(list)
    for path, partner in chosen.items():
        owners[partner].append(path.name)
    if shared := [f"{' and '.join(names)} (of {p.name})" for p, names in owners.items() if len(names) > 1]:
        raise EvaluationError(f"restored images share a {kind}: {listed(shared)}; keep one of each")
