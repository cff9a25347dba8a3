"""A small moving picture of a video, to share where no video plays: GIF or WebP below a size."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import av
import cv2
import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pictures

from data_prep.lock import exclusive_file
from data_prep.schema import Image
from data_prep.shards.atomic import remove_leftovers, replacing
from driving_xai.errors import OptionError, VideoError

SUFFIXES = (".gif", ".webp")
_TICK_MS: Mapping[str, int] = {".gif": 10, ".webp": 1}
"""The unit in which each format says how long a picture is shown."""


class _Step(NamedTuple):
    """How large a clip is tried."""

    width_px: int
    frame_rate: int


_STEPS = (_Step(640, 10), _Step(480, 10), _Step(400, 8), _Step(320, 8), _Step(320, 5), _Step(240, 5))
"""From the best to the smallest that still shows what is in the picture."""


class _Shown(NamedTuple):
    """Which pictures of a video a clip shows, and for how long."""

    at: Sequence[int]
    """Their numbers in the order in which they are shown."""
    durations_ms: Sequence[int]


def require_clip(out: Path, most_mb: float) -> None:
    """Checks what can be checked before a video is rendered.

    Args:
        out: see `write_clip`.
        most_mb: see `write_clip`.

    Raises:
        OptionError: the name has another end, or no clip is that small.
    """
    if out.suffix not in SUFFIXES:
        raise OptionError(f"got the clip {out}, expected a name that ends in {' or '.join(SUFFIXES)}")
    if not (math.isfinite(most_mb) and most_mb > 0):
        raise OptionError(f"got {most_mb:g} as the clip's megabytes, expected a number over 0")


def write_clip(
    video: Path,
    out: Path,
    *,
    most_mb: float = 8.0,
    on_progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Writes a looping clip of a video at its own speed, as large as fits.

    Args:
        video: that was rendered.
        out: ends in .gif or .webp; an existing file is replaced at the end.
        most_mb: the most megabytes that it may have.
        on_progress: called after each picture with those done and in all; a smaller clip starts anew.

    Raises:
        OptionError: the name has another end, or no clip is that small.
        DataError: another run is writing `out`.
        VideoError: the video cannot be read, or even the smallest clip is larger.
    """
    require_clip(out, most_mb)
    edges = _edges(video)
    with exclusive_file(out):
        remove_leftovers(out.parent, of=out.name)
        with replacing(out) as temporary:
            _write_fitting(video, temporary, out, edges, most_mb, on_progress or (lambda done, total: None))
    return out


def _write_fitting(
    video: Path,
    path: Path,
    out: Path,
    edges: Sequence[Fraction],
    most_mb: float,
    on_progress: Callable[[int, int], None],
) -> None:
    """Tries one step after the other until the file fits."""
    smallest = 0.0
    for step in _STEPS:
        # A step that would be twice too large by the last one's size is not tried.
        if smallest and smallest * _share(step) > 2 * most_mb and step != _STEPS[-1]:
            continue
        shown = _shown(edges, step.frame_rate, _TICK_MS[out.suffix])
        megabytes = _write(
            _reported(_pictures(video, shown.at, step.width_px), shown, on_progress), shown, path, out
        )
        if megabytes <= most_mb:
            return
        smallest = megabytes / _share(step)
    raise VideoError(
        f"{out}: even at {_STEPS[-1].width_px} pixels the clip has {megabytes:.1f} MB, over {most_mb:g}; "
        "render a shorter part, or allow more"
    )


def _share(step: _Step) -> float:
    """Its size to that of the first step, about."""
    whole = _STEPS[0]
    return (step.width_px / whole.width_px) ** 2 * step.frame_rate / whole.frame_rate


def _shown(edges: Sequence[Fraction], frame_rate: int, tick_ms: int) -> _Shown:
    """The pictures of a clip of at most this rate; each lasts until the next one, as in the video.

    Ends are rounded and not durations, so that the clip lasts as long as the video, whatever its rate.

    Example:
        >>> _shown([Fraction(n, 24) for n in range(7)], 10, 10)
        _Shown(at=[0, 3, 5], durations_ms=[120, 90, 40])
    """
    at, due = [], edges[0]
    for number, start in enumerate(edges[:-1]):
        if start >= due:
            at.append(number)
            due += Fraction(math.floor((start - due) * frame_rate) + 1, frame_rate)
    ends = [round((edges[number] - edges[0]) * 1000 / tick_ms) for number in (*at, -1)]
    return _Shown(at, [tick_ms * (stop - start) for start, stop in itertools.pairwise(ends)])


def _edges(video: Path) -> list[Fraction]:
    """When each picture of a video appears, in seconds, and when the last one ends."""
    try:
        with av.open(str(video)) as container:
            stream = container.streams.video[0]
            base = stream.time_base or Fraction(1)
            times = sorted(packet.pts for packet in container.demux(stream) if packet.pts is not None)
            ends = times[-1:] if stream.duration is None else [(stream.start_time or 0) + stream.duration]
    except (av.FFmpegError, IndexError) as error:
        raise _unreadable(video, error) from error
    if not times:
        raise VideoError(f"{video}: holds no picture")
    usual = times[-1] - times[-2] if len(times) > 1 else 1
    return [time * base for time in (*times, max(*ends, times[-1] + min(1, usual)))]


def _pictures(video: Path, at: Sequence[int], width_px: int) -> Iterator[Pictures.Image]:
    """Some pictures of a video, by number, no wider than that."""
    wanted = set(at)
    try:
        with av.open(str(video)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                if number in wanted:
                    yield Pictures.fromarray(_at_most(frame.to_ndarray(format="rgb24"), width_px))
    except av.FFmpegError as error:
        raise _unreadable(video, error) from error


def _at_most(picture: Image, width_px: int) -> UInt8[np.ndarray, "h w 3"]:
    height, width = picture.shape[:2]
    if width <= width_px:
        return picture
    size = (width_px, max(1, round(height * width_px / width)))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


def _unreadable(video: Path, error: Exception) -> VideoError:
    return VideoError(f"{video}: cannot be read ({error})")


def _reported(
    pictures: Iterator[Pictures.Image], shown: _Shown, on_progress: Callable[[int, int], None]
) -> Iterator[Pictures.Image]:
    for done, picture in enumerate(pictures, start=1):
        yield picture
        on_progress(done, len(shown.at))


def _write(pictures: Iterator[Pictures.Image], shown: _Shown, path: Path, out: Path) -> float:
    """Writes all pictures, and returns the megabytes."""
    options = {"quality": 60, "method": 2} if out.suffix == ".webp" else {"optimize": False}
    with path.open("wb") as file:
        next(pictures).save(
            file,
            format=out.suffix.removeprefix(".").upper(),
            save_all=True,
            append_images=pictures,
            duration=list(shown.durations_ms),
            loop=0,
            **options,
        )
    return path.stat().st_size / 1e6
