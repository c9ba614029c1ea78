"""Tables of encoded images (Parquet, as img2dataset and Hugging Face write it) unpacked into tar shards.

A Parquet file is read from its beginning, so that no image in it can be drawn at random; a tar shard is indexed once
and read anywhere. The images' bytes stay as they are.
"""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow.fs import FileSelector, FileSystem, FileType

from image_data.shards import entry
from image_data.sources import MAX_LISTED, DataError, index_shard
from image_data.workers import in_order
from models.team08_HATFreq.image_io import IMAGE_SUFFIXES
from models.team08_HATFreq.system import atomic_write, make_folder

ROWS = 32  # read at once: images of some MB each
MAGIC = {
    b"\xff\xd8\xff": ".jpg",
    b"\x89PNG": ".png",
    b"RIFF": ".webp",
    b"BM": ".bmp",
    b"II*\0": ".tif",
    b"MM\0*": ".tif",
}


@dataclass(frozen=True)
class Table:
    """A Parquet file: its address, and when it was changed (ns; 0: not told)."""

    uri: str
    changed: int = 0

    @property
    def stem(self) -> str:
        """Its name without folder and suffix."""
        return PurePosixPath(self.uri.partition("?")[0] if "://" in self.uri else self.uri).stem


@dataclass(frozen=True)
class Unpacked:
    """A shard that was made: its images and bytes, and the rows without an image of a known format."""

    path: Path
    images: int
    size: int
    empty: int


def find_tables(word: str) -> list[Table]:
    """The Parquet files that a word stands for, by name.

    Args:
        word: a file or a folder; or an address of pyarrow's file systems, `s3://bucket/folder` or `gs://bucket/folder`,
            with their options behind a `?`.

    Raises:
        DataError: nothing there, or it cannot be reached.
    """
    try:
        system, path = _open(word)
        found = system.get_file_info(path)
        infos = system.get_file_info(FileSelector(path)) if found.type == FileType.Directory else [found]
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{word} cannot be reached ({error}): check the address and your credentials") from error
    files = [info for info in infos if info.type == FileType.File and info.path.endswith(".parquet")]
    scheme, options = "", ""
    if "://" in word:
        scheme, options = word.partition("://")[0] + "://", "".join(word.partition("?")[1:])
    if not files:
        raise DataError(
            f"{word} holds no Parquet files: give a file, a folder or an address such as s3://bucket/folder"
        )
    return [Table(f"{scheme}{one.path}{options}", one.mtime_ns or 0) for one in sorted(files, key=lambda one: one.path)]


def unpack(tables: Sequence[Table], out: Path) -> Iterator[Unpacked]:
    """Make a shard of each table, `out/name.tar`, by all cores; one that is there and not older is passed over.

    Each shard is written whole or not at all: killed at any moment, the same call resumes.

    Raises:
        DataError: tables of one name, or one that cannot be read or holds no images.
        OSError: a shard cannot be written.
    """
    if doubled := [stem for stem, count in Counter(table.stem for table in tables).items() if count > 1]:
        raise DataError(
            f"several tables are called {', '.join(doubled[:MAX_LISTED])}: unpack each folder to an --out of its own"
        )
    make_folder(out)
    yield from in_order(partial(_unpack, out=out), tables)


def _open(word: str) -> tuple[FileSystem, str]:
    return FileSystem.from_uri(word if "://" in word else Path(word).absolute().as_uri())


def _unpack(table: Table, out: Path) -> Unpacked:
    path = out / f"{table.stem}.tar"
    if path.exists() and path.stat().st_mtime_ns >= table.changed:
        with suppress(DataError):  # damaged: made again
            return Unpacked(path, len(index_shard(path)), path.stat().st_size, 0)
    images = empty = 0
    with atomic_write(path) as file:
        with tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as shard:
            for name, content in _images(table):
                if content:
                    shard.addfile(entry(f"{table.stem}/{name}", len(content)), io.BytesIO(content))
                images, empty = images + bool(content), empty + (not content)
        if not images:
            raise DataError(f"{table.uri} holds no JPEG, PNG, WebP, BMP or TIFF in any of its {empty} rows")
    return Unpacked(path, images, path.stat().st_size, empty)


def _images(table: Table) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of each row's image; no bytes where there is none, or none of a known format.

    Raises:
        DataError: the table cannot be read.
    """
    row, keys = 0, set[str]()
    try:
        system, path = _open(table.uri)
        with system.open_input_file(path) as file:
            parquet = pq.ParquetFile(file)
            column = _image_column(table, parquet.schema_arrow)
            columns = [column, *(["key"] if "key" in parquet.schema_arrow.names else [])]
            for batch in parquet.iter_batches(ROWS, columns=columns):
                for record in batch.to_pylist():
                    image = record[column]
                    content = (image["bytes"] if isinstance(image, dict) else image) or b""
                    suffix = next((suffix for magic, suffix in MAGIC.items() if content.startswith(magic)), "")
                    key = str(record.get("key") or f"{row:08}")
                    while key in keys:  # a shard cannot hold two members of one name
                        key += f"_{row:08}"
                    keys.add(key)
                    yield f"{key}{suffix}", content if suffix else b""
                    row += 1
    except (OSError, pa.ArrowException) as error:
        # Arrow's own of damaged content is an OSError, too, of no number.
        outside = isinstance(error, OSError) and error.errno
        remedy = "check access and connection, and start the same command again" if outside else "download it again"
        raise DataError(f"{table.uri} cannot be read ({error}): {remedy}") from error


def _image_column(table: Table, schema: pa.Schema) -> str:
    """The column of encoded images: Hugging Face's struct with `bytes`, or bytes under a format's name or `image`."""
    for field in schema:
        if pa.types.is_struct(field.type) and field.type.get_field_index("bytes") >= 0:
            return str(field.name)
    for field in schema:
        binary = pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type)
        if binary and (f".{field.name}" in IMAGE_SUFFIXES or field.name in ("image", "bytes")):
            return str(field.name)
    raise DataError(
        f"{table.uri} has no column of encoded images ({', '.join(schema.names)}): give Parquet of img2dataset or "
        "Hugging Face, with jpg, png, image or a struct of bytes"
    )
