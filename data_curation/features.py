"""A features folder: embeddings in numbered shards, with what is known of each image beside them.

    shard_00000.npy               float16 `n d`, rows of length one
    shard_00000.parquet           a row an embedding, same order; written last: it marks the shard complete
    shard_00000.unreadable.csv    the shard's images that could not be read, if there are any
    features.json                 the settings of the whole folder

Nothing in these files depends on when, where or by how many processes they were written.
"""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from data_curation.phash import ORIENTATIONS
from image_data.sources import DataError
from models.team08_HATFreq.system import write_bytes

SETTINGS = "features.json"
SCHEMA = pa.schema(
    [
        ("name", pa.string()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("bytes", pa.int64()),
        ("sha1", pa.string()),
        ("phash", pa.list_(pa.uint64(), ORIENTATIONS)),
        ("blockiness", pa.float32()),
        ("sharpness", pa.float32()),
    ]
)
_MODEL, _INPUTS = b"model", b"inputs"  # keys of a Parquet file's metadata
_SMALL = 64 * 1024  # rows gathered at a time


@dataclass(frozen=True)
class Record:
    """What is known of an image beside its embedding; sizes in pixels as the file holds them, upright."""

    name: str
    height: int
    width: int
    bytes: int
    sha1: str
    phash: list[int]
    blockiness: float
    sharpness: float


@dataclass(frozen=True)
class Settings:
    """What a features folder was made with.

    Attributes:
        model: the encoder: `ViT-L-14:openai`, or `alexnet:sha256-...` for a weights file.
        weights: the pretrained tag, or the weights file's sha256.
        downscale: by how much the images were shrunk before the encoder saw them.
        dimension: length of an embedding.
        precision: of the encoder, `fp32` or `bf16`.
        inputs: the command's words.
        shard_size: images a shard, readable or not.
        images: of all shards, readable or not.
        batch: images the encoder takes at once; the last bits of its sums may depend on it.
    """

    model: str
    weights: str
    downscale: int
    dimension: int
    precision: str
    inputs: tuple[str, ...]
    shard_size: int
    images: int
    batch: int = 64

    @property
    def shards(self) -> int:
        """How many shards the images fill."""
        return -(-self.images // self.shard_size)

    def encode(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


class FeaturesError(DataError):
    """A features folder that is incomplete, damaged or of other settings; the message names it and the remedy."""


class Features:
    """A complete features folder, opened for reading."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder and check every shard's header.

        Raises:
            FeaturesError: missing or incomplete (the first missing shard is named), of several models, damaged, or
                without a single embedding.
        """
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._counts = [self._check(number) for number in range(self.settings.shards)]
        self._starts = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        if not len(self):
            raise FeaturesError(
                f"{folder} holds no embedding: none of its {self.settings.images} images could be read; "
                f"see {shard_path(self.folder, 0, 'unreadable.csv')}"
            )

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def table(self) -> pa.Table:
        """All columns of all rows; see SCHEMA."""
        return self.columns(*SCHEMA.names)

    def columns(self, *names: str) -> pa.Table:
        """Some columns of all rows: less memory than `table`."""
        parts = [
            pq.read_table(self._path(number, "parquet"), columns=list(names)).replace_schema_metadata(None)
            for number in range(self.settings.shards)
        ]
        return pa.concat_tables(parts)

    def phashes(self) -> NDArray[np.uint64]:
        """The perceptual hashes, uint64 `n 8`."""
        lists = self.columns("phash")["phash"].combine_chunks()
        return np.asarray(lists.flatten(), np.uint64).reshape(-1, ORIENTATIONS)

    def shards(self) -> Iterator[NDArray[np.float16]]:
        """The embeddings, `n d` a shard, memory-mapped; drop one before the next to give its memory back."""
        for number in range(self.settings.shards):
            yield self._open(number)

    def vectors(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The embeddings of some rows, float32 `len(rows) d`, in the order asked for."""
        wanted = np.asarray(rows, np.int64)
        found = np.empty((len(wanted), self.settings.dimension), np.float32)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            shard = self._open(int(number))
            for part in np.array_split(places, -(-len(places) // _SMALL)):
                found[part] = shard[wanted[part] - self._starts[number]]
        return found

    def unreadable(self) -> list[tuple[str, str]]:
        """Name and reason of every image that could not be read, in the order of the inputs."""
        found: list[tuple[str, str]] = []
        for number in range(self.settings.shards):
            path = self._path(number, "unreadable.csv")
            if path.exists():
                with path.open(newline="") as file:
                    found += [(row["name"], row["reason"]) for row in csv.DictReader(file)]
        return found

    def _path(self, number: int, suffix: str) -> Path:
        return shard_path(self.folder, number, suffix)

    def _open(self, number: int) -> NDArray[np.float16]:
        if not self._counts[number]:
            return np.empty((0, self.settings.dimension), np.float16)  # nothing cannot be memory-mapped
        return np.load(self._path(number, "npy"), mmap_mode="r")

    def _check(self, number: int) -> int:
        """Embeddings of a shard."""
        path = self._path(number, "parquet")
        if not path.exists():
            raise FeaturesError(f"{path} is missing: run data_curation.embed again to finish {self.folder}")
        metadata = _metadata(path)
        model = (metadata.metadata or {}).get(_MODEL, b"").decode()
        if model != self.settings.model:
            raise FeaturesError(f"{path} is of {model}, {SETTINGS} of {self.settings.model}: embed the folder anew")
        shape = _npy_shape(self._path(number, "npy"))
        if shape != (metadata.num_rows, self.settings.dimension):
            raise FeaturesError(
                f"{path} has {metadata.num_rows} rows, its .npy file the shape {shape}: delete it and embed again"
            )
        return int(metadata.num_rows)


def read_settings(folder: Path) -> Settings:
    """The settings of a features folder.

    Raises:
        FeaturesError: the file is missing or damaged.
    """
    path = folder / SETTINGS
    try:
        found = json.loads(path.read_text())
        found["inputs"] = tuple(found["inputs"])
        return Settings(**{field.name: found[field.name] for field in fields(Settings)})
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read ({error.strerror}): make it by data_curation.embed") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FeaturesError(f"{path} is damaged ({error}): embed the folder anew") from error


def shard_path(folder: Path, number: int, suffix: str) -> Path:
    """`folder/shard_00012.suffix`."""
    return folder / f"shard_{number:05}.{suffix}"


def finished_inputs(folder: Path, number: int) -> str | None:
    """The fingerprint of a finished shard's inputs; None if the shard is not finished."""
    path = shard_path(folder, number, "parquet")
    return (_metadata(path).metadata or {}).get(_INPUTS, b"").decode() if path.exists() else None


def write_shard(
    folder: Path,
    number: int,
    vectors: NDArray[np.float16],
    records: list[Record],
    unreadable: list[tuple[str, str]],
    model: str,
    inputs: str,
) -> None:
    """Write a shard's files, the one that marks it complete last.

    Args:
        vectors: float16 `n d`, rows of length one.
        records: one a row.
        unreadable: name and reason.
        model, inputs: the encoder's id and the fingerprint of the images' names and sizes.
    """
    npy = io.BytesIO()
    np.save(npy, vectors)
    write_bytes(shard_path(folder, number, "npy"), npy.getvalue())
    _write_unreadable(shard_path(folder, number, "unreadable.csv"), unreadable)
    schema = SCHEMA.with_metadata({_MODEL: model.encode(), _INPUTS: inputs.encode()})
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([asdict(record) for record in records], schema), parquet, compression="zstd")
    write_bytes(shard_path(folder, number, "parquet"), parquet.getvalue())


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rows brought to length one in float32, then cast.

    Raises:
        FeaturesError: a row is zero or not finite, so that no direction is left.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise FeaturesError("the encoder gave an embedding that is zero or not finite: check its weights, or use fp32")
    return (vectors / lengths).astype(np.float16)


def _write_unreadable(path: Path, unreadable: list[tuple[str, str]]) -> None:
    if not unreadable:
        path.unlink(missing_ok=True)  # of an earlier try, when they could not be read
        return
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("name", "reason"), *unreadable])
    write_bytes(path, text.getvalue().encode(errors="backslashreplace"))  # a name may be the very fault


def _metadata(path: Path) -> pq.FileMetaData:
    try:
        return pq.read_metadata(path)
    except (OSError, pa.ArrowException) as error:
        raise FeaturesError(f"{path} is damaged ({error}): delete it and embed again") from error


def _npy_shape(path: Path) -> tuple[int, ...]:
    try:
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, _, kind = read(file)
            held = path.stat().st_size - file.tell()
    except (OSError, ValueError) as error:
        raise FeaturesError(f"{path} is missing or damaged ({error}): delete its .parquet and embed again") from error
    if kind != np.float16 or held != 2 * int(np.prod(shape)):
        raise FeaturesError(f"{path} is cut short or not of float16: delete its .parquet and embed again")
    return shape
