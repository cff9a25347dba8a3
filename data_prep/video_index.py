"""Which frames a video has, and when each is shown: from its packets, or by decoding it once where those mislead."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from jaxtyping import Int64

from data_prep.video_stream import decoded, opened, packets_of

_PROBED = 16
"""How many decoded frames must bear the times of the packets, one after the other, for the rest to be believed."""
_DEEPEST_REORDERING = 16
"""Pictures that H.264 and HEVC may keep back: how far decoding order and showing order lie apart."""
_TIMED_BY_ORDER = frozenset({"avi"})
"""Containers that count packets and do not say when a frame is shown; wrong as soon as there are B-frames."""
_WITH_HIDDEN_FRAMES = frozenset({"vp8"})
"""Codecs with packets of their own for frames that are never shown."""


class Packets(NamedTuple):
    """What a video's packets say of its frames, and its first decoded frames."""

    stamps: Int64[np.ndarray, " T"]
    """Times of the frames that a player would show, sorted."""
    keys: dict[int, int]
    """Time of each keyframe to the size of its packet."""
    believable: bool
    """Whether each stamp is the time of one frame."""
    first: av.VideoFrame | None

    @classmethod
    def of(cls, container: InputContainer, stream: av.VideoStream) -> Packets:
        """Reads all packets, and decodes until `_PROBED` frames have come."""
        by_order = container.format.name in _TIMED_BY_ORDER and stream.codec_context.has_b_frames
        stated = not by_order and stream.codec_context.name not in _WITH_HIDDEN_FRAMES
        pts: list[int] = []
        keys: dict[int, int] = {}
        probe: list[av.VideoFrame] = []
        for packet in packets_of(container, stream):
            if len(probe) < _PROBED:
                probe.extend(_frames_of(stream, packet))
            if packet is None or packet.is_discard:
                continue
            if packet.pts is None:
                stated = False
                continue
            pts.append(packet.pts)
            if packet.is_keyframe:
                keys[packet.pts] = packet.size
        order = np.argsort(pts, kind="stable")
        stamps = np.array(pts, dtype=np.int64)[order]
        believable = (
            stated
            and bool(np.all(np.diff(stamps) > 0))
            and _displacement(order) <= _DEEPEST_REORDERING
            and _bears(stamps, [frame.pts for frame in probe])
        )
        return cls(stamps, keys, believable, probe[0] if probe else None)

    @property
    def times(self) -> FrameTimes:
        """What the packets say, where they are believable."""
        return FrameTimes(self.stamps, self.stamps, len(self.stamps))

    def keyframes(self, stamps: Int64[np.ndarray, " T"] | None) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the frames that are keyframes, and the sizes of their packets; none without stamps."""
        if stamps is None:
            return np.zeros(0, np.int64), np.zeros(0, np.int64)
        numbers = np.flatnonzero(np.isin(stamps, list(self.keys)))
        return numbers, np.array([self.keys[int(stamp)] for stamp in stamps[numbers]], dtype=np.int64)


def _frames_of(stream: av.VideoStream, packet: av.Packet | None) -> list[av.VideoFrame]:
    try:
        return stream.codec_context.decode(packet)
    except av.FFmpegError:
        return []


def _displacement(order: Int64[np.ndarray, " T"]) -> int:
    return int(np.abs(order - np.arange(len(order))).max(initial=0))


def _bears(stamps: Int64[np.ndarray, " T"], probe: list[int | None]) -> bool:
    """Whether the first decoded frames bear the packets' times in order, at most a few of them missing.

    Where each field has a packet of its own, every second time belongs to no frame.
    """
    if not probe or None in probe or not set(probe) <= set(stamps[: 64 * _PROBED].tolist()):
        return False
    at = np.searchsorted(stamps, np.array(probe, dtype=np.int64))
    return bool(np.all(np.diff(at) > 0)) and at[-1] - at[0] + 1 <= len(at) * 4 / 3


class FrameTimes(NamedTuple):
    """The frames of a video in decoding order."""

    times: Int64[np.ndarray, " T"] | None
    """When each is shown, in the stream's time base; None where no frame says."""
    stamps: Int64[np.ndarray, " T"] | None
    """What each bears, where that is increasing and so finds it again."""
    frames: int
    damaged_before: tuple[int, ...] = ()


def times_by_decoding(path: Path) -> FrameTimes:
    """Counts the frames of a video by decoding it; pictures are not converted."""
    pts: list[int | None] = []
    dts: list[int | None] = []
    damaged: list[int] = []
    with opened(path) as (container, stream):
        for frame in decoded(container, stream):
            if frame is None:
                damaged.append(len(pts))
            else:
                pts.append(frame.pts)
                dts.append(frame.dts)
    times = _filled([at if at is not None else other for at, other in zip(pts, dts, strict=True)])
    found = FrameTimes(times, None, len(pts), tuple(damaged))
    if times is None or bool(np.all(np.diff(times) > 0)):
        return found if None in pts else found._replace(stamps=times)
    # Only the count of packets is out of step with B-frames: the times are right, each at another frame.
    order = np.argsort(times, kind="stable")
    return found._replace(times=times[order]) if _displacement(order) <= _DEEPEST_REORDERING else found


def _filled(stamps: Sequence[int | None]) -> Int64[np.ndarray, " T"] | None:
    """Times of all frames from those that are known, between them in equal steps; None where none is known."""
    at = np.flatnonzero([stamp is not None for stamp in stamps])
    if not len(at):
        return None
    known = np.array([stamp for stamp in stamps if stamp is not None], dtype=np.int64)
    if len(at) == len(stamps):
        return known
    step = float(np.median(np.diff(known) / np.diff(at))) if len(at) > 1 else 1.0
    frames = np.arange(len(stamps))
    times = np.interp(frames, at, known)
    times[: at[0]] = known[0] - (at[0] - frames[: at[0]]) * step
    times[at[-1] + 1 :] = known[-1] + (frames[at[-1] + 1 :] - at[-1]) * step
    return np.round(times).astype(np.int64)
