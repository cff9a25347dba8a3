"""score and replay: a checkpoint's explanations along a drive, measured and shown."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.shards import Assignments, Config, DryRun, Json
from driving_xai.cli.train import Device, resolve_device

if TYPE_CHECKING:
    from driving_xai.replay.live import Live

# Written out, because the tables themselves import torch and --help should not wait for it. A test
# compares.
METHODS = (
    "sign-attention",
    "soft-attention",
    "bla",
    "l2x-f",
    "sign-attention-filtered",
    "soft-attention-filtered",
    "lambda-attention",
    "labn",
    "grad-cam",
    "grad-cam++",
    "smooth-grad-cam++",
    "xgrad-cam",
    "attention-guided-cam",
    "gradient",
    "gradient-x-input",
    "smoothgrad",
    "integrated-gradients",
    "heavier-side-ig",
    "heavier-side-attention-ig",
    "occlusion",
    "rise",
    "lime",
    "visual-backprop",
    "raw-attention",
    "rollout",
    "attention-gradient",
    "norm-attention",
    "generic-attention",
    "attention-ig",
    "snna",
    "random",
    "centre-prior",
)
MEASURES = (
    "deletion",
    "insertion",
    "insertion-deletion",
    "pid-2",
    "pid-4",
    "pid-8",
    "pid-16",
    "average-drop",
    "increase",
    "percentage-in",
    "aupc",
    "aupc-token",
    "aupc-attention",
    "log-odds",
    "log-odds-token",
    "log-odds-attention",
    "pointing-game",
    "mass-inside",
    "top-k-precision",
    "auroc",
    "average-precision",
)

Checkpoint = Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="A folder that train wrote.")]


def score(
    checkpoint: Checkpoint,
    shards: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that prep wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="DIR", help="Folder for the results.")],
    method: Annotated[
        str | None,
        typer.Option(metavar="A,B", help=f"Any of {', '.join(METHODS)}; the last two are always scored too."),
    ] = None,
    measure: Annotated[
        str | None, typer.Option(metavar="X,Y", help=f"Any of {', '.join(MEASURES)}. [default: deletion]")
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Maps computed elsewhere, scored too; see docs/results.md."),
    ] = None,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Keep every map in OUT, controls excepted.")
    ] = False,
    config: Config = None,
    assignments: Assignments = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="What is explained: left, right or magnitude of steering; predicted, every-predicted or an "
            "output's name of other models. [default: magnitude, or predicted]"
        ),
    ] = None,
    fill: Annotated[
        Literal["black", "mean", "blur"] | None,
        typer.Option(help="What takes a removed pixel's place. [default: black]"),
    ] = None,
    split: Annotated[
        Literal["held-out", "test", "val", "train", "all"] | None,
        typer.Option(
            help="Which frames; held-out is what the checkpoint was not trained on. [default: held-out]"
        ),
    ] = None,
    every: Annotated[int | None, typer.Option(min=1, help="Score every n-th frame. [default: 1]")] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Frames in a forward pass; changes memory and speed only. [default: 32]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of ties, of the random control, of the intervals. [default: 0]")
    ] = None,
    device: Device = "auto",
    require: Annotated[
        Literal["random", "centre-prior"] | None,
        typer.Option(help="Exit 4 unless every method beats this control, its whole interval included."),
    ] = None,
    workers: Annotated[
        int,
        typer.Option(
            min=1, help="Shares of the work, each for one process. [default: 1]", show_default=False
        ),
    ] = 1,
    engine: Annotated[
        Literal["processes", "dask"] | None, typer.Option(help="Where shares run. [default: processes]")
    ] = None,
    scheduler: Annotated[str | None, typer.Option(help="Address of a Dask scheduler.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted run.")] = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score explanations along a route.

    Each frame is explained, its pixels ranked and removed, and the error measured, beside two controls.

    OUT then holds results.json (how it was measured, means, intervals) and per_frame.parquet (every
    frame's curve). Deletion is in degrees x percent over 0-25 % removed: higher is more faithful.

    \b
    Example: driving-xai score model shards --method sign-attention,grad-cam -o results
    """
    from data_prep import engines
    from driving_xai import checkpoint as checkpoints
    from driving_xai.faithfulness.score import score as score_route
    from driving_xai.faithfulness.score import score_in_shares
    from driving_xai.faithfulness.score_config import ScoreConfig
    from driving_xai.faithfulness.team import launched_team, local_device

    options = {
        "methods": names_of(method),
        "measures": names_of(measure),
        "target": target,
        "fill": fill,
        "split": split,
        "every": every,
        "batch_size": batch_size,
        "seed": seed,
        "maps": None if maps is None else str(maps),
        "save_maps": save_maps or None,
    }
    how = settings.resolve(ScoreConfig, config, options=options, assignments=assignments or ())
    loaded = checkpoints.load(checkpoint, device=local_device(resolve_device(device)))
    if dry_run:
        console.print_json({"config": asdict(how), "checkpoint": loaded.sha256})
        return
    if workers > 1 or engine == "dask":
        runner = engines.build(engine or "processes", workers=workers, scheduler=scheduler)
        with console.progress("score", unit="shares") as on_progress:
            results = score_in_shares(
                loaded,
                shards,
                out,
                how,
                engine=runner,
                shares=workers,
                resume=resume,
                on_progress=on_progress,
            )
    else:
        with launched_team() as team, console.progress("score") as on_progress:
            results = score_route(loaded, shards, out, how, resume=resume, team=team, on_progress=on_progress)
        if not team.leads:
            return
    if as_json:
        console.print_json(results.summary)
    else:
        typer.echo("\n".join([f"{out}:", *tables.scores(results.summary["scores"])]))
    if require and (worse := tables.not_better(results.summary, require)):
        console.say(f"driving-xai: not better than {require}: {'; '.join(worse)}")
        raise typer.Exit(console.BELOW_THRESHOLD)


def replay(
    checkpoint: Checkpoint,
    source: Annotated[
        Path,
        typer.Argument(metavar="SOURCE", help="Shards, a recording, a video file, or a folder of images."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE.mp4", help="The video to write.")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(help=f"Any of {', '.join(METHODS)}. [default: the model's own attention, or grad-cam]"),
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
    drive: Annotated[str | None, typer.Option(help="Which drive of SOURCE, where there are several.")] = None,
    split: Annotated[
        Literal["all", "train", "val", "test"] | None,
        typer.Option(help="Which part of shards. [default: all]"),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="What is explained: left, right or magnitude. [default: magnitude]")
    ] = None,
    fill: Annotated[
        Literal["black", "mean", "blur"] | None,
        typer.Option(help="What takes a removed pixel's place. [default: black]"),
    ] = None,
    seed: Annotated[
        int | None, typer.Option(help="Of ties, of the random order, of the intervals. [default: 0]")
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
    host: Annotated[
        str,
        typer.Option(help="Address for --serve; 0.0.0.0 shows it to everyone on the network."),
    ] = "127.0.0.1",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Render a drive with the model's evidence on the road.

    Each frame is predicted, explained, scored beside a random order, and drawn into an H.264 video. The
    scores are saved beside it, in the folder FILE.scores.

    \b
    Example: driving-xai replay model CH2_001 --start 60 --end 90 -o drive.mp4
    """
    from driving_xai import checkpoint as checkpoints
    from driving_xai.replay.player import ReplayConfig
    from driving_xai.replay.player import replay as play
    from driving_xai.replay.watching import watch

    options = {
        "method": method,
        "score": score,
        "start_s": start,
        "end_s": end,
        "reader": reader,
        "drive": drive,
        "split": split,
        "target": target,
        "fill": fill,
        "seed": seed,
    }
    how = settings.resolve(ReplayConfig, config, options=options, assignments=assignments or ())
    if out is None and (serve is None or show):
        raise settings.SettingsError("nothing to write; give --out FILE.mp4, or --serve PORT to look only")
    if out is not None and out.suffix != ".mp4":
        raise settings.SettingsError(f"--out is {out}; expected a name that ends in .mp4")
    loaded = checkpoints.load(checkpoint, device=resolve_device(device), kind="steering")
    with _live_view(serve, host) as live:
        if out is None:
            assert live is not None
            with suppress(KeyboardInterrupt):  # The way to end it.
                watch(loaded, source, live, how)
            return
        with console.progress("replay") as on_progress:
            made = play(loaded, source, out, how, show=show, live=live, on_progress=on_progress)
    if as_json:
        results = None if made.scores is None else str(made.scores)
        console.print_json(
            {"video": str(made.video), "frames": made.frames, "scores": results, "summary": made.summary}
        )
        return
    typer.echo(f"{made.video}: {made.frames:,} frames")
    if made.summary is not None:
        typer.echo("\n".join([f"{made.scores}:", *tables.scores(made.summary["scores"])]))


@contextmanager
def _live_view(port: int | None, host: str) -> Iterator[Live | None]:
    """Serves a live view while the block runs, where one was asked for."""
    if port is None:
        yield None
        return
    from driving_xai.replay.live import Live
    from driving_xai.replay.server import serving

    live = Live()
    with serving(live, host=host, port=port) as address:
        console.say(f"live view: {address} (Ctrl-C ends)")
        yield live


def names_of(text: str | None) -> tuple[str, ...] | None:
    """The names in a list with commas."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
