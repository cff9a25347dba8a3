"""train attention: a block of channel and spatial attention for attention-guided CAM, on a network that stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from driving_xai.cli import console, settings
from driving_xai.cli.models import open_model
from driving_xai.cli.options import (
    Assignments,
    Checkpoint,
    Config,
    Device,
    DryRun,
    Images,
    Json,
    Weights,
    resolve_device,
    written,
)
from driving_xai.cli.training import show


def attention(
    shards: Images,
    checkpoint: Checkpoint,
    out: Annotated[
        Path, typer.Argument(metavar="FILE", parser=written, help="File for the block: block.safetensors.")
    ],
    weights: Weights = None,
    config: Config = None,
    assignments: Assignments = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="[default: 10]")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of everything random.")] = 0,
    device: Device = "auto",
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Train channel and spatial attention (CBAM) on a network that stays as it is, for attention-guided CAM.

    The network's last feature map is kept, and the block learns between it and the pooled linear head, on the
    images of the split train, whose labels are among the network's outputs or are ImageNet's synsets.

    \b
    Example: driving-xai train attention shards model block.safetensors
             driving-xai score model shards --method attention-guided-cam \\
                 --set options.attention-guided-cam.attention=block.safetensors \\
                 -o scores
    """
    from driving_xai.data.images import LabelledImages
    from driving_xai.training.attention import AttentionTraining, train_to_file, training_rows

    how = settings.resolve(
        AttentionTraining, config, options={"epochs": epochs}, assignments=assignments or ()
    )
    on = resolve_device(device)
    model = open_model(checkpoint, weights=weights, device=on)
    images = LabelledImages(shards, short_side_px=model.config.get("input", {}).get("short_side_px"))
    rows, _ = training_rows(model.model, images)
    what = (
        f"{how.epochs} epochs on the feature maps of {len(rows):,} images, {how.batch_size} a step, on {on}"
    )
    if dry_run:
        if as_json:
            console.print_json({"recipe": "attention", "config": asdict(how)})
        else:
            typer.echo(f"It would train {what}. Nothing was written.")
        return
    console.say(what)
    described = {"model_sha256": model.sha256, "shards_sha256": images.manifest.sha256}
    losses = train_to_file(model.model, images, out, how, seed=seed, described=described)
    show(out, losses, _line, as_json=as_json)


def _line(losses: Mapping[str, float]) -> str:
    return f"cross-entropy of the training images {losses['loss_with']:.3f}, without the block {losses['loss_without']:.3f}"
