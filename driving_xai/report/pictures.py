"""Single pictures of a video as small JPEGs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import av
import cv2

from driving_xai.errors import VideoError

_QUALITY = 78


def stills(path: Path, numbers: Iterable[int], *, width: int) -> dict[int, bytes]:
    """The pictures of these numbers, counted from 0, as JPEGs `width` pixels wide.

    Numbers behind the end are left out.

    Raises:
        VideoError: the video cannot be decoded.
    """
    wanted, found = set(numbers), {}
    if not wanted:
        return {}
    try:
        with av.open(str(path)) as container:
            container.streams.video[0].thread_type = "AUTO"
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    found[number] = _jpeg(frame, width)
                if len(found) == len(wanted):
                    break
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"{path}: cannot be decoded ({error}); replay again") from error
    return found


def _jpeg(frame: av.VideoFrame, width: int) -> bytes:
    height = round(frame.height * width / frame.width)
    picture = cv2.cvtColor(frame.to_ndarray(format="rgb24"), cv2.COLOR_RGB2BGR)
    small = cv2.resize(picture, (width, height), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])[1].tobytes()
