"""Which pixels cause each label of an image: one PNG, bit k of a pixel for label k."""

from __future__ import annotations

import cv2
import numpy as np
from jaxtyping import Bool, UInt8

from data_prep.errors import DataError
from data_prep.geometry import encode_png

MOST_LABELS = 8


def encode_causes(bits: UInt8[np.ndarray, "H W"]) -> bytes:
    """Bits to the bytes of a PNG with one grey channel."""
    return encode_png(bits)


def decode_causes(data: bytes, *, labels: int, name: str) -> Bool[np.ndarray, "K H W"]:
    """The mask of each label.

    Args:
        data: a PNG's bytes.
        labels: K, how many bits count.
        name: what to call the image in an error.

    Raises:
        DataError: the bytes are no such PNG.

    Example:
        >>> bits = np.array([[0, 1], [2, 3]], np.uint8)
        >>> decode_causes(encode_causes(bits), labels=2, name="example").astype(int).tolist()
        [[[0, 1], [0, 1]], [[0, 0], [1, 1]]]
    """
    try:
        bits = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:
        bits = None
    if bits is None or bits.ndim != 2 or bits.dtype != np.uint8:
        raise DataError(
            f"{name}: its causes are no PNG of one channel; run `driving-xai verify` on its folder"
        )
    return np.stack([np.bitwise_and(bits, np.uint8(1 << label)) != 0 for label in range(labels)])
