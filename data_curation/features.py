"""A features folder: embeddings in numbered shards, with what is known of each image beside them.

    shard_00000.npy               float16 `n d`, rows of length one
    shard_00000.parquet           a row an embedding, same order; written last: it marks the shard complete
    shard_00000.unreadable.csv    the shard's images that could not be read, if there are any
    features.json                 the settings of the whole folder

Nothing in these files depends on when, where or by how many processes they were written. A Parquet file's metadata
holds how its shard was made and the checksum of its embeddings.
"""

import csv
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from image_data.sources import DataError
from utils.files import write_bytes

SETTINGS = "features.json"
ORIENTATIONS = 8  # of a perceptual hash
THUMBNAIL = 16  # pixels a side
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
        ("thumbnail", pa.binary(3 * THUMBNAIL**2)),
        ("keypoints", pa.binary()),
    ]
)
_MADE, _INPUTS, _CHECKSUM, _UNREADABLE = b"made", b"inputs", b"crc32", b"unreadable"  # keys of a file's metadata
_BLOCK = 64 * 1024  # rows gathered at a time
Buffer = bytes  # Record has a field of that name


@dataclass(frozen=True)
class Record:
    """What is known of an image beside its embedding.

    Attributes:
        height, width: in pixels as the file holds them, upright.
        phash: of the eight orientations; see embed/phash.py.
        blockiness, sharpness: see embed/quality.py.
        thumbnail: uint8 `16 16 3`, the whole image.
        keypoints: `n` of embed/keypoints.py's HASHED.
    """

    name: str
    height: int
    width: int
    bytes: int
    sha1: str
    phash: list[int]
    blockiness: float
    sharpness: float
    thumbnail: Buffer
    keypoints: Buffer


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

    @property
    def made(self) -> str:
        """How each embedding was made, in words: what all shards of a folder share."""
        return f"{self.model}, downscale {self.downscale}, {self.precision}, batches of {self.batch}, {self.weights}"

    def encode(self) -> bytes:
        """The file's content."""
        return (json.dumps(asdict(self), indent=2) + "\n").encode()


class FeaturesError(DataError):
    """A features folder that is incomplete, damaged or of other settings; the message names it and the remedy."""


class Features:
    """A complete features folder, opened for reading."""

    def __init__(self, folder: str | Path) -> None:
        """Open a folder and check every shard's header; the embeddings' checksums are checked when they are read.

        Raises:
            FeaturesError: missing or incomplete (the first missing shard is named), of several settings, damaged, or
                without a single embedding.
        """
        self.folder = Path(folder)
        self.settings = read_settings(self.folder)
        self._counts = [self._check(number) for number in range(self.settings.shards)]
        self._starts = np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64)
        self._sound: set[int] = set()
        if not len(self):
            raise FeaturesError(
                f"{folder} holds no embedding: none of its {self.settings.images} images could be read; "
                f"see {shard_path(self.folder, 0, 'unreadable.csv')}"
            )

    @property
    def folders(self) -> list[Path]:
        """Where the rows come from."""
        return [self.folder]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def columns(self, *names: str) -> pa.Table:
        """Some columns of all rows; see SCHEMA."""
        parts = []
        for number in range(self.settings.shards):
            path = shard_path(self.folder, number, "parquet")
            try:
                parts.append(pq.read_table(path, columns=list(names), page_checksum_verification=True))
            except (OSError, pa.ArrowException) as error:
                raise FeaturesError(f"{path} is damaged ({error}); {_again(self.folder, number)}") from error
        return pa.concat_tables([part.replace_schema_metadata() for part in parts])

    def column(self, name: str) -> list[Any]:
        """One column of all rows as Python objects."""
        return self.columns(name)[name].to_pylist()

    def phashes(self) -> NDArray[np.uint64]:
        """The perceptual hashes, uint64 `n 8`."""
        lists = self.columns("phash")["phash"].combine_chunks()
        return np.asarray(lists.flatten(), np.uint64).reshape(-1, ORIENTATIONS)

    def thumbnails(self) -> NDArray[np.uint8]:
        """uint8 `n 16 16 3`."""
        content = b"".join(self.column("thumbnail"))
        return np.frombuffer(content, np.uint8).reshape(-1, THUMBNAIL, THUMBNAIL, 3)

    def shards(self) -> Iterator[NDArray[np.float16]]:
        """The embeddings, `n d` a shard, memory-mapped; drop one before the next to give its memory back.

        Raises:
            FeaturesError: a shard's bytes are not those that were written.
        """
        for number in range(self.settings.shards):
            yield self._open(number)

    def vectors(self, rows: Sequence[int] | NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """The embeddings of some rows, float32 `len(rows) d`, in the order asked for.

        Raises:
            FeaturesError: a shard's bytes are not those that were written.
        """
        wanted = np.asarray(rows, np.int64)
        result = np.empty((len(wanted), self.settings.dimension), np.float32)
        numbers = np.searchsorted(self._starts, wanted, side="right") - 1
        for number in np.unique(numbers):
            places = np.flatnonzero(numbers == number)
            shard = self._open(int(number))
            for part in np.array_split(places, -(-len(places) // _BLOCK)):
                result[part] = shard[wanted[part] - self._starts[number]]
        return result

    def unreadable(self) -> list[tuple[str, str]]:
        """Name and reason of every image that could not be read, in the order of the inputs."""
        result: list[tuple[str, str]] = []
        for number in range(self.settings.shards):
            path = shard_path(self.folder, number, "unreadable.csv")
            if path.exists():
                with path.open(newline="") as file:
                    result += [(row["name"], row["reason"]) for row in csv.DictReader(file)]
        return result

    def _open(self, number: int) -> NDArray[np.float16]:
        if not self._counts[number]:
            return np.empty((0, self.settings.dimension), np.float16)  # nothing cannot be memory-mapped
        shard = self._map(number, self._counts[number])
        if number not in self._sound:
            path = shard_path(self.folder, number, "parquet")
            if _checksum(shard) != _metadata(path).metadata[_CHECKSUM]:
                raise FeaturesError(
                    f"{path.with_suffix('.npy')} is damaged: its checksum is wrong; {_again(self.folder, number)}"
                )
            self._sound.add(number)
        return shard

    def _check(self, number: int) -> int:
        """Embeddings of a shard."""
        path = shard_path(self.folder, number, "parquet")
        if not path.exists():
            raise FeaturesError(f"{path} is missing: run data_curation.embed again to finish {self.folder}")
        result = _metadata(path)
        settings = self.settings
        made = (result.metadata or {}).get(_MADE, b"an earlier version").decode()
        if made != settings.made:
            raise FeaturesError(f"{path} was made with {made}, not with {settings.made}: embed to a new folder")
        images = min(settings.shard_size, settings.images - number * settings.shard_size)
        if result.num_rows + int(result.metadata[_UNREADABLE]) != images:
            raise FeaturesError(
                f"{path} is not of {images} images: it is another folder's; {_again(self.folder, number)}"
            )
        if result.num_rows:
            self._map(number, result.num_rows)
        return int(result.num_rows)

    def _map(self, number: int, rows: int) -> NDArray[np.float16]:
        path = shard_path(self.folder, number, "npy")
        try:
            shard = np.load(path, mmap_mode="r")
        except (OSError, ValueError, EOFError) as error:
            raise FeaturesError(f"{path} is missing or damaged ({error}); {_again(self.folder, number)}") from error
        if shard.dtype != np.float16 or shard.shape != (rows, self.settings.dimension):
            raise FeaturesError(f"{path} does not fit its .parquet file; {_again(self.folder, number)}")
        return shard


def read_settings(folder: Path) -> Settings:
    """The settings of a features folder.

    Raises:
        FeaturesError: the file is missing or damaged.
    """
    path = folder / SETTINGS
    try:
        result = json.loads(path.read_text())
        result["inputs"] = tuple(result["inputs"])
        return Settings(**{field.name: result[field.name] for field in fields(Settings)})
    except OSError as error:
        raise FeaturesError(f"{path} cannot be read ({error.strerror}): make it by data_curation.embed") from error
    except (ValueError, KeyError, TypeError) as error:
        raise FeaturesError(f"{path} is damaged ({error}): embed to a new folder") from error


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
    settings: Settings,
    inputs: str,
) -> None:
    """Write a shard's files, the one that marks it complete last.

    Args:
        vectors: float16 `n d`, rows of length one.
        records: one a row.
        unreadable: name and reason.
        inputs: the fingerprint of the images' names and sizes.
    """
    npy = io.BytesIO()
    np.save(npy, vectors)
    write_bytes(shard_path(folder, number, "npy"), npy.getvalue())
    _write_unreadable(shard_path(folder, number, "unreadable.csv"), unreadable)
    metadata = {_MADE: settings.made.encode(), _INPUTS: inputs.encode(), _CHECKSUM: _checksum(vectors),
                _UNREADABLE: str(len(unreadable)).encode()}  # fmt: skip
    parquet = io.BytesIO()
    pq.write_table(to_table(records).replace_schema_metadata(metadata), parquet, compression="zstd",
                   write_page_checksum=True)  # fmt: skip
    write_bytes(shard_path(folder, number, "parquet"), parquet.getvalue())


def to_table(records: Sequence[Record]) -> pa.Table:
    """A row a record; see SCHEMA."""
    return pa.table({name: [getattr(record, name) for record in records] for name in SCHEMA.names}, SCHEMA)


def normalised(vectors: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rows brought to length one in float32, then cast.

    Raises:
        FeaturesError: a row is zero or not finite, so that no direction is left.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(lengths).all() and (lengths > 0).all()):
        raise FeaturesError("the encoder gave an embedding that is zero or not finite: check its weights, or use fp32")
    return (vectors / lengths).astype(np.float16)


def _again(folder: Path, number: int) -> str:
    return f"delete {shard_path(folder, number, 'parquet')} and run data_curation.embed again"


def _checksum(vectors: NDArray[np.float16]) -> bytes:
    return f"{zlib.crc32(np.ascontiguousarray(vectors).data):08x}".encode()


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
        raise FeaturesError(f"{path} is damaged ({error}): delete it and run data_curation.embed again") from error
