"""Single pictures as small JPEGs: frames of a video, and maps that were saved."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import cv2
import numpy as np
from jaxtyping import Float32

from data_prep.geometry import encode_jpeg
from driving_xai.errors import VideoError
from driving_xai.viz.heat import HeatScale, blend_heat

_QUALITY = 78
_GROUND = 17
_ROUNDING_S = 1e-3
"""More than saved times are off by, and less than a picture is shown for."""


def stills(path: Path, numbers: Iterable[int], *, width: int, first_s: float = 0.0) -> dict[int, bytes]:
    """The drive's pictures of these numbers, counted from 0, as JPEGs `width` pixels wide.

    Numbers behind the end are left out.

    Args:
        path: of the video.
        numbers: of pictures, the title card's not counted.
        width: in pixels.
        first_s: when the drive's first picture is shown; what comes before it is a card.

    Raises:
        VideoError: the video cannot be decoded.
    """
    wanted, found = set(numbers), {}
    if not wanted:
        return {}
    try:
        with av.open(str(path.absolute())) as container:
            container.streams.video[0].thread_type = "AUTO"
            of_drive = (frame for frame in container.decode(video=0) if frame.time > first_s - _ROUNDING_S)
            for number, frame in enumerate(of_drive):
                if number in wanted:
                    found[number] = _jpeg(frame, width)
                if len(found) == len(wanted):
                    break
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"{path}: cannot be decoded ({error}); replay again") from error
    return found


def heat(saliency: Float32[np.ndarray, "h w"], *, width: int) -> bytes:
    """A map in the replay's colours on a dark ground, as a JPEG `width` pixels wide.

    It has a colour scale of its own, so its colours do not compare with another map's.
    """
    height = round(saliency.shape[0] * width / saliency.shape[1])
    picture = np.full((height, width, 3), _GROUND, dtype=np.uint8)
    blend_heat(picture, saliency, HeatScale.first(saliency))
    return encode_jpeg(picture, quality=_QUALITY)


def _jpeg(frame: av.VideoFrame, width: int) -> bytes:
    height = round(frame.height * width / frame.width)
    picture = frame.to_ndarray(format="rgb24")
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return encode_jpeg(small, quality=_QUALITY)
