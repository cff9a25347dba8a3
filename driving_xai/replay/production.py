"""A film while it is made: what stands side by side in it and under which names, its outputs, its cards."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from driving_xai.errors import DataError, OptionError
from driving_xai.evaluation.method_comparison import compare_methods
from driving_xai.evaluation.model_comparison import compare_models
from driving_xai.evaluation.results import PER_FRAME, Results
from driving_xai.evaluation.verdicts import verdicts_of
from driving_xai.replay.background import StageTimes
from driving_xai.replay.config import Layout
from driving_xai.replay.film import LONGEST_CARD_S, Film, Side, card_s, columns_of
from driving_xai.replay.predict import FrameResult
from driving_xai.replay.render import Renderer, Show
from driving_xai.replay.session import Session
from driving_xai.replay.sink import VideoSink
from driving_xai.viz.lettering import plain

_CAMERA = "camera"


def names_of(sessions: Sequence[Session], labels: Sequence[str]) -> list[str]:
    """What stands over each side: one name for each method of each model.

    Args:
        sessions: one for each model.
        labels: the models' names, or of one model the methods'; none for the usual ones.

    Raises:
        OptionError: there is another number of labels.
    """
    methods = sessions[0].methods
    usual = _models(sessions) if len(sessions) > 1 else list(methods)
    if labels and len(labels) != len(usual):
        what = "models" if len(sessions) > 1 else "methods"
        raise OptionError(f"got {len(labels)} labels for {len(usual)} {what}, expected one for each")
    names = _labelled(usual, labels)
    if len(sessions) == 1:
        return names
    several = len(methods) > 1
    return [f"{name} · {method}" if several else name for name in names for method in methods]


def _models(sessions: Sequence[Session]) -> list[str]:
    """What the models are called without labels."""
    paths = [session.checkpoint.path for session in sessions]
    short = [path.resolve().name for path in paths]
    return short if len(set(short)) == len(short) else [str(path) for path in paths]


def _labelled(usual: Sequence[str], labels: Sequence[str]) -> list[str]:
    return [plain(label) or other for label, other in zip(labels or usual, usual, strict=True)]


def require_same_frames(sessions: Sequence[Session]) -> None:
    """Checks that every model sees the same frames of the drive at the same time.

    Raises:
        DataError: they were trained so that they do not, or take other sources.
    """
    first = sessions[0]
    for other in sessions[1:]:
        if type(other.task) is not type(first.task):
            raise DataError(
                f"{other.checkpoint.path} is a model of {other.task.name}, the first of {first.task.name}; "
                "a film shows models of one task"
            )
        if not np.array_equal(first.frames.index, other.frames.index):
            raise DataError(
                f"{other.checkpoint.path} plays {len(other.frames):,} frames of the drive and the first model "
                f"{len(first.frames):,}; choose a part that both play, with --start and --end"
            )


def filmed(
    sessions: Sequence[Session],
    stack: ExitStack,
    firsts: Sequence[FrameResult],
    *,
    labels: Sequence[str] = (),
    show: Show | None,
    times: StageTimes,
) -> tuple[Renderer, ExitStack]:
    """Opens the outputs, if any, whose size and colours the first frame decides.

    Args:
        sessions: one for each model.
        stack: closes what is opened.
        firsts: the first frame as each model sees it.
        labels: see `names_of`.
        show: takes each picture.
        times: see `Renderer`.

    Returns:
        What draws and stores, and what closes the tables of scores before the video.
    """
    first, config, names = sessions[0], sessions[0].config, names_of(sessions, labels)
    count = len(names) + config.original
    layout: Layout = "compact" if first.task.layout == "portrait" and count > 1 else first.task.layout
    columns = columns_of(first.task.layout, count)
    room = None
    if config.size is not None:
        room = (config.size[1] // -(-count // columns), config.size[0] // columns)
    # The tables are closed first: the last card says what is in them.
    video, tables = ExitStack(), ExitStack()
    stack.enter_context(video)
    stack.enter_context(tables)
    scenes = [
        session.scene(tables, result, layout=layout, room=room)
        for session, result in zip(sessions, firsts, strict=True)
    ]
    painters = [painter for scene in scenes for painter in scene.painters.values()]
    sides = [Side(name, painter.height, painter.width) for name, painter in zip(names, painters, strict=True)]
    if config.original:
        height, width = firsts[0].seen.frame.image.shape[:2]
        sides.insert(0, Side(_CAMERA, round(sides[0].width * height / width), sides[0].width))
    film = Film(sides, layout=first.task.layout, size=config.size)
    sink = None if first.out is None else video.enter_context(_begun(first.out, sessions, names, film))
    return Renderer(scenes, film, sink, original=config.original, show=show, times=times), tables


@contextmanager
def _begun(out: Path, sessions: Sequence[Session], names: Sequence[str], film: Film) -> Iterator[VideoSink]:
    """Opens the film, and shows its first card where cards are asked for."""
    first = sessions[0]
    if not first.config.cards:
        with first.open_video(out, height=film.height, width=film.width) as sink:
            yield sink
        return
    opening = _opening(sessions, names)
    shown_s = card_s(opening, ends=False)
    cards_s = shown_s + LONGEST_CARD_S
    with first.open_video(out, height=film.height, width=film.width, cards_s=cards_s) as sink:
        sink.hold(film.card(plain(first.config.title) or first.frames.name, opening), for_s=shown_s)
        yield sink


def close_with_card(
    sessions: Sequence[Session],
    renderer: Renderer,
    scored: Sequence[Mapping[str, Any]],
    labels: Sequence[str],
) -> None:
    """Ends the film with what it showed."""
    if renderer.sink is None or not sessions[0].config.cards:
        return
    text = [*_closing(sessions, scored, names_of(sessions, labels)), *_compared(sessions, scored, labels)]
    renderer.sink.hold(renderer.film.card("What this drive shows", text), for_s=card_s(text, ends=True))


def _opening(sessions: Sequence[Session], names: Sequence[str]) -> list[str]:
    first = sessions[0]
    config = first.config
    said = [f"Drive {first.frames.name}."] if config.title else []
    if len(names) > 1:
        said.append(f"Side by side: {', '.join(names)}.")
    said.append(f"Coloured: what {' or '.join(first.methods)} finds important for the model's output.")
    if config.score:
        said.append("The curve shows how the output changes as the most important pixels are removed.")
    return said


def _closing(
    sessions: Sequence[Session], scored: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> list[str]:
    if not scored:
        return ["Nothing was scored: whether the coloured pixels matter is not known."]
    verdicts = [{verdict.method: verdict.sentence for verdict in verdicts_of(summary)} for summary in scored]
    pairs = [(at, method) for at, session in enumerate(sessions) for method in session.methods]
    said = [verdicts[at].get(method, "Nothing was scored.") for at, method in pairs]
    if len(said) == 1:
        return said
    return [f"{name}: {sentence}" for name, sentence in zip(names, said, strict=True)]


def _compared(
    sessions: Sequence[Session], scored: Sequence[Mapping[str, Any]], labels: Sequence[str]
) -> Iterator[str]:
    """The models against the first one, or the methods of a single model against each other, in sentences."""
    if len(sessions) == 1:
        for found in map(compare_methods, scored):
            yield from (each.sentence for each in found)
        return
    names = _labelled(_models(sessions), labels)
    results = [
        Results(summary={"plan": session.plan(), **found}, per_frame=session.scores / PER_FRAME)
        for session, found in zip(sessions, scored, strict=False)
    ]
    for name, other in zip(names[1:], results[1:], strict=False):
        compared = compare_models(results[0], other, (names[0], name))
        yield from (*compared.sentences, *compared.notes)
