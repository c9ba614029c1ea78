"""Whether two registered images show the same: the share of the common area whose local structure agrees.

Colours and tones are not compared. In windows of a few pixels the detail of both images is correlated, of luma and of
the two directions in colour that correlate best over the whole area (H. Hotelling, "Relations between two sets of
variates", 1936), so that grey, swapped, tinted, toned or inverted copies agree with their original. What is covered, by
a logo say, does not agree, but takes only its own share. Blur, noise and compression leave coarse detail, so three
levels of a pyramid are looked at and the best counts.
"""

from dataclasses import dataclass
from itertools import islice
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from data_curation.dedup.registration import (
    Hypothesis,
    Map,
    View,
    by_frame,
    by_keypoints,
    describe,
    refined,
    scale_of,
    scaled,
    square,
)

Real = NDArray[np.float32]

# Stricter than what half of the evaluation images fit (benchmarks/curation.py): it costs few copies, and a photograph
# that is none has reached 0.17.
MIN_SHARE = 0.25  # of the textured part of the common area that agrees
MIN_AGREEING = 150  # pixels of it: some two windows
MIN_COMMON = 0.5  # common area as a fraction of the smaller image
MIN_LEAK = 0.1  # the same where the other is an evaluation image: a part of it is known as well as the whole

_GRID = 192  # pixels of the longer side of the common area, at most
_LEVELS = 3
_WINDOW = 9  # pixels
_AGREEING = 0.8  # correlation of a window from which on it agrees
_TEXTURE = 1.5  # grey levels by which detail has to vary for a window to count
_DETAIL, _BLUR = 3.0, 0.7  # pixels: what is larger is not detail, what is smaller is noise
_ENOUGH = 0.7  # share from which on nothing better is looked for
_HYPOTHESES = 2


@dataclass(frozen=True)
class Verdict:
    """What was found about two images.

    Attributes:
        duplicate: whether one holds at least a part of the other.
        share: of the textured part of the common area that agrees; 0 if nothing fits.
        agreeing: pixels of it, on the grid of the comparison.
        common: the common area as a fraction of the smaller image.
        inliers: keypoints that agree with the map; 0 where whole frames were registered.
        transformation: how the first image became the second, in words; empty if nothing fits.
    """

    duplicate: bool
    share: float
    agreeing: int
    common: float
    inliers: int
    transformation: str


NOTHING = Verdict(False, 0.0, 0, 0.0, 0, "")


def verify(ours: View, partners: View, min_common: float = MIN_COMMON) -> Verdict:
    """Register two images and judge.

    Args:
        min_common: the least common area of duplicates, MIN_COMMON or MIN_LEAK.

    Returns:
        The verdict on the map that fits best.
    """
    best = NOTHING
    for hypothesis in by_keypoints(ours, partners)[:_HYPOTHESES]:
        best = max(best, judge(ours, partners, hypothesis, min_common), key=_merit)
        if best.duplicate and best.share >= _ENOUGH:
            return best
    if not best.duplicate:
        frames = (judge(ours, partners, hypothesis, min_common) for hypothesis in by_frame(ours, partners))
        best = max([best, *frames], key=_merit)
    return best


def judge(ours: View, partners: View, hypothesis: Hypothesis, min_common: float) -> Verdict:
    """The verdict on one map, as it is or refined."""
    one, other, result = _common_scale(ours.rgb, partners.rgb, hypothesis.map)
    verdict = NOTHING
    for attempt in range(2):
        if attempt:
            result = refined(one.mean(2), other.mean(2), result, hypothesis.negative)
        common = _common_share(one, other, result)
        for agreeing, textured in islice(_levels(one, other, result), _LEVELS):
            share = agreeing / max(textured, 1)
            duplicate = share >= MIN_SHARE and agreeing >= MIN_AGREEING and common >= min_common
            text = describe(hypothesis.map, hypothesis.negative)
            verdict = max(verdict, Verdict(duplicate, share, agreeing, common, hypothesis.inliers, text), key=_merit)
        if verdict.share >= _ENOUGH:
            break
    return verdict


def agreement(one: Real, other: Real, common: NDArray[np.bool_]) -> tuple[int, int]:
    """Pixels of the textured common area whose surroundings agree, and all of it.

    Args:
        one, other: `h w 3` in [0, 255], on one grid.
        common: `h w`, where both lie.
    """
    inner = _eroded(common, _WINDOW // 2)
    if not inner.any():
        return 0, 0
    ours, partners = _detail(one), _detail(other)
    textured = inner & (_window_mean((partners**2).mean(2)) > _TEXTURE**2)
    first, second = _directions(ours[inner], partners[inner])
    pairs = ((ours.mean(2), partners.mean(2)), (ours @ first, partners @ second))
    likeness = np.maximum(*(abs(_window_correlation(a, b)) for a, b in pairs))
    return int((textured & (likeness >= _AGREEING)).sum()), int(textured.sum())


def _merit(verdict: Verdict) -> tuple[bool, float]:
    return verdict.duplicate, verdict.share * (verdict.agreeing >= MIN_AGREEING)


def _common_scale(ours: NDArray[np.uint8], partners: NDArray[np.uint8], result: Map) -> tuple[Real, Real, Map]:
    """Both images at one scale, so that neither is finer than the other, and the map between them."""
    h, w = ours.shape[:2]
    corners = np.array([[0, 0, 1], [w, 0, 1], [0, h, 1], [w, h, 1]]) @ result.T
    extent = np.minimum(corners.max(0), partners.shape[1::-1]) - np.maximum(corners.min(0), 0)
    scale = min(1.0, 1 / scale_of(result), _GRID / max(1.0, float(extent.max())))
    one, back = scaled(ours, min(1.0, scale * scale_of(result)))
    other, back_other = scaled(partners, scale)
    between = (np.linalg.inv(back_other) @ square(result) @ back)[:2]
    return one.astype(np.float32), other.astype(np.float32), between


def _levels(one: Real, other: Real, result: Map) -> Any:
    """The agreement on each level of a pyramid, in pixels of the finest, while there are windows to compare."""
    level = 0
    while min(other.shape[:2]) > _WINDOW:
        laid, common = _warped(cv2.GaussianBlur(one, (0, 0), _BLUR), other.shape[:2], result)
        agreeing, textured = agreement(laid, cv2.GaussianBlur(other, (0, 0), _BLUR), common)
        yield agreeing, textured
        level += 1
        (one, back), (other, back_other) = scaled(one, 0.5), scaled(other, 0.5)
        result = (np.linalg.inv(back_other) @ square(result) @ back)[:2]


def _warped(one: Real, shape: tuple[int, int], result: Map) -> tuple[Real, NDArray[np.bool_]]:
    """An image on the other's grid, and where both lie."""
    size = shape[::-1]
    laid = cv2.warpAffine(one, result, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    inside = cv2.warpAffine(np.ones(one.shape[:2], np.uint8), result, size, flags=cv2.INTER_NEAREST)
    return laid, _eroded(inside > 0, 1)


def _common_share(one: Real, other: Real, result: Map) -> float:
    _, common = _warped(one, other.shape[:2], result)
    ours, partners = scale_of(result) ** 2 * one.shape[0] * one.shape[1], other.shape[0] * other.shape[1]
    return min(1.0, float(common.sum() / min(ours, partners)))


def _directions(ours: Real, partners: Real) -> tuple[Real, Real]:
    """The directions `3`, `3` in the colours `n 3`, `n 3` whose values correlate best."""
    ours, partners = ours - ours.mean(0), partners - partners.mean(0)
    ridge = 0.05 * np.eye(3)  # grey images have one direction only
    whiten = [np.linalg.inv(np.linalg.cholesky(a.T @ a / len(a) + ridge)) for a in (ours, partners)]
    left, _, right = np.linalg.svd(whiten[0] @ (ours.T @ partners / len(ours)) @ whiten[1].T)
    return (whiten[0].T @ left[:, 0]).astype(np.float32), (whiten[1].T @ right[0]).astype(np.float32)


def _window_correlation(one: Real, other: Real) -> Real:
    """Of the windows around every pixel, `h w`, -1 to 1."""
    mean, target = _window_mean(one), _window_mean(other)
    variances = [_window_mean(x * x) - m * m for x, m in ((one, mean), (other, target))]
    product = np.maximum(variances[0], 0) * np.maximum(variances[1], 0)
    return (_window_mean(one * other) - mean * target) / np.sqrt(np.maximum(product, 1e-3))


def _window_mean(image: Real) -> Real:
    return cv2.boxFilter(image, -1, (_WINDOW, _WINDOW), borderType=cv2.BORDER_REFLECT)


def _detail(image: Real) -> Real:
    return image - cv2.GaussianBlur(image, (0, 0), _DETAIL)


def _eroded(mask: NDArray[np.bool_], pixels: int) -> NDArray[np.bool_]:
    """A mask without its edge; beyond the image there is nothing."""
    framed = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    return cv2.erode(framed, np.ones((3, 3)), iterations=pixels)[1:-1, 1:-1] > 0
