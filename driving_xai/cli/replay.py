"""replay: a drive with the model's evidence on it, as a video or live in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.models import open_model
from driving_xai.cli.options import (
    ON_BAD,
    REFUSE,
    Assignments,
    Checkpoint,
    Config,
    Device,
    Json,
    fetched,
    fetched_text,
    resolve_device,
    written,
)

if TYPE_CHECKING:
    from driving_xai.checkpoint import Checkpoint as LoadedModel
    from driving_xai.replay.config import ReplayConfig
    from driving_xai.replay.live.control import Live
    from driving_xai.replay.player import ReplayResult


_FILM, _LIVE = "Film", "Live view"
_LOOPBACK, _GIF_MB = "127.0.0.1", 8.0


def replay(
    checkpoint: Checkpoint,
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE", parser=fetched, help="Shards, a recording, a video file, or a folder of images."
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE.mp4", parser=written, help="The video to write."),
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            metavar="METHOD[,METHOD...]",
            help="A method by name, from the list below; several are shown side by side. [default: the model's own "
            "attention, snna for transformers, or grad-cam]",
        ),
    ] = None,
    compare: Annotated[
        list[str] | None,
        typer.Option(
            "--compare",
            metavar="CHECKPOINT",
            parser=fetched_text,
            help="Another model, shown side by side with the first; repeatable.",
            rich_help_panel=_FILM,
        ),
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(
            "--label",
            metavar="NAME",
            help="A name for each model, or each method of one model, over its picture; repeatable.",
            rich_help_panel=_FILM,
        ),
    ] = None,
    score: Annotated[
        bool | None, typer.Option("--score/--no-score", help="Score each frame. [default: score]")
    ] = None,
    start: Annotated[
        float | None, typer.Option(metavar="S", help="Begin so many seconds into the drive.")
    ] = None,
    end: Annotated[
        float | None, typer.Option(metavar="S", help="End so many seconds into the drive.")
    ] = None,
    config: Config = None,
    assignments: Assignments = None,
    reader: Annotated[
        str | None, typer.Option(help="How to read SOURCE, in place of recognising it.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option(
            "--option",
            metavar="NAME=VALUE",
            help="An option of the reader, as rate=20 for a raw stream, which has no times; repeatable.",
        ),
    ] = None,
    on_bad: Annotated[
        Literal["drop", "refuse"] | None,
        typer.Option(help=ON_BAD),
    ] = None,
    refuse: Annotated[
        list[str] | None,
        typer.Option(
            metavar="FAULT",
            help=REFUSE,
        ),
    ] = None,
    drive: Annotated[str | None, typer.Option(help="Which drive of SOURCE, where there are several.")] = None,
    split: Annotated[
        Literal["all", "train", "val", "test"] | None,
        typer.Option(help="Which part of shards. [default: all]"),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="What is explained of steering: left, right or magnitude. [default: magnitude]"),
    ] = None,
    layout: Annotated[
        Literal["overlay", "grid", "cycle", "portrait", "compact"] | None,
        typer.Option(
            help="Steering has overlay, actions have grid (a tile for each) or cycle (one map after the other); for "
            "phones portrait or compact. [default: overlay, grid]",
            rich_help_panel=_FILM,
        ),
    ] = None,
    original: Annotated[
        bool | None,
        typer.Option("--original", help="Show the camera's frame too, side by side.", rich_help_panel=_FILM),
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(
            metavar="WIDTHxHEIGHT",
            help="Size of the video in pixels. [default: by source and layout]",
            rich_help_panel=_FILM,
        ),
    ] = None,
    cards: Annotated[
        bool | None,
        typer.Option(
            "--cards",
            help="Begin with a title card, end with the verdict in a sentence.",
            rich_help_panel=_FILM,
        ),
    ] = None,
    title: Annotated[
        str | None,
        typer.Option(
            metavar="TEXT", help="What the title card says; brings --cards with it.", rich_help_panel=_FILM
        ),
    ] = None,
    against: Annotated[
        tables.Against | None,
        typer.Option(
            help="Whose curve of steering is drawn: the change from the unmodified prediction, or the error "
            "against the recorded truth, which contains the model's own. Both are saved. [default: unmodified]"
        ),
    ] = None,
    fill: Annotated[
        Literal["black", "mean", "blur"] | None,
        typer.Option(help="What takes a removed pixel's place. [default: black]"),
    ] = None,
    colormap: Annotated[
        Literal["inferno", "plasma", "viridis", "turbo"] | None,
        typer.Option(
            help="Colours of the evidence; turbo shows best on dark roads. [default: inferno]",
            rich_help_panel=_FILM,
        ),
    ] = None,
    opacity: Annotated[
        float | None,
        typer.Option(
            help="Opacity of the strongest evidence, up to 1. [default: 0.72]", rich_help_panel=_FILM
        ),
    ] = None,
    gif: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            parser=written,
            help="A small clip to share as well, FILE.gif or FILE.webp, kept below --gif-mb.",
        ),
    ] = None,
    gif_mb: Annotated[
        float | None, typer.Option("--gif-mb", metavar="MB", help="Size limit of the clip. [default: 8]")
    ] = None,
    mb: Annotated[
        float | None,
        typer.Option(
            metavar="MB",
            help="Size limit of the video; the quality gives way where it must.",
            rich_help_panel=_FILM,
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of ties, the random order and the intervals. [default: 0]")
    ] = None,
    show: Annotated[
        bool, typer.Option("--show", rich_help_panel=_LIVE, help="Show it in a window meanwhile; q closes.")
    ] = False,
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            rich_help_panel=_LIVE,
            help="Show it in a browser; without --out one can seek there and switch the method. 0: any port.",
        ),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=written,
            rich_help_panel=_LIVE,
            help="Where --serve saves what viewers paint over, for the report. [default: FILE.cases of --out, where "
            "only this machine can look]",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            rich_help_panel=_LIVE,
            help="Address for --serve; with 0.0.0.0 all on the network see it who know the printed token. "
            "[default: 127.0.0.1]",
        ),
    ] = None,
    weights: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Weights of a model that is no checkpoint: safetensors, or a .pt of tensors only; with --compare "
            "once for each such model, in their order.",
        ),
    ] = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Render a drive with the model's evidence on the road.

    Each frame is predicted, explained, scored against a random order, and drawn into an H.264 video. The
    scores are saved next to it, in the folder FILE.scores. A model of actions explains each action that it
    predicts.

    \b
    Example: driving-xai replay model CH2_001 --start 60 --end 90 -o drive.mp4
    Example: driving-xai replay model CH2_001 --end 6 --gif clip.gif -o drive.mp4
    Example: driving-xai replay model CH2_001 --method grad-cam,lime -o both.mp4
    """
    from driving_xai.replay.config import ReplayConfig

    methods = [] if method is None else [each.strip() for each in method.split(",")]
    several = len(methods) > 1 or bool(compare)
    of_film = {"label": label, "cards": cards, "title": title, "mb": mb, "gif": gif, "json": as_json}
    _require_a_use(out, serve=serve, show=show, several=several, of_film=of_film)
    _require_company(gif=gif, gif_mb=gif_mb, serve=serve, host=host, cases=cases)
    options = {
        "method": methods[0] if methods else None,
        "compared": tuple(methods[1:]) or None,
        "score": score,
        "start_s": start,
        "end_s": end,
        "reader": reader,
        "on_bad": on_bad,
        "refuse": refuse or None,
        "drive": drive,
        "split": split,
        "target": target,
        "layout": layout,
        "original": original,
        "size": None if size is None else _size(size),
        "cards": True if title else cards,
        "title": title,
        "mb": mb,
        "reference": {None: None, "unmodified": "clean", "truth": "truth"}[against],
        "fill": fill,
        "colormap": colormap,
        "opacity": opacity,
        "seed": seed,
    }
    for_reader = [f"reader_options.{each}" for each in option or ()]
    models = _models([checkpoint, *(compare or ())], weights or (), device=resolve_device(device))
    _require_fitting(models[0], options)
    how = settings.resolve(
        ReplayConfig, config, options=options, assignments=[*(assignments or ()), *for_reader]
    )
    with _live_view(serve, host or _LOOPBACK, cases, out) as live:
        if out is None:
            _watch(models[0], source, live, how)
            return
        made = _play(models, source, out, how, labels=label or (), show=show, live=live)
    _tell(made, as_json=as_json)
    if mb is not None and (size_mb := out.stat().st_size / 1e6) > mb:
        console.say(f"{out}: {size_mb:.1f} MB, over --mb {mb:g}; choose a smaller --size or a shorter part")
    if gif is not None:  # Last: a clip that does not fit takes nothing from what was found.
        _clip(made.video, gif, _GIF_MB if gif_mb is None else gif_mb)


def _require_a_use(
    out: Path | None, *, serve: int | None, show: bool, several: bool, of_film: Mapping[str, object]
) -> None:
    """Refuses what would come to nothing, before a model is opened.

    Args:
        out: the film.
        serve: the live view's port.
        show: whether a window is asked for.
        several: whether several methods or models are.
        of_film: options that say how a film is made or reported, by name.

    Raises:
        SettingsError: nothing would be written or seen, or an option has no part in it.
    """
    if out is None and (serve is None or show):
        raise settings.SettingsError("nothing to write; give --out FILE.mp4, or --serve PORT to look only")
    if out is not None:
        if out.suffix != ".mp4":
            raise settings.SettingsError(f"--out is {out}; expected a name that ends in .mp4")
        return
    if several:
        raise settings.SettingsError(
            "several methods or models are for a film; give --out FILE.mp4, or one of them to look at"
        )
    if idle := [f"--{name}" for name, value in of_film.items() if value]:
        raise settings.SettingsError(
            f"{' and '.join(idle)} can do nothing without a film; give --out FILE.mp4, or leave "
            f"{'it' if len(idle) == 1 else 'them'} out"
        )


def _require_company(
    *, gif: Path | None, gif_mb: float | None, serve: int | None, host: str | None, cases: Path | None
) -> None:
    """Refuses an option without the one that it belongs to, and a clip that cannot be.

    Raises:
        SettingsError: the other option is missing.
        OptionError: no clip has that name or size.
    """
    from driving_xai.replay.clip import require_clip

    if gif is not None:
        require_clip(gif, _GIF_MB if gif_mb is None else gif_mb)
    elif gif_mb is not None:
        raise settings.SettingsError(
            "--gif-mb is for the clip of --gif; give --gif FILE.gif too, or leave it out"
        )
    if serve is None and host is not None:
        raise settings.SettingsError("--host is for the live view; give --serve PORT too, or leave it out")
    if serve is None and cases is not None:
        raise settings.SettingsError(
            "--cases is where --serve saves what viewers paint over; give --serve PORT too"
        )


def _models(names: Sequence[str], weights: Sequence[Path], *, device: str) -> list[LoadedModel]:
    """Opens the models, each with its own weights.

    Raises:
        SettingsError: there are not as many weights as models that are no checkpoints.
        CheckpointError: see `open_model`.
    """
    from driving_xai.models.foreign import is_foreign

    own = dict.fromkeys(range(len(names)))
    if len(names) == 1 and len(weights) < 2:
        own = dict(enumerate(weights)) or own  # A checkpoint with weights is refused where it is opened.
    elif weights:
        foreign = [at for at, name in enumerate(names) if is_foreign(name)]
        if len(foreign) != len(weights):
            raise settings.SettingsError(
                f"got --weights {len(weights)} times for {len(foreign)} models that are no checkpoints; give it "
                "once for each of them, in their order"
            )
        own |= dict(zip(foreign, weights, strict=True))
    return [open_model(name, device=device, weights=own[at]) for at, name in enumerate(names)]


def _require_fitting(model: LoadedModel, options: Mapping[str, object]) -> None:
    """Refuses an option that is for models of another task.

    Raises:
        OptionError: it is; or SettingsError, of --against.
    """
    from driving_xai.replay.tasks import foreign_options, require_own_options, task_for

    task = task_for(model)
    if options["reference"] is not None and "reference" in foreign_options(task):
        raise settings.SettingsError("--against is for models of steering; leave it out")
    require_own_options(task, [name for name, value in options.items() if value is not None], prefix="--")


def _watch(model: LoadedModel, source: Path, live: Live | None, how: ReplayConfig) -> None:
    """Plays for viewers until Ctrl-C, which is the way to end it."""
    from driving_xai.replay.live.watching import watch

    assert live is not None
    with suppress(KeyboardInterrupt):
        watch(model, source, live, how)


def _play(
    models: Sequence[LoadedModel],
    source: Path,
    out: Path,
    how: ReplayConfig,
    *,
    labels: Sequence[str],
    show: bool,
    live: Live | None,
) -> ReplayResult:
    """Makes the film."""
    from driving_xai.replay.player import replay as play

    with console.progress("replay") as on_progress:
        return play(
            models[0],
            source,
            out,
            how,
            others=models[1:],
            labels=labels,
            show=show,
            live=live,
            on_start=console.say,
            on_progress=on_progress,
        )


def _clip(video: Path, gif: Path, most_mb: float) -> None:
    """Makes a clip of the film."""
    from driving_xai.replay.clip import write_clip

    with console.progress("clip", unit="pictures") as on_progress:
        write_clip(video, gif, most_mb=most_mb, on_progress=on_progress)
    console.say(f"{gif}: {gif.stat().st_size / 1e6:.1f} MB")


def _tell(made: ReplayResult, *, as_json: bool) -> None:
    """Says what was made."""
    if as_json:
        console.print_json(
            {
                "video": str(made.video),
                "frames": made.frames,
                "dropped": dict(made.dropped),
                "scores": None if made.scores is None else str(made.scores),
                "summary": made.summary,
            }
        )
        return
    lost = ", ".join(f"{count:,} {reason}" for reason, count in made.dropped.items())
    typer.echo(f"{made.video}: {made.frames:,} frames" + (f"; left out: {lost}" if lost else ""))
    if made.summary is not None and made.scores is not None:
        typer.echo("\n".join(tables.results(made.summary, made.scores)))
    if len(made.all_scores) > 1:
        folders = " ".join(map(str, made.all_scores))
        typer.echo(
            f"\nScores of each model: {folders}; compare them: driving-xai report {folders} -o compared.html"
        )


def _size(text: str) -> tuple[int, int]:
    """Width and height as people write them.

    Raises:
        SettingsError: the text is no size.
    """
    found = re.fullmatch(r"(\d{1,6})[x×](\d{1,6})", text.strip().lower())
    if found is None:
        raise settings.SettingsError(f"--size is {text!r}; expected WIDTHxHEIGHT in pixels, as 1080x1350")
    return int(found[1]), int(found[2])


@contextmanager
def _live_view(port: int | None, host: str, cases: Path | None, out: Path | None) -> Iterator[Live | None]:
    """Serves a live view while the block runs, where one was asked for."""
    if port is None:
        yield None
        return
    from driving_xai.replay.live.access import is_loopback
    from driving_xai.replay.live.control import Live
    from driving_xai.replay.live.server import serving

    if cases is None and out is not None and is_loopback(host):
        cases = out.with_name(f"{out.stem}.cases")
    live = Live(cases=cases)
    with serving(live, host=host, port=port) as address:
        console.say(f"live view: {address} (Ctrl-C ends)")
        yield live
