"""replay: a drive with the model's evidence on it, as a video or live in a browser."""

from __future__ import annotations

import re
from collections.abc import Iterator
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
    Weights,
    fetched,
    fetched_text,
    resolve_device,
    written,
)

if TYPE_CHECKING:
    from driving_xai.replay.live.control import Live
    from driving_xai.replay.player import ReplayResult


_FILM = "Film"


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
    gif_mb: Annotated[float, typer.Option("--gif-mb", help="Most megabytes of the clip.")] = 8.0,
    seed: Annotated[
        int | None, typer.Option(help="Seed of ties, the random order and the intervals. [default: 0]")
    ] = None,
    show: Annotated[bool, typer.Option("--show", help="Show it in a window meanwhile; q closes.")] = False,
    serve: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Show it in a browser; without --out one can seek there and switch the method. 0: any port.",
        ),
    ] = None,
    cases: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            parser=written,
            help="Where --serve saves what viewers paint over, for the report. [default: FILE.cases of --out, where "
            "only this machine can look]",
        ),
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            help="Address for --serve; with 0.0.0.0 all on the network see it who know the printed token."
        ),
    ] = "127.0.0.1",
    weights: Weights = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Render a drive with the model's evidence on the road.

    Each frame is predicted, explained, scored beside a random order, and drawn into an H.264 video. The
    scores are saved beside it, in the folder FILE.scores. A model of actions explains each action that it
    predicts.

    \b
    Example: driving-xai replay model CH2_001 --start 60 --end 90 -o drive.mp4
    Example: driving-xai replay model CH2_001 --start 60 --end 66 --gif clip.gif -o drive.mp4
    Example: driving-xai replay model CH2_001 --method lime --set options.lime.samples=200 -o lime.mp4
    """
    from driving_xai.replay.clip import require_clip, write_clip
    from driving_xai.replay.config import ReplayConfig
    from driving_xai.replay.live.access import is_loopback
    from driving_xai.replay.live.watching import watch
    from driving_xai.replay.player import replay as play
    from driving_xai.replay.tasks import foreign_options, require_own_options, task_for

    methods = [] if method is None else [each.strip() for each in method.split(",")]
    _require_a_use(out, serve=serve, show=show, cases=cases, several=len(methods) > 1 or bool(compare))
    if gif is not None:
        if out is None:
            raise settings.SettingsError("--gif is made of the video; give --out FILE.mp4 with it")
        require_clip(gif, gif_mb)
    loaded = open_model(checkpoint, device=resolve_device(device), weights=weights)
    others = [open_model(each, device=resolve_device(device), weights=None) for each in compare or ()]
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
        "reference": {None: None, "unmodified": "clean", "truth": "truth"}[against],
        "fill": fill,
        "colormap": colormap,
        "opacity": opacity,
        "seed": seed,
    }
    given = [name for name, value in options.items() if value is not None]
    if against is not None and "reference" in foreign_options(task_for(loaded)):
        raise settings.SettingsError("--against is for models of steering; leave it out")
    require_own_options(task_for(loaded), given, prefix="--")
    for_reader = [f"reader_options.{each}" for each in option or ()]
    how = settings.resolve(
        ReplayConfig, config, options=options, assignments=[*(assignments or ()), *for_reader]
    )
    if cases is None and out is not None and is_loopback(host):
        cases = out.with_name(f"{out.stem}.cases")
    with _live_view(serve, host, cases) as live:
        if out is None:
            assert live is not None
            with suppress(KeyboardInterrupt):  # The way to end it.
                watch(loaded, source, live, how)
            return
        with console.progress("replay") as on_progress:
            made = play(
                loaded,
                source,
                out,
                how,
                others=others,
                labels=label or (),
                show=show,
                live=live,
                on_start=console.say,
                on_progress=on_progress,
            )
    _tell(made, as_json=as_json)
    if gif is not None:  # Last: a clip that does not fit takes nothing from what was found.
        with console.progress("clip", unit="pictures") as on_progress:
            write_clip(made.video, gif, most_mb=gif_mb, on_progress=on_progress)
        console.say(f"{gif}: {gif.stat().st_size / 1e6:.1f} MB")


def _require_a_use(
    out: Path | None, *, serve: int | None, show: bool, cases: Path | None, several: bool
) -> None:
    """Refuses what would come to nothing, before a model is opened.

    Raises:
        SettingsError: nothing would be written or seen, or an option has no part in it.
    """
    if out is None and (serve is None or show):
        raise settings.SettingsError("nothing to write; give --out FILE.mp4, or --serve PORT to look only")
    if out is not None and out.suffix != ".mp4":
        raise settings.SettingsError(f"--out is {out}; expected a name that ends in .mp4")
    if cases is not None and serve is None:
        raise settings.SettingsError(
            "--cases is where --serve saves what viewers paint over; give --serve PORT too"
        )
    if out is None and several:
        raise settings.SettingsError(
            "several methods or models are for a film; give --out FILE.mp4, or one of them to look at"
        )


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
def _live_view(port: int | None, host: str, cases: Path | None) -> Iterator[Live | None]:
    """Serves a live view while the block runs, where one was asked for."""
    if port is None:
        yield None
        return
    from driving_xai.replay.live.control import Live
    from driving_xai.replay.live.server import serving

    live = Live(cases=cases)
    with serving(live, host=host, port=port) as address:
        console.say(f"live view: {address} (Ctrl-C ends)")
        yield live
