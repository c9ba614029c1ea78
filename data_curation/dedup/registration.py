"""Registration: the maps that may take one image to another, from their keypoints or from their whole frames.

Every pair of matching keypoints tells a similarity transform by itself, from positions, sizes and angles (D. Lowe, IJCV
2004, section 7). The transform that most other pairs agree with is found by trying each of them, without chance, at a
rate of false matches where RANSAC fails; its inliers give an affine map. Flips and negatives are tried by permuting
descriptors. Frames in their eight orientations find copies of images without keypoints. Maps are refined by maximising
the correlation (G. Evangelidis and E. Psarakis, "Parametric Image Alignment Using Enhanced Correlation Coefficient
Maximization", PAMI 2008). Whether a map is right is decided in agreement.py.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.embed.keypoints import POOL_SIDE, VARIANTS, Keypoints, Variant, find_keypoints
from image_data.geometry import orient

Map = NDArray[np.float64]  # `2 3`: (x, y, 1) of a pixel -> (x, y) in the other image
Square = NDArray[np.float64]  # `3 3`
Image = NDArray[Any]

COUNT = 1000  # keypoints of an image to register
MIN_INLIERS = 4  # keypoints that agree on a map; what few of them say is checked on the pixels
ENOUGH = 40  # keypoints that cannot agree by accident: no other variant is tried
MAX_STRETCH, MAX_SCALE = 1.7, 8.0  # of a map: between its axes, and its size or the inverse

_RATIO = 0.9  # a match's distance to that of the second nearest
_TURN, _OCTAVE = 26.0, 0.6  # degrees and octaves by which agreeing keypoints may differ
_TOLERANCES = (0.02, 0.02, 0.008, 0.008, 0.008)  # of the longer side, for an affine map fitted again and again
_COARSE = 0.04  # the same for the similarity of a single pair
_FRAME = 0.6  # correlation of whole frames, reduced to 32x32, from which on an orientation is worth a look
_ECC = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 30, 1e-4)
_ECC_FILTER = 5  # pixels of its own blur


@dataclass(frozen=True)
class View:
    """An image prepared for registration: uint8 `h w 3` of POOL_SIDE pixels at most, and its keypoints."""

    rgb: NDArray[np.uint8]
    keypoints: Keypoints


@dataclass(frozen=True)
class Hypothesis:
    """A map from the first image's pixels to the second's.

    Attributes:
        inliers: keypoints that agree with it; 0 for a map of whole frames.
        negative: whether light and dark change places.
    """

    map: Map
    inliers: int
    negative: bool


def view(rgb: NDArray[np.uint8], side: int = POOL_SIDE) -> View:
    """Prepare an image, shrunk to `side` pixels of the longer side."""
    scale = min(1.0, side / max(rgb.shape))
    h, w = (max(1, round(pixels * scale)) for pixels in rgb.shape[:2])
    rgb = np.ascontiguousarray(resized(rgb, h, w))
    return View(rgb, find_keypoints(rgb, side, COUNT))


def by_keypoints(ours: View, theirs: View) -> list[Hypothesis]:
    """The maps that keypoints agree on, at most one a variant, the most inliers first."""
    results: list[Hypothesis] = []
    for variant in VARIANTS:
        one, other = _matches(ours.keypoints.descriptors, theirs.keypoints.descriptors[:, variant.permutation])
        places = ours.keypoints.places[one], theirs.keypoints.places[other]
        fitted = fit(*places, variant, max(theirs.rgb.shape))
        if fitted and plausible(fitted[0]):
            results.append(Hypothesis(fitted[0], fitted[1], variant.negative))
            if fitted[1] >= ENOUGH:
                break
    return sorted(results, key=lambda one: -one.inliers)


def by_frame(ours: View, theirs: View) -> Iterator[Hypothesis]:
    """Maps of the whole frame in the orientations that resemble the other image, or its negative."""
    small, target = _small(ours.rgb), _small(theirs.rgb)
    for orientation in range(8):
        results = frame_map(ours.rgb.shape[:2], theirs.rgb.shape[:2], orientation)
        correlation = np.corrcoef(orient(small, orientation).ravel(), target.ravel())[0, 1]
        if plausible(results) and abs(correlation) >= _FRAME:
            yield Hypothesis(results, 0, bool(correlation < 0))


def fit(ours: NDArray[np.float64], theirs: NDArray[np.float64], variant: Variant, side: int) -> tuple[Map, int] | None:
    """The affine map that most matches agree on.

    Args:
        ours, theirs: places `n 4` of matching keypoints; see Keypoints.
        side: the longer side of the other image, in the places' unit.

    Returns:
        The map and its inliers, those at one place counted once; None if fewer than MIN_INLIERS agree.
    """
    agreeing, alike = consensus(ours, theirs, variant, _COARSE * side)
    points = np.column_stack([ours[:, :2], np.ones(len(ours))])
    for tolerance in _TOLERANCES:
        if agreeing.sum() < MIN_INLIERS:
            return None
        solution, *_ = np.linalg.lstsq(points[agreeing], theirs[agreeing, :2], rcond=None)
        agreeing = alike & (np.linalg.norm(points @ solution - theirs[:, :2], axis=1) < tolerance * side)
    inliers = len(np.unique(np.rint(theirs[agreeing, :2] / (0.01 * side)), axis=0))
    return (solution.T, inliers) if inliers >= MIN_INLIERS else None


def consensus(
    ours: NDArray[np.float64], theirs: NDArray[np.float64], variant: Variant, tolerance: float
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """The matches that agree with the one that most agree with.

    Returns:
        Two masks `n`: in place, size and angle; and in size and angle alone.
    """
    if not len(ours):
        return np.zeros(0, bool), np.zeros(0, bool)
    z, w = ours[:, 0] + 1j * ours[:, 1], theirs[:, 0] + 1j * theirs[:, 1]
    angle = ours[:, 3]
    if variant.mirrored:
        z, angle = -z.conj(), 180 - angle
    turn = np.deg2rad(theirs[:, 3] - angle + 180 * variant.negative)
    linear = theirs[:, 2] / ours[:, 2] * np.exp(1j * turn)
    shift = w - linear * z  # a row of the tables below is one match's similarity transform, applied to all matches
    ratio = linear[:, None] / linear
    alike = (abs(np.log2(abs(ratio))) < _OCTAVE) & (abs(np.angle(ratio)) < np.deg2rad(_TURN))
    agreeing = alike & (abs(linear[:, None] * z + shift[:, None] - w) < tolerance)
    best = int(agreeing.sum(1).argmax())
    return agreeing[best], alike[best]


def refined(ours: Image, theirs: Image, results: Map, negative: bool) -> Map:
    """The map after ECC, from `h w` to `h w` luma; the map itself where ECC does not converge."""
    signed = -ours if negative else ours
    try:  # ECC's maps lead from the template to the image
        back = cv2.invertAffineTransform(results).astype(np.float32)
        _, back = cv2.findTransformECC(theirs, signed, back, cv2.MOTION_AFFINE, _ECC, None, _ECC_FILTER)
        result = np.asarray(cv2.invertAffineTransform(back), np.float64)
    except cv2.error:  # it raises where the images do not correlate
        return results
    return result if plausible(result) else results


def plausible(results: Map) -> bool:
    """Whether a map neither stretches nor scales too much."""
    if not np.isfinite(results).all():
        return False
    axes = np.linalg.svd(results[:, :2], compute_uv=False)
    return bool(axes[1] > 1 / MAX_SCALE and axes[0] < min(MAX_SCALE, MAX_STRETCH * axes[1]))


def describe(results: Map, negative: bool) -> str:
    """A map in words: mirrored left to right, then turned clockwise in degrees, size, and shift in pixels."""
    mirror = np.linalg.det(results[:, :2]) < 0
    across = -results[:, 0] if mirror else results[:, 0]  # where the image's rows point to
    turn = round(np.degrees(np.arctan2(across[1], across[0]))) % 360
    text = ["negative"] * negative + ["mirrored"] * bool(mirror) + [f"turned by {turn}"] * bool(turn)
    right, down = results[:, 2].round() + 0.0  # no minus zero
    return ", ".join([*text, f"x{scale_of(results):.2f}", f"shift {right:+.0f} {down:+.0f}"])


def scale_of(results: Map) -> float:
    """By how much a map enlarges."""
    return float(np.sqrt(abs(np.linalg.det(results[:, :2]))))


def square(results: Map) -> Square:
    """A map as a matrix that can be multiplied."""
    return np.vstack([results, [0.0, 0.0, 1.0]])


def scaled(image: Image, scale: float) -> tuple[Image, Square]:
    """An image at another scale, and the map back from it."""
    h, w = image.shape[:2]
    height, width = max(2, round(h * scale)), max(2, round(w * scale))
    back = np.array([[w / width, 0, w / width / 2 - 0.5], [0, h / height, h / height / 2 - 0.5], [0, 0, 1]])
    return resized(image, height, width), back


def resized(image: Image, height: int, width: int) -> Image:
    """Antialiased where it shrinks, bicubic where it enlarges."""
    smaller = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)


def frame_map(ours: tuple[int, int], theirs: tuple[int, int], orientation: int) -> Map:
    """The map that `image_data.geometry.orient` and a change of size make of pixel centres."""
    (h, w), (height, width) = ours, theirs
    linear = np.eye(3)
    if orientation & 4:
        linear, (h, w) = np.array([[0.0, 1, 0], [1, 0, 0], [0, 0, 1]]), (w, h)
    if orientation & 2:
        linear = np.array([[1.0, 0, 0], [0, -1, h - 1], [0, 0, 1]]) @ linear
    if orientation & 1:
        linear = np.array([[-1.0, 0, w - 1], [0, 1, 0], [0, 0, 1]]) @ linear
    x, y = width / w, height / h
    return (np.array([[x, 0, x / 2 - 0.5], [0, y, y / 2 - 0.5], [0, 0, 1]]) @ linear)[:2]


def _matches(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of descriptors that are nearest to each other and clearly nearer than the second."""
    if min(len(ours), len(theirs)) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    likeness = ours @ theirs.T  # of unit vectors
    best = likeness.argmax(1)
    top = np.partition(likeness, -2, axis=1)[:, -2:]
    distances = np.sqrt(np.maximum(2 - 2 * top, 1e-9))
    mutual = likeness.argmax(0)[best] == np.arange(len(ours))
    kept = np.flatnonzero(mutual & (distances[:, 1] < _RATIO * distances[:, 0]))
    return kept, best[kept]


def _small(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The luma of the whole frame as `32 32`."""
    return cv2.cvtColor(cv2.resize(rgb, (32, 32), interpolation=cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)
