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
from driving_xai.replay.predict import FrameResult, Pending
from driving_xai.replay.production import close_with_card, filmed, names_of, require_same_frames
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
    """A folder of results, of the first model; None where nothing was scored."""
    summary: Mapping[str, Any] | None
    """The content of its results.json."""
    all_scores: tuple[Path, ...] = ()
    """A folder for each model."""


def replay(
    checkpoint: Checkpoint,
    source: Path,
    out: Path,
    config: ReplayConfig | None = None,
    *,
    others: Sequence[Checkpoint] = (),
    labels: Sequence[str] = (),
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
        others: more models, shown side by side with the first on the same frames; the scores of the second lie in
            `<out without .mp4>.2.scores`.
        labels: names of the models, or of one model's methods, that stand over their pictures.
        show: opens a window; pressing q there ends the video early.
        live: shows the replay to its viewers, who may hold it; what is written stays the same.
        on_start: called with each line about what will run, before the first frame.
        on_progress: called after each frame.
        times: where the seconds of each stage are added.

    Raises:
        CheckpointError: the model does not say what its outputs mean, or the checkpoint not how its frames
            were cut.
        OptionError: an option is for models of another task, there are too many pictures, or not a label for each.
        DataError: the source is missing, empty, damaged so that nothing is left or the policy refuses it, does not fit
            the checkpoint, or nothing of it can be scored; the models cannot play the same frames; or another run is
            writing `out`.
        UnsupportedModelError: the model lacks what the method needs.
        VideoError: no H.264 encoder, no window to show, or the video cannot be written.
    """
    config, times = config or ReplayConfig(), times or StageTimes()
    require_encoder()
    with _writing(out):
        sessions = [
            Session.open(each, source, out, config, number=number)
            for number, each in enumerate((checkpoint, *others), start=1)
        ]
        require_same_frames(sessions)
        names_of(sessions, labels)  # Says what is wrong with them before anything is computed.
        remove_leftovers(out.parent, of=out.name)
        for session in sessions:
            remove_leftovers(session.scores)
            if on_start is not None:
                for line in session.what_runs():
                    on_start(line)
        return _play(sessions, labels, show=show, live=live, on_progress=on_progress, times=times)


def _play(
    sessions: Sequence[Session],
    labels: Sequence[str],
    *,
    show: bool,
    live: Live | None,
    on_progress: Progress | None,
    times: StageTimes,
) -> ReplayResult:
    """Renders an opened source into the sessions' `out`."""
    first = sessions[0]
    assert first.out is not None
    config, total = first.config, len(first.frames)
    # Viewers or none: frames that are encoded one by one have scores that differ in their last digits.
    most = min(_DEPTH, config.batch_size)
    dropped = [Dropped(config.policy) for _ in sessions]
    brushes = None if live is None else Brushes(first)
    played = runs = 0
    with ExitStack() as stack:
        window = stack.enter_context(Window()) if show else None
        explained: list[Iterator[Pending]] = [
            _explained(stack, session, lost, times, most)
            for session, lost in zip(sessions, dropped, strict=True)
        ]
        if brushes is not None:
            explained[0] = map(brushes.coming, explained[0])
        submits = [stack.enter_context(session.scoring(times)) for session in sessions]
        instants = zip(*explained, strict=True)
        opening = next(instants, None)
        if opening is None:
            raise DataError(f"{first.frames.name}: no frame came from it; check the source")
        if live is not None:
            playback = playback_of(first, methods=(first.method,), free=False)
            live.begin(playback, at_s=playback.first_s)
        renderer, tables = filmed(
            sessions,
            stack,
            [pending.result for pending in opening],
            labels=labels,
            show=_show(window, live, first, brushes),
            times=times,
        )
        release = None if live is None else live.close
        with Consumer(renderer, _DEPTH, release=release) as consumer:
            for instant in itertools.chain([opening], instants):
                consumer.put([submit(pending) for submit, pending in zip(submits, instant, strict=True)])
                played, runs = played + 1, runs + instant[0].result.seen.begins
                if on_progress is not None:
                    on_progress(played, total)
                if window is not None and not window.refresh():
                    break
        _require_rows(sessions, renderer)
        for session in sessions:
            # Another replay's summary would not fit the files that are about to take their names.
            (session.scores / SUMMARY).unlink(missing_ok=True)
        tables.close()
        pairs = list(zip(sessions, renderer.scenes, strict=True)) if config.score else []
        counts = Played(played, runs, first.dropped(dropped[0]))
        scored = [session.scored(counts, scene) for session, scene in pairs]
        close_with_card(sessions, renderer, scored, labels)
    if live is not None:
        live.end()
    return _saved(sessions, renderer, counts, scored)


def _saved(
    sessions: Sequence[Session], renderer: Renderer, counts: Played, scored: Sequence[Mapping[str, Any]]
) -> ReplayResult:
    """Writes what was found, once the video has its name; nothing where nothing was scored."""
    first = sessions[0]
    assert first.out is not None
    assert renderer.sink is not None
    summaries = [
        session.save_summary(counts, scene, renderer.sink, found)
        for session, scene, found in zip(sessions, renderer.scenes, scored, strict=False)
    ]
    folders = tuple(session.scores for session, _ in zip(sessions, summaries, strict=False))
    return ReplayResult(
        first.out,
        counts.frames,
        counts.dropped,
        folders[0] if folders else None,
        summaries[0] if summaries else None,
        folders,
    )


def _explained(
    stack: ExitStack, session: Session, dropped: Dropped, times: StageTimes, most: int
) -> Iterator[Pending]:
    """The session's frames, fetched ahead, predicted and explained, `most` of them at once."""
    predict = session.predictor(times)
    coming = stack.enter_context(ahead(session.inputs(times, dropped), _DEPTH))
    return predict.along(coming, most=most)


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


def _require_rows(sessions: Sequence[Session], renderer: Renderer) -> None:
    """Refuses results without a single score where frames need not have one."""
    rows = [scene.rows for scene in renderer.scenes if scene.rows is not None]
    if not sessions[0].task.explains_every_frame and any(not each.pictures for each in rows):
        raise DataError("no frame had a predicted output, so nothing could be scored; see --no-score")


def _show(window: Window | None, live: Live | None, session: Session, brushes: Brushes | None) -> Show | None:
    """What takes each picture, if anybody looks."""
    to_window = None if window is None else window.offer
    to_viewers = None if live is None or brushes is None else shown_to(live, session, brushes)

    def show(picture: Image, result: FrameResult, curves: Sequence[CurveView | None]) -> None:
        if to_window is not None:
            to_window(picture)
        if to_viewers is not None:
            to_viewers(picture, result, curves)

    return show if to_window or to_viewers else None
