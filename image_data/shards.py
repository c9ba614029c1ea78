"""Tar shards in webdataset's layout: thousands of image files in one, unchanged, and the same bytes whenever made."""

import io
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from image_data.headers import Header
from image_data.sources import MAX_LISTED, DataError, ImageFile, index_shard
from image_data.workers import in_order
from models.team08_HATFreq.image_io import ImageError
from models.team08_HATFreq.system import TEMPORARY, atomic_write, make_folder


@dataclass
class Shard:
    """What one shard holds.

    Attributes:
        path: the tar file.
        members: image and size in bytes by the member's name.
        changed: when the newest of them was written, in ns.
    """

    path: Path
    members: dict[str, tuple[ImageFile, int]] = field(default_factory=dict)
    changed: int = 0


def plan(images: Sequence[ImageFile], headers: Sequence[Header], out: Path, shard_bytes: int) -> list[Shard]:
    """Share images out, in their order, to shards of at most about so many bytes, `out/name-00000.tar` and so on.

    Args:
        images, headers: the images and, in the same order, their headers.
        out: folder, whose name the shards bear.
        shard_bytes: an image larger than this gets a shard of its own.

    Raises:
        DataError: images of one name, or a folder that holds more shards than these.
    """
    names = [member_name(image) for image in images]
    if doubled := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(
            f"several images are called {', '.join(doubled[:MAX_LISTED])}: rename them, or pack each folder to an "
            "--out of its own"
        )
    shards: list[Shard] = []
    room = 0
    for image, header, name in zip(images, headers, names, strict=True):
        needed = tarfile.BLOCKSIZE * (1 + -(-header.size // tarfile.BLOCKSIZE))  # its header, and whole blocks
        if not shards or needed > room:
            shards.append(Shard(out / f"{out.name}-{len(shards):05}.tar"))
            room = shard_bytes
        shards[-1].members[name] = (image, header.size)
        shards[-1].changed = max(shards[-1].changed, header.changed)
        room -= needed
    _refuse_further(shards, out)
    return shards


def pack(shards: Sequence[Shard]) -> Iterator[Shard]:
    """Write each shard that is not there whole already, by all cores; killed at any moment, the same call resumes.

    Raises:
        ImageError: an image cannot be read, or has changed since its header was.
    """
    for folder in {shard.path.parent for shard in shards}:
        make_folder(folder)
    return in_order(_pack, shards)


def member_name(image: ImageFile) -> str:
    """Folder and file name, as ImageNet's `n01440764/n01440764_10026.JPEG`."""
    return image.member or f"{image.path.absolute().parent.name}/{image.path.name}"


def _refuse_further(shards: list[Shard], out: Path) -> None:
    known = {shard.path.name for shard in shards}
    found = {path.name for path in out.glob("*.tar") if not path.name.startswith(TEMPORARY)}
    if further := sorted(found - known):
        raise DataError(
            f"{out} holds {len(further)} shards that these images do not fill, as {further[0]}: they were made of "
            "other images, or with another --shard_gb; remove them or name another --out"
        )


def _pack(shard: Shard) -> Shard:
    if _finished(shard):
        return shard
    with atomic_write(shard.path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, (image, size) in shard.members.items():
            archive.addfile(entry(name, size), io.BytesIO(_content(image, size)))
    return shard


def _finished(shard: Shard) -> bool:
    """Whether the shard is there with all its members, and not older than they are."""
    if not shard.path.exists() or shard.path.stat().st_mtime_ns < shard.changed:
        return False
    try:
        found = index_shard(shard.path)
    except DataError:  # cut short: written again
        return False
    return [(name, item.size) for name, item in found.items()] == [
        (name, size) for name, (_, size) in shard.members.items()
    ]


def entry(name: str, size: int) -> tarfile.TarInfo:
    """A member's header: no time, no owner, so that the same images give the same bytes."""
    entry = tarfile.TarInfo(name)
    entry.size = size
    return entry


def _content(image: ImageFile, size: int) -> bytes:
    content = image.content()
    if len(content) != size:
        raise ImageError(f"{image.name} changed while it was packed: start the same command again")
    return content
