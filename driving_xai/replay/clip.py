"""A small moving picture of a video, to share where no video plays: GIF or WebP below a size."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from PIL import Image as Pictures

from data_prep.shards.atomic import replacing
from driving_xai.errors import VideoError

SUFFIXES = (".gif", ".webp")


class _Step(NamedTuple):
    """How large a clip is tried."""

    width_px: int
    frame_rate: int


_STEPS = (_Step(640, 10), _Step(480, 10), _Step(400, 8), _Step(320, 8), _Step(320, 5), _Step(240, 5))
"""From the best to the smallest that still shows what is in the picture."""


def write_clip(video: Path, out: Path, *, most_mb: float = 8.0) -> Path:
    """Writes a looping clip of a video, as large as fits.

    Args:
        video: that was rendered.
        out: ends in .gif or .webp; an existing file is replaced at the end.
        most_mb: the most megabytes that it may have.

    Raises:
        VideoError: the name has another end, the video cannot be read, or even the smallest clip is larger.
    """
    if out.suffix not in SUFFIXES:
        raise VideoError(f"{out}: expected a name that ends in {' or '.join(SUFFIXES)}")
    out.parent.mkdir(parents=True, exist_ok=True)
    smallest = 0.0
    with replacing(out) as temporary:
        for step in _STEPS:
            # A step that would be twice too large by the last one's size is not tried.
            if smallest and smallest * _share(step) > 2 * most_mb and step != _STEPS[-1]:
                continue
            megabytes = _write(video, temporary, out.suffix, step)
            if megabytes <= most_mb:
                break
            smallest = megabytes / _share(step)
        else:
            raise VideoError(
                f"{out}: even at {_STEPS[-1].width_px} pixels the clip has {megabytes:.1f} MB, over {most_mb:g}; "
                "render a shorter part, or allow more"
            )
    return out


def _share(step: _Step) -> float:
    """Its size to that of the first step, about."""
    whole = _STEPS[0]
    return (step.width_px / whole.width_px) ** 2 * step.frame_rate / whole.frame_rate


def _write(video: Path, path: Path, suffix: str, step: _Step) -> float:
    """Writes all frames, and returns the megabytes."""
    frames = _frames(video, step)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{video}: holds no picture")
    options = {"quality": 60, "method": 2} if suffix == ".webp" else {"optimize": False}
    with path.open("wb") as file:
        first.save(
            file,
            format=suffix.removeprefix(".").upper(),
            save_all=True,
            append_images=frames,
            duration=round(1000 / step.frame_rate),
            loop=0,
            **options,
        )
    return path.stat().st_size / 1e6


def _frames(video: Path, step: _Step) -> Iterator[Pictures.Image]:
    """Pictures at the step's rate and width; a video that is slower or smaller is left as it is."""
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            period, due = Fraction(1, step.frame_rate), Fraction(0)
            for frame in container.decode(stream):
                at = Fraction(frame.pts or 0) * (stream.time_base or 1)
                if at < due:
                    continue
                due += period * max(1, (at - due) // period + 1)
                picture: np.ndarray = frame.to_ndarray(format="rgb24")
                height, width = picture.shape[:2]
                if width > step.width_px:
                    size = (step.width_px, max(1, round(height * step.width_px / width)))
                    picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
                yield Pictures.fromarray(picture)
    except (av.FFmpegError, IndexError) as error:
        raise VideoError(f"{video}: cannot be read ({error})") from error
