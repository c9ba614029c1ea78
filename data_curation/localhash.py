"""Local hashes: what an image is recognised by when it was cropped, bordered, turned or mirrored, without any network.

SIFT keypoints (D. Lowe, IJCV 2004), each descriptor shortened to 128 bits by the signs of random projections (M.
Charikar, "Similarity estimation techniques from rounding algorithms", 2002). Half of the projections are even under a
mirroring of the patch and half are odd, so the hash of the mirrored image is the hash with half of its bits turned
over: one detection serves all eight orientations, the quarter turns being SIFT's own.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 384  # pixels of the longer side that keypoints are sought at: JPEG's blocks and fine noise are gone there
KEYPOINTS = 256  # the strongest of an image
CONTRAST = 0.02  # SIFT's threshold; half its usual value, for skies and portraits
THUMBNAIL = 16  # pixels of the side of the thumbnail kept beside the hashes
WORDS = 2  # of 64 bits a hash: the even projections, the odd ones
_SEED = 4

# Mean of the root of a normalised descriptor: rows and columns outer or inner, then the angle from the keypoint's own,
# 0, 45, ..., 180 degrees. Measured on photographs; a bit that thresholds here is as often set as not.
_MEAN = np.array(
    [
        [[0.072, 0.054, 0.045, 0.045, 0.057], [0.125, 0.080, 0.052, 0.048, 0.055]],
        [[0.089, 0.060, 0.050, 0.056, 0.072], [0.163, 0.097, 0.058, 0.060, 0.072]],
    ]
)


@dataclass(frozen=True)
class LocalHashes:
    """An image's keypoints.

    Attributes:
        codes: uint64 `n 2`; of the mirrored image: `mirrored(codes)`.
        places: float16 `n 4`: x and y in units of the longer side, log2 of the size in those units, angle in degrees.
        thumbnail: uint8 `16 16 3`, the whole image.
    """

    codes: NDArray[np.uint64]
    places: NDArray[np.float16]
    thumbnail: NDArray[np.uint8]


def local_hashes(rgb: NDArray[np.uint8], shrink: int = 1) -> LocalHashes:
    """The local hashes of an image.

    Args:
        rgb: uint8 `h w 3`, of any size.
        shrink: by how much to shrink it first: 4 for an HR image that is to be found among LR ones.
    """
    luma = shrunk_luma(rgb, shrink, SIDE)
    found, descriptors = cv2.SIFT_create(nfeatures=KEYPOINTS, contrastThreshold=CONTRAST).detectAndCompute(luma, None)
    thumbnail = cv2.resize(rgb, (THUMBNAIL, THUMBNAIL), interpolation=cv2.INTER_AREA)
    if descriptors is None:
        return LocalHashes(np.empty((0, WORDS), np.uint64), np.empty((0, 4), np.float16), thumbnail)
    unit = max(luma.shape)
    places = [(k.pt[0] / unit, k.pt[1] / unit, np.log2(k.size / unit), k.angle) for k in found[:KEYPOINTS]]
    return LocalHashes(_codes(descriptors[:KEYPOINTS]), np.array(places, np.float16), thumbnail)


def shrunk_luma(rgb: NDArray[np.uint8], shrink: float, side: int) -> NDArray[np.uint8]:
    """Luma `h w`, shrunk by a factor, and further where its longer side has more than `side` pixels."""
    luma = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    scale = min(1 / shrink, side / max(luma.shape))
    h, w = (max(1, round(pixels * scale)) for pixels in luma.shape)
    return luma if scale >= 1 else cv2.resize(luma, (w, h), interpolation=cv2.INTER_AREA)


def mirrored(codes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The codes `n 2` of the same keypoints in the mirrored image: the odd projections change their sign."""
    return codes ^ np.array([0, 2**64 - 1], np.uint64)


def _codes(descriptors: NDArray[np.float32]) -> NDArray[np.uint64]:
    """SIFT descriptors `n 128` -> uint64 `n 2`."""
    roots = np.sqrt(descriptors / np.maximum(descriptors.sum(1, keepdims=True), 1e-6)).astype(np.float64)
    bits = (roots - _MEAN_DESCRIPTOR) @ _PROJECTIONS > 0  # n 128
    return np.packbits(bits, axis=1).view(">u8").astype(np.uint64)


def _mirror() -> NDArray[np.intp]:
    """Which entry of a descriptor an entry becomes when the patch is mirrored along the keypoint's own axis.

    Entries lie by row, column, angle; the mirroring reverses the rows and the sense of the angles.
    """
    entries = np.arange(128).reshape(4, 4, 8)
    return entries[::-1][:, :, (-np.arange(8)) % 8].ravel()


def _projections() -> NDArray[np.float64]:
    """`128 128`: 64 columns even under the mirroring, 64 odd."""
    random = np.random.RandomState(_SEED).standard_normal((128, 128))  # its stream is frozen, unlike default_rng's
    reflected = random[_mirror()]
    return np.concatenate([(random + reflected)[:, :64], (random - reflected)[:, 64:]], axis=1)


def _mean_descriptor() -> NDArray[np.float64]:
    cells, angles = [0, 1, 1, 0], [0, 1, 2, 3, 4, 3, 2, 1]
    return _MEAN[np.ix_(cells, cells, angles)].ravel()


_PROJECTIONS = _projections()
MIRROR = _mirror()
_MEAN_DESCRIPTOR = _mean_descriptor()
