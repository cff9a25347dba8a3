"""Street scenes in shards, and action models small enough to explain them in a moment."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.models.actions import ActionConfig, ActionModel

HEIGHT, WIDTH = 48, 80


@pytest.fixture(scope="session")
def streets(tmp_path_factory) -> Path:
    """Forty synthetic street scenes with their actions and the pixels that decide each."""
    out = tmp_path_factory.mktemp("pictures") / "shards"
    options = {"images": 40, "height": HEIGHT, "width": WIDTH}
    prepare(PrepConfig(reader="synthetic-actions", source=Path("-"), reader_options=options), out)
    return out


@pytest.fixture(scope="session")
def actions(tmp_path_factory, streets) -> Callable[..., Checkpoint]:
    """A small transformer with random weights that says it was trained on the streets."""

    def save_and_load(
        *, names: tuple[str, ...] = ("forward", "stop", "left", "right"), patch_px: int = 4
    ) -> Checkpoint:
        torch.manual_seed(0)
        how = ActionConfig(
            backbone="vit_tiny_patch16_224",
            embed_dim=24,
            depth=2,
            blocks=2,
            heads=2,
            patch_px=patch_px,
            image_size=(HEIGHT, WIDTH),
            actions=names,
        )
        model = ActionModel(how)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
        data = {"shards_sha256": Manifest.load(streets).sha256, "held_out": {}}
        path = tmp_path_factory.mktemp("checkpoint")
        checkpoint.save(path, model, {"kind": "actions", "model": asdict(how), "data": data}, {})
        return checkpoint.load(path)

    return save_and_load
