"""What a results folder holds and how it was made: a JSON file in it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .image_io import write_bytes

RECORD = "record.json"
PARTS = "record.*.json"  # of the processes that share a folder, until the main one joins them


class RestorationError(RuntimeError):
    """A run that could not begin, or in which some images could not be restored; the message names them."""


@dataclass
class Record:
    """The record's file and content; rewritten after every image."""

    path: Path
    content: dict[str, Any]

    def finished(self, name: str, source_sha256: str) -> bool:
        """Whether an output stands there that was made from the very same input."""
        entry = self.content["images"].get(name, {})
        return entry.get("source_sha256") == source_sha256 and (self.path.parent / name).exists()

    def add(self, name: str, entry: dict[str, Any]) -> None:
        """Note an image that has been written."""
        self.content["images"][name] = entry
        self.save()

    def save(self) -> None:
        """Write the file, whole or not at all."""
        write_bytes(self.path, (json.dumps(self.content, indent=2) + "\n").encode())

    def part(self, rank: int) -> "Record":
        """The record of one process among several: it knows what is finished and writes a file of its own."""
        images = dict(self.content["images"])
        return Record(self.path.with_name(PARTS.replace("*", str(rank))), {**self.content, "images": images})

    def join(self, images: dict[str, Any]) -> None:
        """Take over what the processes noted, in the order of names, and remove their files."""
        merged = {**self.content["images"], **images}
        self.content["images"] = {name: merged[name] for name in sorted(merged)}
        self.save()
        for part in self.path.parent.glob(PARTS):
            part.unlink()


def open_record(target: Path, settings: dict[str, Any], names: list[str], overwrite: bool) -> Record:
    """The record of a results folder, new or to be continued, with what processes that were killed noted.

    Raises:
        RestorationError: results of other settings or of unknown origin would be mixed or overwritten.
    """
    path = target / RECORD
    fresh = Record(path, {"settings": settings, "images": {}})
    parts = sorted(target.glob(PARTS))
    if overwrite:
        fresh.join({})
        return fresh
    remedy = "use --overwrite to replace them, or another folder"
    if not path.exists():
        if existing := [name for name in names if (target / name).exists()]:
            raise RestorationError(f"{target} holds {existing[0]} and no {RECORD} that tells how it was made: {remedy}")
        fresh.join({})
        return fresh
    record = Record(path, {"settings": settings, "images": _images(path, settings, remedy)})
    if parts:
        record.join({name: entry for part in parts for name, entry in _images(part, settings, remedy).items()})
    return record


def _images(path: Path, settings: dict[str, Any], remedy: str) -> dict[str, Any]:
    """The images that a record names.

    Raises:
        RestorationError: not a record, or of other settings.
    """
    try:
        content = json.loads(path.read_text())
        before, images = content["settings"], content["images"]
    except (ValueError, KeyError, TypeError) as error:
        raise RestorationError(f"{path} is not a record of restored images ({error}): {remedy}") from error
    if changed := [key for key in {**before, **settings} if before.get(key) != settings.get(key)]:
        was = ", ".join(f"{key} was {before.get(key)!r} and is now {settings.get(key)!r}" for key in changed)
        raise RestorationError(f"{path.parent} holds results of other settings ({was}): {remedy}")
    return images
