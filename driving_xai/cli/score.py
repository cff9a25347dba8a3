"""score: a model's explanations, measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.models import open_model
from driving_xai.cli.options import (
    Assignments,
    Checkpoint,
    Config,
    Device,
    DryRun,
    FrameBatch,
    Json,
    Masks,
    Methods,
    ResultsOut,
    Resume,
    Scheduler,
    Seed,
    Shards,
    Split,
    Target,
    Weights,
    fetched,
    measures_of,
    methods_of,
    names_of,
    resolve_device,
)
from driving_xai.evaluation.references import spoken

if TYPE_CHECKING:
    from driving_xai.checkpoint import Checkpoint as Loaded
    from driving_xai.evaluation.config import ScoreConfig
    from driving_xai.evaluation.gates import Threshold, Verdict


class Shares(NamedTuple):
    """The workers that share one run."""

    engine: Literal["processes", "dask"]
    workers: int
    scheduler: str | None


def score(
    checkpoint: Checkpoint,
    shards: Shards,
    out: ResultsOut,
    method: Methods = None,
    measure: Annotated[
        str | None,
        typer.Option(metavar="X,Y", help="Measures by name, from the list below. [default: deletion]"),
    ] = None,
    maps: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", parser=fetched, help="Maps computed elsewhere, scored too; see docs/results.md."
        ),
    ] = None,
    masks: Masks = None,
    baseline_model: Annotated[
        Path | None,
        typer.Option(
            metavar="CHECKPOINT",
            parser=fetched,
            help="The network that lime-rank-correlation fits LIME on; images only. [default: the scored one]",
        ),
    ] = None,
    save_maps: Annotated[
        bool, typer.Option("--save-maps", help="Keep every map in OUT, except those of the baselines.")
    ] = False,
    config: Config = None,
    assignments: Assignments = None,
    target: Target = None,
    fill: Annotated[
        str | None,
        typer.Option(
            metavar="black|mean|blur|imagenet-mean|bias-image[,...]",
            help="What takes the place of a removed pixel; several score each method by its worst. "
            "In place of fill and fills in the TOML file. For aupc and log-odds see --set masking.fill. [default: black]",
        ),
    ] = None,
    split: Split = None,
    every: Annotated[int | None, typer.Option(min=1, help="Score every n-th frame. [default: 1]")] = None,
    batch_size: FrameBatch = None,
    seed: Seed = None,
    weights: Weights = None,
    device: Device = "auto",
    require: Annotated[
        Literal["random", "centre-prior"] | None,
        typer.Option(
            help="Exit 4 unless every method beats this baseline, its whole interval included, under every measure "
            "shown; sparseness and complexity, which say nothing of the model, do not count."
        ),
    ] = None,
    fail_below: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[METHOD:]MEASURE[/REFERENCE]=VALUE",
            help="Exit 4 unless the whole interval is at least as faithful as this; repeatable. Under several "
            "fills MEASURE means each of them, MEASURE@FILL one.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, help="Shares of the work, each for one process.", show_default=True)
    ] = 1,
    engine: Annotated[
        Literal["processes", "dask"] | None, typer.Option(help="Where shares run. [default: processes]")
    ] = None,
    scheduler: Scheduler = None,
    resume: Resume = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score explanations along a route.

    Each frame is explained, its pixels ranked and removed, and the error measured. Two baselines, a random
    order and a centre prior, are always scored too.

    OUT then holds results.json (how it was measured, means, intervals) and per_frame.parquet (every
    frame's curve). Deletion is in degrees x percent over 0-25 % removed: higher is more faithful.
    Shown are the scores against the unmodified prediction, and what they mean in a sentence; those against
    the recorded truth, which contain the model's own error, are in OUT too.

    \b
    Example: driving-xai score model shards --method sign-attention,grad-cam \\
                 -o results
    Example: driving-xai score model shards --method snna \\
                 --set options.snna.samples=3 -o results
    Example: driving-xai score model shards --method snna --measure aupc \\
                 --set masking.rule=logit -o results
    """
    from driving_xai.evaluation.config import ScoreConfig
    from driving_xai.evaluation.distributed import local_device

    options = {
        "methods": methods_of(method),
        "measures": measures_of(measure),
        "target": target,
        **_fills_of(fill, assignments or ()),
        "split": split,
        "every": every,
        "batch_size": batch_size,
        "seed": seed,
        "maps": None if maps is None else str(maps),
        "baseline_model": None if baseline_model is None else str(baseline_model),
        "save_maps": save_maps or None,
        "masks": None if masks is None else str(masks),
    }
    thresholds = [_threshold(text) for text in fail_below or ()]
    how = settings.resolve(ScoreConfig, config, options=options, assignments=assignments or ())
    _require_scored(thresholds, how)
    if require is not None:
        _require_comparable(how)
    model = open_model(checkpoint, device=local_device(resolve_device(device)), weights=weights)
    if dry_run:
        console.print_json({"config": asdict(how), "checkpoint": model.sha256})
        return
    if workers > 1 or engine == "dask":
        shares = Shares(engine=engine or "processes", workers=workers, scheduler=scheduler)
        summary = _in_shares(model, shards, out, how, shares, resume=resume)
    else:
        summary = _alone(model, shards, out, how, resume=resume)
    if summary is not None:
        _show(out, summary, as_json)
        _require_kept(summary, require, thresholds)


def _fills_of(text: str | None, assignments: Sequence[str]) -> dict[str, Any]:
    """One fill, or several in a list with commas; in place of whatever a file says of either.

    Raises:
        SettingsError: --set says it too.
    """
    fills = names_of(text)
    if text is None:
        return {}
    if not fills:
        raise settings.SettingsError(
            f"--fill is {text!r}; expected black, mean or blur, or several with commas"
        )
    for assignment in assignments:
        if assignment.partition("=")[0].strip() in ("fill", "fills"):
            raise settings.SettingsError(
                f"--fill {text} and --set {assignment} both say what takes a removed pixel's place; give one of them"
            )
    return {"fill": fills[0], "fills": ()} if len(fills) == 1 else {"fill": "black", "fills": fills}


def _show(out: Path, summary: Mapping[str, Any], as_json: bool) -> None:
    if as_json:
        console.print_json(summary)
    else:
        typer.echo("\n".join(tables.results(summary, out)))


def _in_shares(
    checkpoint: Loaded, shards: Path, out: Path, config: ScoreConfig, shares: Shares, *, resume: bool
) -> Mapping[str, Any] | None:
    """What an engine's workers found together."""
    from data_prep import engines
    from driving_xai.evaluation.run import score_in_shares

    engine = engines.build(shares.engine, workers=shares.workers, scheduler=shares.scheduler)
    with console.progress("score", unit="shares") as on_progress:
        return score_in_shares(
            checkpoint,
            shards,
            out,
            config,
            engine=engine,
            shares=shares.workers,
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
            checkpoint,
            shards,
            out,
            config,
            resume=resume,
            world=world,
            on_start=console.say,
            on_progress=on_progress,
        )
    return results.summary if world.is_main else None


def _require_scored(thresholds: Sequence[Threshold], config: ScoreConfig) -> None:
    """Refuses thresholds of what will not be scored, before any work."""
    from driving_xai.evaluation.job import given_maps, methods_of

    if not thresholds:
        return
    with given_maps(config) as given:
        methods = methods_of(config, given)
    for each in thresholds:
        if not any(map(each.names, config.scored_measures)):
            raise settings.SettingsError(
                f"--fail-below names {each.measure}, which is not scored; add it to --measure"
            )
        if each.method not in (None, *methods):
            raise settings.SettingsError(
                f"--fail-below names {each.method}, which is not scored; add it to --method, or bring its --maps"
            )


def _require_comparable(config: ScoreConfig) -> None:
    """Refuses to require what no measure of the run can show, before any work."""
    from driving_xai.metrics.registry import FAMILIES

    if set(config.measures) <= set(FAMILIES["complexity"]):
        raise settings.SettingsError(
            f"--require, but no measure of this run says anything of the model ({', '.join(config.measures)}); add one "
            "that does, such as deletion"
        )


def _require_kept(summary: Mapping[str, Any], control: str | None, thresholds: Sequence[Threshold]) -> None:
    """Exits with 4 where a method is not better than the control, or a threshold is missed."""
    if control and (worse := tables.not_better(summary, control)):
        console.say(f"driving-xai: not better than {control}: {'; '.join(worse)}")
        raise typer.Exit(console.BELOW_THRESHOLD)
    missed = [
        f"{each.method} by {each.measure} against {spoken(each.reference)}, {each.reason}"
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
