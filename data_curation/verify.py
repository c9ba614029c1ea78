"""Whether two images are near-duplicates: one is laid over the other on the LR grid and what remains is measured.

Two kinds of alignment are tried. Keypoints (SIFT) that agree on one affine map find crops, borders, quarter turns and
changes of size, plain and mirrored; the whole frame in its eight orientations finds the rest, images without keypoints
among it. Each is refined by maximising the correlation (G. Evangelidis and E. Psarakis, "Parametric Image Alignment
Using Enhanced Correlation Coefficient Maximization", PAMI 2008), the colours are fitted by a gain and an offset a
channel, and the PSNR of the common area decides.
"""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.localhash import MIRROR, shrunk_luma
from image_data.geometry import orient

Image = NDArray[np.uint8]
Real = NDArray[np.float32]
Square = NDArray[np.float64]  # `3 3`
Map = NDArray[np.float64]  # `2 3`: (x, y, 1) of a pixel of the pool's grid -> (x, y) on the evaluation image's grid

MIN_PSNR = 28.0  # dB on the LR grid: fine textures that were halved in size come out at 30 and more
MIN_DETAIL = 0.7  # correlation of luma's detail over the common area: two plain skies reach 30 dB, but not this
MIN_COMMON = 0.5  # common area as a fraction of the smaller image
MIN_LEAK = 0.1  # the same where the other is an evaluation image: a part of it is known as well as the whole
MIN_PIXELS = 256  # of common area on the LR grid: less is no image
MIN_INLIERS = 8  # keypoints that agree on a map
MAX_GAIN = 2.0  # of a channel, and its inverse: more is another photograph
MAX_STRETCH = 1.35  # between the axes of a map
MAX_SCALE = 6.0  # of a map, and its inverse

_SIDE = 512  # pixels of the longer side that keypoints are sought at
_KEYPOINTS = 600
_RATIO = 0.85  # a match's distance to that of the second nearest
_REPROJECTION = 2.0  # pixels of `_SIDE`
_BLUR = 0.7  # grid pixels: what interpolation and JPEG differ by lies above
_DETAIL = 3.0  # grid pixels: the blur whose difference from the image is its detail
_FRAME_CORRELATION = 0.6  # of the whole frames, reduced to 32x32, from which on an orientation is worth refining
_ECC = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 40, 1e-5)
_ECC_FILTER = 3  # pixels of its own blur
_MARGIN = 3  # grid pixels of the template that ECC does not see
_DRIFT = 0.08  # of the longer side: how far refining may move a corner of a whole frame
_EDGE = 2  # grid pixels left out along the border of the common area


@dataclass(frozen=True)
class Verdict:
    """What was found about two images.

    Attributes:
        duplicate: whether they are near-duplicates.
        psnr: of the common area in dB, RGB, on the LR grid, after the colours were fitted; 0 if nothing fits.
        detail: correlation of luma's detail there, -1 to 1.
        common: the common area as a fraction of the smaller image.
        inliers: keypoints that agree with the map; 0 where the frames were laid over each other.
        transformation: how the pool's image became the evaluation image, in words; empty if nothing fits.
    """

    duplicate: bool
    psnr: float
    detail: float
    common: float
    inliers: int
    transformation: str


NOTHING = Verdict(False, 0.0, 0.0, 0.0, 0, "")


@dataclass(frozen=True)
class View:
    """An image prepared for comparisons: its LR version and its keypoints.

    Attributes:
        grid: float32 `h w 3` in [0, 255], the image on the LR grid.
        points: float32 `n 2`, x and y on that grid.
        descriptors: float32 `n 128`, roots of normalised ones.
    """

    grid: Real
    points: Real
    descriptors: Real


def view(rgb: Image, factor: float, shrink: int = 1) -> View:
    """Prepare an image.

    Args:
        rgb: uint8 `h w 3`.
        factor: pixels of the image a grid pixel: 4 for an HR image, 1 for an LR one.
        shrink: by how much to shrink the image before keypoints are sought: 4 for an HR image among LR ones.
    """
    h, w = rgb.shape[:2]
    grid = _resized(rgb, max(1, round(h / factor)), max(1, round(w / factor)))
    luma = shrunk_luma(rgb, shrink, _SIDE)
    found, descriptors = cv2.SIFT_create(nfeatures=_KEYPOINTS, contrastThreshold=0.02).detectAndCompute(luma, None)
    if descriptors is None:
        descriptors, points = np.empty((0, 128), np.float32), np.empty((0, 2), np.float32)
    else:
        ratio = np.array([grid.shape[1] / luma.shape[1], grid.shape[0] / luma.shape[0]])
        points = ((np.array([k.pt for k in found]) + 0.5) * ratio - 0.5).astype(np.float32)
        descriptors = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6))
    return View(grid.astype(np.float32), points, descriptors)


def verify(pool: View, evaluation: View, min_common: float = MIN_COMMON) -> Verdict:
    """Lay an image of the pool over an evaluation image (or over another of the pool) and judge.

    Args:
        min_common: the least common area of duplicates, MIN_COMMON or MIN_LEAK.

    Returns:
        The verdict of the alignment that fits best.
    """
    verdicts = [_judge(pool, evaluation, *found, min_common) for found in _by_keypoints(pool, evaluation)]
    best = max(verdicts, key=_merit, default=NOTHING)
    if best.duplicate:
        return best
    verdicts += [_judge(pool, evaluation, found, 0, min_common) for found in _by_frame(pool, evaluation)]
    return max(verdicts, key=_merit, default=NOTHING)


def describe(found: Map) -> str:
    """A map in words: mirrored left to right, then turned clockwise in degrees, size, and shift in LR pixels."""
    mirror = np.linalg.det(found[:, :2]) < 0
    across = -found[:, 0] if mirror else found[:, 0]  # where the image's rows point to
    turn = np.degrees(np.arctan2(across[1], across[0]))
    scale = np.sqrt(abs(np.linalg.det(found[:, :2])))
    words = ["mirrored"] if mirror else []
    words += [f"turned by {round(turn) % 360}"] if round(turn) % 360 else []
    right, down = found[:, 2].round(1) + 0.0  # no minus zero
    return ", ".join([*words, f"x{scale:.2f}", f"shift {right:+.1f} {down:+.1f}"])


def _merit(verdict: Verdict) -> tuple[bool, float]:
    return verdict.duplicate, verdict.psnr


def _by_keypoints(pool: View, evaluation: View) -> list[tuple[Map, int]]:
    """The plain and the mirrored map that keypoints agree on, each with its number of them."""
    found = []
    for descriptors in (evaluation.descriptors, evaluation.descriptors[:, MIRROR]):
        ours, theirs = _matches(pool.descriptors, descriptors)
        if len(ours) < MIN_INLIERS:
            continue
        unit = max(evaluation.grid.shape) / _SIDE  # of RANSAC's tolerance
        matrix, inliers = cv2.estimateAffine2D(
            pool.points[ours],
            evaluation.points[theirs],
            ransacReprojThreshold=_REPROJECTION * unit,
            maxIters=2000,
            confidence=0.999,
        )
        if matrix is not None and inliers.sum() >= MIN_INLIERS and _plausible(matrix):
            found.append((matrix, int(inliers.sum())))
    return found


def _matches(ours: Real, theirs: Real) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Indices of descriptors that are nearest to each other and clearly nearer than the second."""
    if len(ours) < 2 or len(theirs) < 2:
        return np.empty(0, np.intp), np.empty(0, np.intp)
    likeness = ours @ theirs.T  # of unit vectors
    best = likeness.argmax(1)
    top = np.partition(likeness, -2, axis=1)[:, -2:]
    distances = np.sqrt(np.maximum(2 - 2 * top, 1e-9))
    mutual = likeness.argmax(0)[best] == np.arange(len(ours))
    kept = np.flatnonzero(mutual & (distances[:, 1] < _RATIO * distances[:, 0]))
    return kept, best[kept]


def _plausible(matrix: Map) -> bool:
    stretch = np.linalg.svd(matrix[:, :2], compute_uv=False)
    return bool(stretch[1] > 1 / MAX_SCALE and stretch[0] < MAX_SCALE and stretch[0] < MAX_STRETCH * stretch[1])


def _by_frame(pool: View, evaluation: View) -> list[Map]:
    """Maps of the whole frame in the orientations that resemble the evaluation image."""
    ours, theirs = _small(pool.grid), _small(evaluation.grid)
    found = []
    for orientation in range(8):
        h, w = (pool.grid.shape[1::-1]) if orientation & 4 else pool.grid.shape[:2]
        stretch = (evaluation.grid.shape[1] / w) / (evaluation.grid.shape[0] / h)
        if not 1 / MAX_STRETCH < stretch < MAX_STRETCH:
            continue
        if _correlation(orient(ours, orientation), theirs) >= _FRAME_CORRELATION:
            found.append(_frame_map(pool.grid.shape[:2], evaluation.grid.shape[:2], orientation))
    return found


def _frame_map(ours: tuple[int, int], theirs: tuple[int, int], orientation: int) -> Map:
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


def _judge(pool: View, evaluation: View, found: Map, inliers: int, min_common: float) -> Verdict:
    """Measure what a map leaves, and if that is too much, what the refined map leaves."""
    grid, back = _to_scale(pool.grid, found)
    found = found @ back
    theirs = cv2.GaussianBlur(evaluation.grid, (0, 0), _BLUR)
    ours = cv2.GaussianBlur(grid, (0, 0), _BLUR)
    verdict = _measured(ours, theirs, found, back, inliers, min_common)
    if verdict.duplicate:
        return verdict
    refined = _refined(ours, theirs, found)
    if not inliers and not _close(refined, found, ours.shape[:2]):
        return verdict  # without keypoints a plain image slides anywhere
    return max(verdict, _measured(ours, theirs, refined, back, inliers, min_common), key=_merit)


def _measured(ours: Real, theirs: Real, found: Map, back: Square, inliers: int, min_common: float) -> Verdict:
    """The verdict on images of one scale and a map from the first to the second; `back` undoes a scaling."""
    if not _plausible(found):
        return NOTHING
    laid, common = _laid_over(ours, theirs.shape[:2], found)
    if common.sum() < MIN_PIXELS:
        return NOTHING
    psnr = _fitted_psnr(laid[common], theirs[common])
    detail = _correlation(_detail(laid)[common], _detail(theirs)[common])
    smaller = min(theirs.shape[0] * theirs.shape[1], abs(np.linalg.det(found[:, :2])) * ours.shape[0] * ours.shape[1])
    share = min(1.0, float(_with_edge(common) / smaller))
    duplicate = psnr >= MIN_PSNR and detail >= MIN_DETAIL and share >= min_common
    return Verdict(bool(duplicate), psnr, detail, share, inliers, describe(found @ np.linalg.inv(back)))


def _to_scale(grid: Real, found: Map) -> tuple[Real, Square]:
    """The pool's grid at the map's scale, so that neither image is finer than the other, and the map back from it."""
    scale = float(np.sqrt(abs(np.linalg.det(found[:, :2]))))
    h, w = grid.shape[:2]
    height, width = max(2, round(h * scale)), max(2, round(w * scale))
    back = np.array([[w / width, 0, w / width / 2 - 0.5], [0, h / height, h / height / 2 - 0.5], [0, 0, 1]])
    return _resized(grid, height, width), back


def _refined(ours: Real, theirs: Real, found: Map) -> Map:
    """The map after ECC; the map itself where ECC does not converge.

    A frame around one of the images would pull the map, so the outermost pixels of the template are left out.
    """
    _, common = _laid_over(ours, theirs.shape[:2], found)
    if common.sum() < MIN_PIXELS:
        return found
    inner = np.ascontiguousarray(theirs.mean(2)[_MARGIN:-_MARGIN, _MARGIN:-_MARGIN])
    shift = np.array([[1.0, 0, _MARGIN], [0, 1, _MARGIN], [0, 0, 1]])
    back = (_square(cv2.invertAffineTransform(found)) @ shift)[:2]  # ECC's maps lead from the template to the image
    try:
        _, back = cv2.findTransformECC(
            inner, ours.mean(2), back.astype(np.float32), cv2.MOTION_AFFINE, _ECC, None, _ECC_FILTER
        )
    except cv2.error:  # it raises where the images do not correlate
        return found
    return np.asarray(cv2.invertAffineTransform((_square(back) @ np.linalg.inv(shift))[:2]), np.float64)


def _close(one: Map, other: Map, shape: tuple[int, int]) -> bool:
    """Whether two maps take the corners of an image to nearly the same places."""
    h, w = shape
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]])
    return bool(np.abs(corners @ (one - other).T).max() <= _DRIFT * max(h, w))


def _square(found: Map) -> Square:
    return np.vstack([found, [0.0, 0.0, 1.0]])


def _laid_over(ours: Real, shape: tuple[int, int], found: Map) -> tuple[Real, NDArray[np.bool_]]:
    """`ours` on the other's grid, and where both lie."""
    h, w = shape
    laid = cv2.warpAffine(ours, found, (w, h), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.ones(ours.shape[:2], np.uint8), found, (w, h), flags=cv2.INTER_NEAREST)
    framed = cv2.copyMakeBorder(inside, 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return laid, cv2.erode(framed, np.ones((3, 3)), iterations=_EDGE)[1:-1, 1:-1] > 0


def _with_edge(common: NDArray[np.bool_]) -> int:
    """Pixels of the common area with the edge that was left out."""
    return int(cv2.dilate(common.astype(np.uint8), np.ones((3, 3)), iterations=_EDGE).sum())


def _fitted_psnr(ours: Real, theirs: Real) -> float:
    """PSNR in dB of `n 3` after a gain and an offset a channel; 0 if a gain is out of bounds."""
    mean, target = ours.mean(0), theirs.mean(0)
    variance = ((ours - mean) ** 2).mean(0)
    gain = ((ours - mean) * (theirs - target)).mean(0) / np.maximum(variance, 1e-6)
    flat = variance < 1
    gain = np.where(flat, 1.0, gain)
    if (gain < 1 / MAX_GAIN).any() or (gain > MAX_GAIN).any():
        return 0.0
    error = float((((ours - mean) * gain + target - theirs) ** 2).mean())
    return float(10 * np.log10(255**2 / max(error, 1e-4)))


def _correlation(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Of all samples, -1 to 1, each channel about its own mean."""
    axes = (0, 1) if ours.ndim == 3 else None
    a, b = (one.astype(np.float64) - one.mean(axes, dtype=np.float64) for one in (ours, theirs))
    return float((a * b).sum() / max(float(np.sqrt((a * a).sum() * (b * b).sum())), 1e-6))


def _detail(grid: Real) -> Real:
    """Luma without what is larger than a few pixels, `h w 3` -> `h w`."""
    luma = grid.mean(2)
    return luma - cv2.GaussianBlur(luma, (0, 0), _DETAIL)


def _small(grid: Real) -> NDArray[np.uint8]:
    """The whole frame as `32 32 3`."""
    small = cv2.resize(grid, (32, 32), interpolation=cv2.INTER_AREA)
    return np.clip(np.rint(small), 0, 255).astype(np.uint8)


def _resized(image: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    smaller = height * width < image.shape[0] * image.shape[1]
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if smaller else cv2.INTER_CUBIC)
