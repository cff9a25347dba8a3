"""sanity: whether explanations depend on the model, bear noise, and agree."""

from __future__ import annotations

from typing import Annotated

import typer

from driving_xai.cli import console, settings, tables
from driving_xai.cli.models import open_model
from driving_xai.cli.options import (
    Assignments,
    Checkpoint,
    Config,
    Device,
    FrameBatch,
    Json,
    Masks,
    RequiredMethods,
    ResultsOut,
    Seed,
    Shards,
    Split,
    Target,
    Weights,
    methods_of,
    names_of,
    resolve_device,
)

CHECKS = ("cascading", "independent", "noise", "agreement")


def sanity(
    checkpoint: Checkpoint,
    shards: Shards,
    out: ResultsOut,
    method: RequiredMethods,
    check: Annotated[
        str | None, typer.Option(metavar="X,Y", help=f"Any of {', '.join(CHECKS)}. [default: all]")
    ] = None,
    masks: Masks = None,
    config: Config = None,
    assignments: Assignments = None,
    target: Target = None,
    split: Split = None,
    every: Annotated[int | None, typer.Option(min=1, help="Check every n-th frame. [default: 20]")] = None,
    batch_size: FrameBatch = None,
    seed: Seed = None,
    weights: Weights = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Check explanations: random weights, noise, agreement.

    A map that stays the same when the model's weights are drawn anew does not show what the model learnt.
    Weights are randomised from the output back to the input (cascading) and a layer at a time
    (independent); similarity to the trained model's maps is a rank correlation and an overlap of top pixels.

    \b
    Example: driving-xai sanity model shards --method grad-cam,smoothgrad \\
                 -o sanity
    Example: driving-xai sanity model shards --method rise \\
                 --set options.rise.samples=500 -o sanity
    """
    from driving_xai.evaluation.maps_file import Masks
    from driving_xai.evaluation.sanity import SanityConfig
    from driving_xai.evaluation.sanity import check as make_checks

    options = {
        "methods": methods_of(method),
        "checks": names_of(check),
        "target": target,
        "split": split,
        "every": every,
        "batch_size": batch_size,
        "seed": seed,
    }
    how = settings.resolve(SanityConfig, config, options=options, assignments=assignments or ())
    given = None if masks is None else Masks(masks)
    loaded = open_model(checkpoint, device=(on := resolve_device(device)), weights=weights)
    console.say(f"{', '.join(how.checks)} of {', '.join(how.methods)} on {on}; a stage is one set of weights")
    with console.progress("sanity", unit="stages") as on_progress:
        found = make_checks(loaded, shards, out, how, masks=given, on_progress=on_progress)
    checked, passed_over = found["data"]["checked"], found["data"]["passed_over"]
    if passed_over:
        console.say(
            f"{passed_over:,} of {checked + passed_over:,} images were passed over: nothing is predicted in them"
        )
    if as_json:
        console.print_json(found)
    else:
        typer.echo("\n".join([f"{out}:", *tables.sanity(found["means"])]))
