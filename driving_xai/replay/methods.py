"""Which explainer a replay runs: by name, by what the model is, and all that fit it."""

from __future__ import annotations

from contextlib import suppress

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.registry import METHODS, fitted
from driving_xai.models.capabilities import network_of, vision_transformer_of
from driving_xai.models.declared import declared_maps
from driving_xai.models.steering_config import OWN_METHOD


def default_method(model: object) -> str:
    """A steering model's own attention, `snna` of a Vision Transformer, or Grad-CAM."""
    written = declared_maps(network_of(model))
    if own := [name for name in OWN_METHOD.values() if name in written]:
        return own[0]
    with suppress(UnsupportedModelError):
        vision_transformer_of(model)
        return "snna"
    return "grad-cam"


def fitting_methods(model: object) -> tuple[str, ...]:
    """The methods that this model has what it takes for, in the order of their table."""
    fitting = []
    for name in METHODS:
        with suppress(UnsupportedModelError):
            fitted(name, model)
            fitting.append(name)
    return tuple(fitting)
