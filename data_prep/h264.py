"""H.264 as it is written here: the encoder, planar pictures, and colours declared as they were converted."""

from __future__ import annotations

import av
import cv2
import numpy as np
import pyarrow as pa
from jaxtyping import UInt8

from data_prep.schema import Image

ENCODER = "libx264"

# ITU-T H.273: what OpenCV's conversion produces, so that players undo the same one.
_BT601, _LIMITED_RANGE = 6, 1


def why_missing(encoder: str = ENCODER) -> str | None:
    """Why this PyAV cannot encode, and what to do; None where it can."""
    try:
        av.Codec(encoder, "w")
    except (av.FFmpegError, ValueError):
        return f"this PyAV ({av.__version__}) has no {encoder} encoder; install av from its wheel"
    return None


def reproducible() -> dict[str, str]:
    """Options of the encoder, with one thread, by which equal pictures give equal bytes.

    x264's code for AVX-512 reads memory that it has not written: with it one run in ten to three differs,
    with that for AVX2, which such a processor has too, none did.
    """
    has_avx512 = pa.runtime_info().detected_simd_level == "avx512"
    return {"x264-params": "asm=AVX2"} if has_avx512 else {}


def declare_colours(codec: av.VideoCodecContext) -> None:
    """Says in the stream which colours `to_i420` makes."""
    codec.colorspace = codec.color_primaries = codec.color_trc = _BT601
    codec.color_range = _LIMITED_RANGE


def to_i420(picture: Image) -> UInt8[np.ndarray, "rows columns"]:
    """Luma, then both chromas at half the size, as PyAV takes yuv420p.

    An odd side gets its last row or column once more.

    Example:
        >>> to_i420(np.zeros((3, 6, 3), dtype=np.uint8)).shape
        (6, 6)
    """
    height, width = picture.shape[:2]
    if height % 2 or width % 2:
        picture = cv2.copyMakeBorder(picture, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)
    return np.asarray(cv2.cvtColor(picture, cv2.COLOR_RGB2YUV_I420), dtype=np.uint8)
