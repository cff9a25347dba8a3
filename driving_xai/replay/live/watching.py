"""Playing for viewers only: at the source's own speed, from where they ask, by the method they choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from data_prep.decoding import Dropped
from data_prep.schema import Image
from driving_xai.checkpoint import Checkpoint
from driving_xai.models.declared import is_recurrent
from driving_xai.replay.background import Consumer, StageTimes, ahead
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.inset import CurveView
from driving_xai.replay.live.brush import Brushes
from driving_xai.replay.live.control import FrameStats, Live, Playback
from driving_xai.replay.methods import fitting_methods
from driving_xai.replay.predict import FrameResult
from driving_xai.replay.production import filmed
from driving_xai.replay.render import Show
from driving_xai.replay.session import Session

_DEPTH = 2
"""Frames that may wait between two stages: few, so that a request is soon met."""
_MEMORY_S = 2.0
"""How long before a place a recurrent model begins to look, unseen: its memory forms as in a drive."""


def watch(checkpoint: Checkpoint, source: Path, live: Live, config: ReplayConfig | None = None) -> None:
    """Plays a source for viewers, who pause, step, seek and switch the method. Nothing is written.

    Means begin anew after a seek and with another method. Returns once `live` is closed.

    Raises:
        CheckpointError: the model does not say what its outputs mean, or the checkpoint not how its frames
            were cut.
        OptionError: an option is for models of another task.
        DataError: the source is missing, empty, damaged, or does not fit the checkpoint.
        UnsupportedModelError: the model lacks what the method needs.
    """
    config = config or ReplayConfig()
    whole = Session.open(checkpoint, source, None, config)
    # What it was started with may bear a label, which no table has.
    offered = dict.fromkeys([*fitting_methods(checkpoint.model), whole.method])
    playback = playback_of(whole, methods=tuple(offered), free=True)
    memory_s = _MEMORY_S if is_recurrent(checkpoint.model) else 0.0
    at_s, request, times_s = playback.first_s, None, whole.frames.time_s.tolist()
    while True:
        # A little earlier, so that rounding does not lose the frame of that very time.
        start_s = max(config.start_s, at_s - memory_s - 1e-6)
        options = config.options if playback.method == config.method else {}
        chosen = replace(config, start_s=start_s, method=playback.method, options=options)
        session = Session.open(checkpoint, source, None, chosen)
        live.begin(playback, at_s=at_s, answers=request, times_s=times_s)
        _play(session, live, at_s)
        if not live.interrupted:
            live.end()
        request = live.next_request()
        if request is None:
            return
        at_s = live.at_s if request.at_s is None else request.at_s
        playback = replace(playback, method=request.method or playback.method)


def _play(session: Session, live: Live, from_s: float) -> None:
    """Shows a source from a place on, until its end or a viewer's request."""
    times = StageTimes()
    predict, dropped, brushes = session.predictor(times), Dropped(session.config.policy), Brushes(session)
    first_s = from_s - 0.5 / float(session.frames.frame_rate)
    with ExitStack() as stack:
        coming = stack.enter_context(ahead(session.inputs(times, dropped), _DEPTH))
        submit = stack.enter_context(session.scoring(times))
        consumer: Consumer | None = None
        for seen, pixels in coming:
            if live.interrupted:
                return
            if seen.time_s < first_s:
                predict.remember(seen, pixels)
                continue
            pending = brushes.coming(predict(seen, pixels))
            if consumer is None:
                show = shown_to(live, session, brushes)
                renderer, _ = filmed([session], stack, [pending.result], show=show, times=times)
                consumer = stack.enter_context(Consumer(renderer, _DEPTH, release=live.close))
            consumer.put([submit(pending)])


def playback_of(session: Session, *, methods: Sequence[str], free: bool) -> Playback:
    """What viewers see of a session."""
    frames = session.frames
    return Playback(
        first_s=float(frames.time_s[0]),
        last_s=float(frames.time_s[-1]),
        frame_rate=float(frames.frame_rate),
        method=session.method,
        methods=tuple(methods),
        free=free,
        legend=session.task.legend._asdict(),
    )


def shown_to(live: Live, session: Session, brushes: Brushes) -> Show:
    """Hands each picture to the viewers with its numbers."""

    def show(picture: Image, result: FrameResult, curves: Sequence[CurveView | None]) -> None:
        live.show(
            picture,
            _stats(session, result, curves),
            plain=result.seen.frame.image,
            brush=brushes.shown(result),
            lasts_s=result.seen.shown_for_ns / 1e9,
        )

    return show


def _stats(session: Session, result: FrameResult, curves: Sequence[CurveView | None]) -> FrameStats:
    predicted, truth = session.task.in_words(result)
    shown = [curve for curve in curves if curve is not None]
    # All curves of a frame share the means.
    newest = shown[-1] if shown else None
    return FrameStats(
        time_s=result.seen.time_s,
        frame=result.seen.frame.index,
        method=session.method,
        predicted=predicted,
        truth=truth,
        area=_known(sum(curve.area for curve in shown) / len(shown)) if shown else None,
        mean_area=None if newest is None else _known(newest.mean_area),
        half_width=None if newest is None else _known(newest.half_width),
        random_area=None if newest is None else _known(newest.random_area),
        scored=0 if newest is None else newest.frames,
        verdict=None if newest is None or newest.verdict is None else newest.verdict.sentence,
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
