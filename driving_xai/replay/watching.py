"""A drive played for viewers only: at its own speed, from where they ask, by the method they choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.registry import METHODS, build
from driving_xai.replay.background import Behind, StageTimes, ahead
from driving_xai.replay.inset import CurveView
from driving_xai.replay.live import Course, Live, Reading
from driving_xai.replay.rendering import Show
from driving_xai.replay.scoring import Judged
from driving_xai.replay.session import ReplayConfig, Session

_DEPTH = 2
"""Frames that may wait between two stages: few, so that a wish is fulfilled soon."""
_MEMORY_S = 2.0
"""How long before a place the model begins to look, unseen: its memory forms as in a drive."""


def watch(checkpoint: Checkpoint, source: Path, live: Live, config: ReplayConfig | None = None) -> None:
    """Plays a drive for viewers, who pause, step, seek and switch the method. Nothing is written.

    Means begin anew after a seek and with another method. Returns once `live` is closed.

    Raises:
        CheckpointError: the checkpoint holds no steering model, or does not say how its input was cut.
        DataError: the source is missing, empty, damaged, or does not fit the checkpoint.
        UnsupportedModelError: the model lacks what the method needs.
    """
    config = config or ReplayConfig()
    whole = Session.open(checkpoint, source, None, config)
    # What it was started with may bear a label, which no table has.
    offered = dict.fromkeys([*fitting_methods(checkpoint), whole.method])
    course = course_of(whole, methods=tuple(offered), free=True)
    at_s, wish = course.first_s, None
    while True:
        start_s = max(config.start_s, at_s - _MEMORY_S)
        options = config.options if course.method == config.method else {}
        chosen = replace(config, start_s=start_s, method=course.method, options=options)
        session = Session.open(checkpoint, source, None, chosen)
        live.begin(course, at_s=at_s, fulfilled=wish)
        _play(session, live, at_s)
        if not live.interrupted:
            live.end()
        wish = live.next_wish()
        if wish is None:
            return
        at_s = live.at_s if wish.at_s is None else wish.at_s
        course = replace(course, method=wish.method or course.method)


def _play(session: Session, live: Live, from_s: float) -> None:
    """Shows a drive from a place on, until its end or a viewer's wish."""
    times = StageTimes()
    judge = session.judge(times)
    half_a_frame_s = 0.5 / float(session.frames.frame_rate)
    first_ns = session.frames.first_time_ns + int((from_s - half_a_frame_s) * 10**9)
    with ExitStack() as stack:
        coming = stack.enter_context(ahead(session.cut_frames(times), _DEPTH))
        submit = stack.enter_context(session.scoring(times))
        behind: Behind | None = None
        for seen, pixels in coming:
            if live.interrupted:
                return
            if seen.frame.time_ns < first_ns:
                judge.remember(seen, pixels)
                continue
            look = judge(seen, pixels)
            if behind is None:
                renderer = session.renderer(stack, look.judged, shown_to(live, session), times)
                behind = stack.enter_context(Behind(renderer, _DEPTH))
            behind.put(submit(look))


def fitting_methods(checkpoint: Checkpoint) -> tuple[str, ...]:
    """The methods that this model has what it takes for, in the order of their table."""
    fitting = []
    for name in METHODS:
        with suppress(UnsupportedModelError):
            build(name, checkpoint.model)
            fitting.append(name)
    return tuple(fitting)


def course_of(session: Session, *, methods: Sequence[str], free: bool) -> Course:
    """What viewers are told of a session."""
    frames = session.frames
    first_s, last_s = ((int(frames.time_ns[end]) - frames.first_time_ns) / 1e9 for end in (0, -1))
    return Course(
        first_s=first_s,
        last_s=last_s,
        frame_rate=float(frames.frame_rate),
        method=session.method,
        methods=tuple(methods),
        free=free,
    )


def shown_to(live: Live, session: Session) -> Show:
    """Hands each picture to the viewers with its numbers."""
    first_time_ns = session.frames.first_time_ns

    def show(picture: Image, judged: Judged, curve: CurveView | None) -> None:
        live.show(picture, _reading(judged, curve, first_time_ns))

    return show


def _reading(judged: Judged, curve: CurveView | None, first_time_ns: int) -> Reading:
    frame = judged.seen.frame
    areas = (
        (math.nan,) * 4
        if curve is None
        else (curve.area, curve.mean_area, curve.half_width, curve.random_area)
    )
    area, mean_area, half_width, random_area = (_known(value) for value in areas)
    return Reading(
        time_s=(frame.time_ns - first_time_ns) / 1e9,
        frame=frame.index,
        predicted_deg=judged.predicted.angle_deg,
        truth_deg=_known(judged.measured.angle_deg),
        area=area,
        mean_area=mean_area,
        half_width=half_width,
        random_area=random_area,
        scored=0 if curve is None else curve.frames,
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
