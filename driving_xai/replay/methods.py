"""Which explainer a replay runs: by name, by what the model is, and all that fit it."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from torch import nn

from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.options import Options
from driving_xai.explain.registry import METHODS, build
from driving_xai.types import Explainer

OWN_METHOD: Mapping[str, str] = {"sign": "sign-attention", "soft": "soft-attention"}
"""A steering model's attention to the method that shows it."""


def default_method(checkpoint: Checkpoint) -> str:
    """The model's own attention, or what suits its architecture."""
    attention = checkpoint.config.get("model", {}).get("attention")
    usual = "snna" if isinstance(getattr(checkpoint.model, "vit", None), nn.Module) else "grad-cam"
    return OWN_METHOD.get(attention, usual)


def built(
    name: str, model: Any, *, seed: int = 0, batch_size: int = 32, options: Options | None = None
) -> Explainer:
    """The explainer of that name for this model; the only call of `explain.registry.build` in a replay.

    Raises:
        UnsupportedModelError: the model lacks what the method needs.
    """
    return build(name, model, seed=seed, batch_size=batch_size, options=options)


def fitting_methods(model: Any) -> tuple[str, ...]:
    """The methods that this model has what it takes for, in the order of their table."""
    fitting = []
    for name in METHODS:
        with suppress(UnsupportedModelError):
            built(name, model)
            fitting.append(name)
    return tuple(fitting)
