"""Several features folders read as one pool, none of them embedded again."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from data_curation.features import Features, FeaturesError


def open_features(folders: str | Path | Sequence[str | Path]) -> Features:
    """One features folder, or several as one.

    Raises:
        FeaturesError: see `Features` and `JoinedFeatures`.
    """
    if isinstance(folders, (str, Path)):
        return Features(folders)
    parts = [Features(folder) for folder in folders]
    return parts[0] if len(parts) == 1 else JoinedFeatures(parts)


class JoinedFeatures(Features):
    """The rows of several folders, one after the other."""

    def __init__(self, parts: Sequence[Features]) -> None:
        """Join them.

        Raises:
            FeaturesError: they were made differently, or hold an image of one name twice.
        """
        self.parts, first = parts, parts[0]
        for part in parts[1:]:
            if part.settings.made != first.settings.made:
                raise FeaturesError(
                    f"{part.folder} was made with {part.settings.made}, {first.folder} with {first.settings.made}: "
                    "embed one of them again to make them one pool"
                )
        self.folder = first.folder
        self.settings = replace(
            first.settings,
            inputs=tuple(chain.from_iterable(part.settings.inputs for part in parts)),
            images=sum(part.settings.images for part in parts),
        )
        self._starts = np.concatenate([[0], np.cumsum([len(part) for part in parts])]).astype(np.int64)
        names = self.columns("name")["name"]
        if len(names.unique()) < len(names):
            twice = [name for name, count in Counter(names.to_pylist()).items() if count > 1]
            raise FeaturesError(
                f"{len(twice)} images are in several of the folders, {twice[0]} first: embed each image once"
            )

    @property
    def folders(self) -> list[Path]:
        """Where the rows come from."""
        return [part.folder for part in self.parts]

    def columns(self, *names: str) -> pa.Table:
        """Some columns of all rows; see SCHEMA."""
        return pa.concat_tables([part.columns(*names) for part in self.parts])

    def shards(self) -> Iterator[NDArray[np.float16]]:
        """See `Features.shards`."""
        return chain.from_iterable(part.shards() for part in self.parts)

    def vectors(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """See `Features.vectors`."""
        wanted = np.asarray(rows, np.int64)
        result = np.empty((len(wanted), self.settings.dimension), np.float32)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            result[places] = self.parts[number].vectors(wanted[places] - self._starts[number])
        return result

    def unreadable(self) -> list[tuple[str, str]]:
        """See `Features.unreadable`."""
        return list(chain.from_iterable(part.unreadable() for part in self.parts))
