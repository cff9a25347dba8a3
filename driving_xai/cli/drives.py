"""score: a checkpoint's explanations, measured; and the names of methods and measures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.shards import Assignments, Config, DryRun, Json
from driving_xai.cli.train import Device, resolve_device

if TYPE_CHECKING:
    from data_prep.engines import Engine
    from driving_xai.checkpoint import Checkpoint as Loaded
    from driving_xai.evaluation.config import ScoreConfig
    from driving_xai.evaluation.gates import Threshold, Verdict

# Written out, because the tables themselves import torch and --help should not wait for it. A test
# compares.
METHODS = (
    "sign-attention",
    "soft-attention",
    "bla",
    "bla-hard",
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
    "pid-1",
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
    "lime-rank-correlation",
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
    masks: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Folder of PNG masks, or .npz, for the measures of localisation."),
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
        typer.Option(
            help="What takes a removed pixel's place; of aupc and log-odds see --set masking.fill. "
            "[default: black]"
        ),
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
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METHOD:]MEASURE[/REFERENCE]=VALUE",
            help="Exit 4 unless the whole interval is at least as faithful as this; repeatable.",
        ),
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
    Example: driving-xai score model shards --method snna --set options.snna.samples=3 -o results
    Example: driving-xai score model shards --method snna --measure aupc --set masking.rule=logit -o results
    """
    from data_prep import engines
    from driving_xai import checkpoint as checkpoints
    from driving_xai.evaluation.config import ScoreConfig
    from driving_xai.evaluation.distributed import local_device

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
        "masks": None if masks is None else str(masks),
    }
    thresholds = [_threshold(text) for text in fail_below or ()]
    how = settings.resolve(ScoreConfig, config, options=options, assignments=assignments or ())
    _require_scored(thresholds, how)
    loaded = checkpoints.load(checkpoint, device=local_device(resolve_device(device)))
    if dry_run:
        console.print_json({"config": asdict(how), "checkpoint": loaded.sha256})
        return
    found: Mapping[str, Any] | None
    if workers > 1 or engine == "dask":
        runner = engines.build(engine or "processes", workers=workers, scheduler=scheduler)
        found = _shared(loaded, shards, out, how, runner, workers, resume=resume)
    else:
        found = _alone(loaded, shards, out, how, resume=resume)
    if found is None:
        return
    if as_json:
        console.print_json(found)
    else:
        typer.echo("\n".join([f"{out}:", *tables.scores(found["scores"])]))
    _require_kept(found, require, thresholds)


def _shared(
    checkpoint: Loaded,
    shards: Path,
    out: Path,
    config: ScoreConfig,
    engine: Engine,
    shares: int,
    *,
    resume: bool,
) -> Mapping[str, Any]:
    """What an engine's workers found together."""
    from driving_xai.evaluation.run import score_in_shares

    with console.progress("score", unit="shares") as on_progress:
        return score_in_shares(
            checkpoint,
            shards,
            out,
            config,
            engine=engine,
            shares=shares,
            resume=resume,
            on_progress=on_progress,
        ).summary


def _alone(
    checkpoint: Loaded, shards: Path, out: Path, config: ScoreConfig, *, resume: bool
) -> Mapping[str, Any] | None:
    """What this process found, or the processes of torchrun together; None in all but the first of these."""
    from driving_xai.evaluation.distributed import launched_world
    from driving_xai.evaluation.run import score as score_route

    with launched_world() as world, console.progress("score") as on_progress:
        results = score_route(
            checkpoint, shards, out, config, resume=resume, world=world, on_progress=on_progress
        )
    return results.summary if world.is_main else None


def _require_scored(thresholds: Sequence[Threshold], config: ScoreConfig) -> None:
    """Refuses thresholds of what will not be scored, before any work."""
    from driving_xai.evaluation.run import given_maps, methods_of

    if not thresholds:
        return
    with given_maps(config) as given:
        methods = methods_of(config, given)
    for each in thresholds:
        if each.measure not in config.measures:
            raise settings.SettingsError(
                f"--fail-below names {each.measure}, which is not scored; add it to --measure"
            )
        if each.method not in (None, *methods):
            raise settings.SettingsError(
                f"--fail-below names {each.method}, which is not scored; add it to --method, or bring its --maps"
            )


def _require_kept(summary: Mapping[str, Any], control: str | None, thresholds: Sequence[Threshold]) -> None:
    """Exits with 4 where a method is not better than the control, or a threshold is missed."""
    if control and (worse := tables.not_better(summary, control)):
        console.say(f"driving-xai: not better than {control}: {'; '.join(worse)}")
        raise typer.Exit(console.BELOW_THRESHOLD)
    missed = [
        f"{each.method} by {each.measure} against {each.reference}, {each.reason}"
        for each in _verdicts(summary, thresholds)
        if not each.met
    ]
    if missed:
        console.say(f"driving-xai: below the threshold: {'; '.join(missed)}")
        raise typer.Exit(console.BELOW_THRESHOLD)


def _threshold(text: str) -> Threshold:
    from driving_xai.evaluation.gates import Threshold

    try:
        return Threshold.parse(text)
    except ValueError as error:
        raise settings.SettingsError(f"--fail-below: {error}") from None


def _verdicts(summary: Mapping[str, Any], thresholds: Sequence[Threshold]) -> list[Verdict]:
    from driving_xai.evaluation.gates import verdicts

    try:
        return [each for threshold in thresholds for each in verdicts(summary, threshold)]
    except ValueError as error:
        raise settings.SettingsError(f"--fail-below: {error}") from None


def names_of(text: str | None) -> tuple[str, ...] | None:
    """The names in a list with commas."""
    return None if text is None else tuple(name.strip() for name in text.split(",") if name.strip())
