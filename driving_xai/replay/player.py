"""Plays frames: each is predicted, explained, scored, drawn and written, in bounded memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.decoding import Dropped
from data_prep.lock import exclusive_file
from data_prep.schema import Image
from data_prep.shards.atomic import remove_leftovers
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError, VideoError
from driving_xai.evaluation.results import SUMMARY
from driving_xai.replay.background import Consumer, StageTimes, ahead
from driving_xai.replay.config import ReplayConfig
from driving_xai.replay.inset import CurveView
from driving_xai.replay.live.brush import Brushes
from driving_xai.replay.live.control import Live
from driving_xai.replay.live.watching import playback_of, shown_to
from driving_xai.replay.predict import FrameResult
from driving_xai.replay.render import Renderer, Show
from driving_xai.replay.session import Played, Session
from driving_xai.replay.sink import require_encoder
from driving_xai.replay.window import Window

_DEPTH = 8
"""Frames that may wait between two stages: 8 pictures of 640x480 are 7 MB."""
Progress = Callable[[int, int], None]
"""Called with the frames played so far and in all."""
Say = Callable[[str], None]
"""Takes a line for a person."""


class ReplayResult(NamedTuple):
    """What a replay wrote."""

    video: Path
    frames: int
    dropped: Mapping[str, int]
    """Reason to how many frames of the source were left out."""
    scores: Path | None
    """A folder of results; None where nothing was scored."""
    summary: Mapping[str, Any] | None
    """The content of its results.json."""


def replay(
    checkpoint: Checkpoint,
    source: Path,
    out: Path,
    config: ReplayConfig | None = None,
    *,
    show: bool = False,
    live: Live | None = None,
    on_start: Say | None = None,
    on_progress: Progress | None = None,
    times: StageTimes | None = None,
) -> ReplayResult:
    """Renders a source with the model's evidence on each frame, scored while it plays.

    Writes `out`, an H.264 video, and beside it the folder `<out without .mp4>.scores` with
    results.json and per_frame.parquet. Files appear under these names only when they are complete.

    Args:
        checkpoint: of a model of steering, actions or classes, on the device to compute on.
        source: see `source.open_source`.
        out: ends in .mp4; existing results are replaced at the end.
        config: what is played and how.
        show: opens a window; pressing q there ends the video early.
        live: shows the replay to its viewers, who may hold it; what is written stays the same.
        on_start: called with each line about what will run, before the first frame.
        on_progress: called after each frame.
        times: where the seconds of each stage are added.

    Raises:
        CheckpointError: the model does not say what its outputs mean, or the checkpoint not how its frames
            were cut.
        OptionError: an option is for models of another task.
        DataError: the source is missing, empty, damaged so that nothing is left or the policy refuses it, does not fit
            the checkpoint, or nothing of it can be scored; or another run is writing `out`.
        UnsupportedModelError: the model lacks what the method needs.
        VideoError: no H.264 encoder, no window to show, or the video cannot be written.
    """
    config, times = config or ReplayConfig(), times or StageTimes()
    require_encoder()
    with _writing(out):
        session = Session.open(checkpoint, source, out, config)
        remove_leftovers(out.parent, of=out.name)
        remove_leftovers(session.scores)
        if on_start is not None:
            for line in session.what_runs():
                on_start(line)
        return _play(session, show=show, live=live, on_progress=on_progress, times=times)


def _play(
    session: Session, *, show: bool, live: Live | None, on_progress: Progress | None, times: StageTimes
) -> ReplayResult:
    """Renders an opened source into the session's `out`."""
    assert session.out is not None
    out, config = session.out, session.config
    predict, dropped, brushes = session.predictor(times), Dropped(config.policy), Brushes(session)
    played = runs = 0
    with ExitStack() as stack:
        window = stack.enter_context(Window()) if show else None
        coming = stack.enter_context(ahead(session.inputs(times, dropped), _DEPTH))
        predicted = (predict(*each) for each in coming)
        explained = predicted if live is None else map(brushes.coming, predicted)
        submit = stack.enter_context(session.scoring(times))
        first = next(explained, None)
        if first is None:
            raise DataError(f"{session.frames.name}: no frame came from it; check the source")
        if live is not None:
            playback = playback_of(session, methods=(session.method,), free=False)
            live.begin(playback, at_s=playback.first_s)
        renderer = session.renderer(stack, first.result, _show(window, live, session, brushes), times)
        with Consumer(renderer, _DEPTH) as consumer:
            for pending in itertools.chain([first], explained):
                consumer.put(submit(pending))
                played, runs = played + 1, runs + pending.result.seen.begins
                if on_progress is not None:
                    on_progress(played, len(session.frames))
                if window is not None and not window.refresh():
                    break
        _require_rows(session, renderer)
        # Another replay's summary would not fit the files that are about to take their names.
        (session.scores / SUMMARY).unlink(missing_ok=True)
    if live is not None:
        live.end()
    counts = Played(played, runs, session.dropped(dropped))
    summary = session.save_summary(counts, renderer) if config.score else None
    return ReplayResult(out, played, counts.dropped, session.scores if config.score else None, summary)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Keeps other replays of one name out.

    Raises:
        DataError: another replay of that name is at work.
        VideoError: the folder cannot be written.
    """
    with ExitStack() as lock:
        try:
            lock.enter_context(exclusive_file(out))
        except OSError as error:
            raise VideoError(f"{out}: cannot be written ({error.strerror}); check the folder") from None
        yield


def _require_rows(session: Session, renderer: Renderer) -> None:
    """Refuses results without a single score where frames need not have one."""
    if renderer.rows is not None and not renderer.rows.pictures and not session.task.explains_every_frame:
        raise DataError("no frame had a predicted output, so nothing could be scored; see --no-score")


def _show(window: Window | None, live: Live | None, session: Session, brushes: Brushes) -> Show | None:
    """What takes each picture, if anybody looks."""
    to_window = None if window is None else window.offer
    to_viewers = None if live is None else shown_to(live, session, brushes)

    def show(picture: Image, result: FrameResult, curves: Sequence[CurveView | None]) -> None:
        if to_window is not None:
            to_window(picture)
        if to_viewers is not None:
            to_viewers(picture, result, curves)

    return show if to_window or to_viewers else None
