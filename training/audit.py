"""The training set is read before step 1: unreadable, too small, grey, doubled and evaluation images are named.

What is found is kept by name, size and time of change, so that the next start reads changed files only.
"""

import os
import stat
import time
from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import cv2
import numpy as np

from image_data.degradation import SCALE
from image_data.geometry import cut_to_scale, fits
from image_data.mixture import Source
from image_data.pairs import same_content
from image_data.sources import MAX_LISTED, DataError, ImageFile, ImageList, why
from models.team08_HATFreq.image_io import ImageError, read_picture
from models.team08_HATFreq.system import atomic_write
from training.photographs import DIGEST, LISTS, ROW, Image, Photographs, canonical_hash, digest, stamp_of

AT_ONCE = 2048  # images between two looks at the clock
SAVE_EVERY = 60.0  # seconds between two writes of what was found so far
# An image, its official low-resolution one and a teacher's restoration of it.
Files = tuple[ImageFile, ImageFile | None, ImageFile | None]


class LeftOut(NamedTuple):
    """An image that is not trained on: `kind` is a word or two, `detail` the rest of the reason."""

    name: str
    kind: str
    detail: str

    @property
    def reason(self) -> str:
        """As lists and messages give it."""
        return f"{self.kind}: {self.detail}"


@dataclass(frozen=True)
class Audit:
    """What is known of the training set.

    Attributes:
        photographs: what can be trained on.
        left_out: the other images.
        fingerprint: hash of the former.
        duplicates: images that equal another one, turned and mirrored ones included, and the name of that one.
        teacher: name and sha256 of the weights whose restorations are learned; None for none.
    """

    photographs: Photographs
    left_out: list[LeftOut]
    fingerprint: str = ""
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    teacher: dict[str, str] | None = None

    def summary(self) -> str:
        """One line for the log."""
        pixels = int(self.photographs.areas.sum()) / 1e6
        kinds = Counter(one.kind for one in self.left_out)
        skipped = "".join(f", {count} left out ({kind})" for kind, count in sorted(kinds.items()))
        colourless = int((self.photographs.rows["grey"] == 2).sum())
        note = f", {colourless} of them colour files without colour" if colourless else ""
        taught = int(self.photographs.has_restoration().sum())
        note += f", {taught} of them with a restoration by {self.teacher['name']}" if self.teacher else ""
        return f"{len(self.photographs)} training images, {pixels:.1f} megapixels{note}{skipped}"

    def duplicates_summary(self) -> str:
        """The duplicates in a line for the log; empty if there are none."""
        if not (count := len(self.duplicates)):
            return ""
        listed = ", ".join(f"{name} = {other}" for name, other in self.duplicates[:MAX_LISTED])
        more = f" and {count - MAX_LISTED} more" if count > MAX_LISTED else ""
        equal = "images equal others" if count > 1 else "image equals another"
        return (
            f"warning: {count} training {equal}, turned and mirrored ones included, and what they show is drawn more "
            f"often than the rest: {listed}{more}. To draw it once, take out those named first; duplicates.csv in the "
            "run folder lists all"
        )


def audit(sources: Sequence[Source], patch: int, excluded: dict[bytes, str], skip: bool, cache: Path | None) -> Audit:
    """Read every training image that is new or changed since an earlier start.

    Args:
        sources: the images.
        patch: side of a low-resolution patch; an image's sides must be at least `patch * SCALE`.
        excluded: digest -> name of the evaluation images.
        skip: leave unusable images out instead of refusing the set.
        cache: file that keeps what is found; None to read everything again.

    Raises:
        DataError: images unreadable, too small, grey, of the evaluation set, or with the low-resolution image or the
            restoration of another (the first ten are named); with `skip`, when none is left. Or images that are listed
            twice.
    """
    images, lr_images, restorations, rows = ImageList(), ImageList(), ImageList(), [np.empty(0, ROW)]
    left_out: list[LeftOut] = []
    findings, listed, kept_places = Findings(cache), dict[bytes, str](), array("Q")
    for number, source in enumerate(sources):
        places = array("Q")
        partners = (source.lr_images or repeat(None), source.restorations or repeat(None))
        for chunk, looked in findings.inspect(zip(source.images, *partners, strict=False)):
            kept, shares = [], []
            for (image, lr_image, restoration), (place, row) in zip(chunk, looked, strict=True):
                places.append(place)
                if fault := row if isinstance(row, LeftOut) else _fault(image, row, patch, excluded):
                    left_out.append(fault)
                    continue
                kept.append(row)
                shares.append(1.0 if source.image_weights is None else float(source.image_weights[len(places) - 1]))
                kept_places.append(place)
                images.append(image)
                lr_images.append(lr_image or ImageFile(Path()))
                restorations.append(restoration or ImageFile(Path()))
            rows.append(np.array(kept, ROW))
            rows[-1]["source"], rows[-1]["weight"] = number, shares
        _refuse_doubled(source, places, listed)
    findings.save()
    if left_out and (not skip or not images):
        raise DataError(_message(left_out, sum(len(source.images) for source in sources)))
    found = np.concatenate(rows)
    for side in ("height", "width"):
        found[side] -= found[side] % SCALE
    teacher = next((source.teacher for source in sources if source.teacher), None)
    weights, parts = (tuple(getattr(one, name) for one in sources) for name in ("weight", "teacher_weight"))
    photographs = Photographs(images, lr_images, found, weights, restorations if teacher else ImageList(), parts)
    doubled = [(images[later].name, images[first].name) for later, first in _duplicates(found, kept_places, weights)]
    return Audit(photographs, left_out, photographs.fingerprint(), doubled, teacher)


def resume(found: Audit, earlier: Photographs | None, folder: Path, skip: bool) -> Photographs:
    """The training set of a run that has begun, when not all of its images are there any more.

    Args:
        found: the images as they are now.
        earlier: as they were when the run began; None if that is not known.
        folder: the run folder, for messages.
        skip: keep the places of images that cannot be read now: they are passed over when they are drawn, and the order
            of the others stays.

    Raises:
        DataError: there are other images, or some are missing and not `skip`.
    """
    now, place, missing = found.photographs, 0, []
    order: list[tuple[Photographs, int]] = []
    if earlier is not None:
        for number in range(len(earlier)):
            if place < len(now) and (now.rows["digests"][place] == earlier.rows["digests"][number]).all():
                order.append((now, place))  # by today's name: the folder may have moved
                place += 1
            else:
                order.append((earlier, number))
                missing.append(earlier.images[number].name)
    if earlier is not None and place == len(now) and skip:
        images, lr_images, restorations = (
            ImageList(getattr(whose, one)[n] for whose, n in order if getattr(whose, one)) for one in LISTS
        )
        kept = np.array([whose.rows[n] for whose, n in order], ROW)
        return replace(now, images=images, lr_images=lr_images, restorations=restorations, rows=kept)
    first = f": {', '.join(missing[:MAX_LISTED])} {'is' if len(missing) == 1 else 'are'} missing or changed"
    raise DataError(
        f"the training images have changed since {folder} began{first if missing else ''}. Restore them, or start "
        "another --out" + (", or pass missing ones over with --bad_images skip" if missing and not skip else "")
    )


def default_cache() -> Path:
    """Where the findings of all runs of a person are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hatfreq" / "audit.npz"


class Findings:
    """What readable files hold: `ROW`s sorted by their stamps, kept in a file between starts."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known, self.new = np.empty(0, ROW), [np.empty(0, ROW)]
        if not path or not path.exists():
            return
        try:
            with np.load(path) as file:
                found = file["findings"]
            self.known = found if found.dtype == ROW else self.known  # of another version: made again
        except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
            raise self._error(error) from error

    def inspect(self, items: Iterator[Files]) -> Iterator[tuple[list[Files], list[tuple[int, Any]]]]:
        """Images in chunks, each with its place on the disk (0: unknown) and its `ROW`, or why it cannot be read."""
        saved = time.monotonic()
        with ThreadPoolExecutor() as pool:
            while some := list(islice(items, AT_ONCE)):
                stamps = list(pool.map(_stamp, some))
                rows = [self._recall(stamp) for stamp, _ in stamps]
                unknown = [number for number, row in enumerate(rows) if row is None]
                for number, row in zip(unknown, pool.map(_look, [some[n] for n in unknown]), strict=True):
                    rows[number] = row
                    if not isinstance(row, LeftOut):
                        row["stamp"] = stamps[number][0]
                self.new.append(np.array([rows[n] for n in unknown if not isinstance(rows[n], LeftOut)], ROW))
                yield some, [(place, row) for (_, place), row in zip(stamps, rows, strict=True)]
                if time.monotonic() - saved > SAVE_EVERY:
                    self.save()
                    saved = time.monotonic()

    def _recall(self, stamp: int) -> Any:
        row = int(np.searchsorted(self.known["stamp"], np.uint64(stamp)))
        return self.known[row] if row < len(self.known) and int(self.known["stamp"][row]) == stamp else None

    def save(self) -> None:
        """Write what is known, if there is something new."""
        if not self.path or not sum(map(len, self.new)):
            return
        rows = np.concatenate([self.known, *self.new])
        self.known, self.new = rows[np.unique(rows["stamp"], return_index=True)[1]], [np.empty(0, ROW)]
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(self.path) as file:
                np.savez(file, findings=self.known)
        except OSError as error:
            raise self._error(error) from error

    def _error(self, error: Exception) -> DataError:
        return DataError(
            f"{self.path} cannot keep what the audit finds ({error}): delete it, name another --audit_cache, or none"
        )


def _stamp(item: Files) -> tuple[int, int]:
    try:
        return stamp_of(*item)
    except OSError:
        return 0, 0


def _look(item: Files) -> Any:
    """Decode an image, its low-resolution one and its restoration: a `ROW`, or why they cannot be used."""
    image, lr_image, restoration = item
    try:
        rgb, grey = _read(image)
        lq, restored = (_read(file)[0] if file else None for file in (lr_image, restoration))
    except ImageError as error:
        return LeftOut(image.name, "unreadable", str(error))  # names the file
    if lr_image and lq is not None and (fault := _lr_fault(image, rgb, lr_image, lq)):
        return fault
    if restoration and restored is not None and (fault := _teacher_fault(image, rgb, restoration, restored)):
        return fault
    digests = b"".join(bytes(DIGEST) if one is None else digest(one) for one in (rgb, lq, restored))
    canonical = canonical_hash(*(one for one in (rgb, lq) if one is not None))
    return np.array((0, *rgb.shape[:2], 0, 1, grey, canonical, np.frombuffer(digests, np.uint8)), ROW)


def _lr_fault(image: ImageFile, rgb: Image, lr_image: ImageFile, lq: Image) -> LeftOut | None:
    (h, w), (lr_h, lr_w) = rgb.shape[:2], lq.shape[:2]
    if not fits(h, lr_h, w, lr_w):
        detail = f"{lr_image.name} is {lr_w}x{lr_h}, it needs {w // SCALE}x{h // SCALE}"
        return LeftOut(image.name, "wrong scale", detail)
    if not same_content(cut_to_scale(rgb), lq[: h // SCALE, : w // SCALE]):
        return LeftOut(image.name, "wrong pair", f"{lr_image.name} does not show what it shows")
    return None


def _teacher_fault(image: ImageFile, rgb: Image, restoration: ImageFile, restored: Image) -> LeftOut | None:
    target, remedy = cut_to_scale(rgb), "make it again with scripts.make_teacher"
    (h, w), (restored_h, restored_w) = target.shape[:2], restored.shape[:2]
    if (h, w) != (restored_h, restored_w):
        detail = f"{restoration.name} is {restored_w}x{restored_h}, it needs {w}x{h}: {remedy}"
        return LeftOut(image.name, "wrong restoration", detail)
    small = cv2.resize(np.ascontiguousarray(restored), (w // SCALE, h // SCALE), interpolation=cv2.INTER_AREA)
    if not same_content(target, small):
        return LeftOut(
            image.name, "wrong restoration", f"{restoration.name} does not show what it shows: delete it and {remedy}"
        )
    return None


def _read(file: ImageFile) -> tuple[Image, int]:
    """uint8 `h w 3`, and what of it is grey (see `ROW`)."""
    try:
        if not stat.S_ISREG(file.path.stat().st_mode):
            raise ImageError(f"{file.name} is not a file that can be read: take it out of the folder")
    except OSError as error:
        raise ImageError(f"{file.name} cannot be read ({why(error)}): restore it") from error
    content = file.content()
    picture = read_picture(file.name, content)
    if picture.alpha is not None:
        raise ImageError(f"{file.name} is partly transparent: flatten it onto a background first")
    rgb = picture.rgb if picture.rgb.dtype == np.uint8 else file.read_rgb()
    return rgb, 1 if picture.grey else 2 * bool((rgb == rgb[..., :1]).all())


def _fault(image: ImageFile, found: Any, patch: int, excluded: dict[bytes, str]) -> LeftOut | None:
    """Why an image that can be read cannot be trained on."""
    h, w = (int(found[side]) // SCALE * SCALE for side in ("height", "width"))
    if min(h, w) < patch * SCALE:
        return LeftOut(image.name, "too small", f"{w}x{h} pixels, a patch of {patch} needs {patch * SCALE}")
    if found["grey"] == 1:  # colour files without colour are used, as they always were: old runs hold them
        return LeftOut(image.name, "grey", "its samples are grey, which teaches nothing of colour")
    if name := excluded.get(found["digests"][:DIGEST].tobytes()):
        return LeftOut(image.name, "evaluation image", f"equals {name}")
    return None


def _refuse_doubled(source: Source, places: Sequence[int], listed: dict[bytes, str]) -> None:
    """Refuse a source that names a file twice, or the very files of an earlier one: their share would double unseen.

    That sources overlap is not a slip: one may be a choice from another.
    """
    found, first, counts = np.unique(np.asarray(places, np.uint64), return_index=True, return_counts=True)
    if doubled := [source.images[int(place)].name for place in first[(counts > 1) & (found > 0)][:MAX_LISTED]]:
        raise DataError(f"{source.name} names images more than once: {', '.join(doubled)}; name each once")
    if (same := found.tobytes()) in listed:
        raise DataError(
            f"{source.name} and {listed[same]} are the same images: name them once; to draw some more often, give each "
            "source a weight (hr=FOLDER,weight=2)"
        )
    listed[same] = source.name


def _duplicates(rows: Any, places: Sequence[int], weights: Sequence[float]) -> list[tuple[int, int]]:
    """Images that equal another one in some orientation, each with the first such image, in their order.

    A file that two sources name is a choice, not a duplicate. Where sources have weights, only duplicates within a
    source count: the share of each source is what was asked for.
    """
    keys = [rows["canonical"]] + [rows["source"]] * any(weights)
    order = np.lexsort(keys)  # stable: equal ones stay in their order
    begins = np.ones(len(order), bool)
    begins[1:] = np.any([key[order][1:] != key[order][:-1] for key in keys], axis=0)
    firsts = order[np.maximum.accumulate(np.where(begins, np.arange(len(order)), 0))]
    place = np.asarray(places, np.uint64)
    other_file = (place[order] != place[firsts]) | (place[order] == 0)
    found = ~begins & other_file & (rows["canonical"][order] != 0)
    return sorted(zip(order[found].tolist(), firsts[found].tolist(), strict=True))


def _message(left_out: list[LeftOut], total: int) -> str:
    listed = "\n".join(f"  {one.name}: {one.reason}" for one in left_out[:MAX_LISTED])
    more = f"\n  and {len(left_out) - MAX_LISTED} more" if len(left_out) > MAX_LISTED else ""
    return (
        f"{len(left_out)} of {total} training images cannot be used; remove or replace them, or leave them out with "
        f"--bad_images skip:\n{listed}{more}"
    )
