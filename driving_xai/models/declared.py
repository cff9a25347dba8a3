"""What a model declares of itself, by the protocols of `types`.

A network of somebody else's may have an attribute of the same name that means something else: `encoder` a string,
`input_size` 224, `step` a counter. Only what has the protocol's type counts; all else is taken as not declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Integral
from typing import Any, TypeGuard

from torch import nn

from driving_xai.types import (
    ConvertsPixels,
    FeatureMap,
    FrameModel,
    HasEncoder,
    HasFeatureMap,
    HasInputSize,
    HasOutputs,
    HasVisionTransformer,
    Outputs,
    OwnMap,
    RecurrentModel,
    TakesWindows,
    View,
    WritesMaps,
)


def is_recurrent(model: object) -> TypeGuard[RecurrentModel[Any]]:
    """Whether a model carries a state from frame to frame: it has the methods `step` and `at`.

    Example:
        >>> net = nn.Identity()
        >>> net.step, net.at = 3, None
        >>> is_recurrent(net)
        False
    """
    return isinstance(model, RecurrentModel) and callable(model.step) and callable(model.at)


def takes_windows(model: object) -> TypeGuard[TakesWindows[Any]]:
    """Whether a model takes several frames of each drive at once: it has the method `steps`.

    Example:
        >>> net = nn.Identity()
        >>> net.steps = 1000
        >>> takes_windows(net)
        False
    """
    return isinstance(model, TakesWindows) and callable(model.steps)


def converts_pixels(model: object) -> TypeGuard[ConvertsPixels]:
    """Whether a model's conversion of single pixels can be had apart: it has both methods.

    Example:
        >>> net = nn.Identity()
        >>> net.converted, net.of_converted = True, None
        >>> converts_pixels(net)
        False
    """
    return isinstance(model, ConvertsPixels) and callable(model.converted) and callable(model.of_converted)


def at_instant(model: Any, state: Any = None) -> FrameModel:
    """A recurrent model at one instant of its drive; any other model as it is.

    A view that `at` builds anew as a module begins in training mode, whatever mode the model is in. Its new parts
    take the model's.

    Args:
        state: after the frame before; None at the first frame of a drive.

    Example:
        >>> network = nn.Flatten()
        >>> at_instant(network) is network
        True
    """
    if not is_recurrent(model):
        return model
    view = model.at(state)
    if isinstance(view, nn.Module) and isinstance(model, nn.Module) and view.training != model.training:
        known = set(model.modules())
        for module in view.modules():
            if module not in known:
                module.training = model.training
    return view


def declared_outputs(model: object) -> Outputs | None:
    """What the columns of the scores mean."""
    found = model.outputs if isinstance(model, HasOutputs) else None
    return found if isinstance(found, Outputs) else None


def declared_input_size(model: object) -> tuple[int, int] | None:
    """Height and width of the frames that a network was made for.

    Example:
        >>> net = nn.Identity()
        >>> net.input_size = 224
        >>> declared_input_size(net) is None
        True
    """
    found: object = model.input_size if isinstance(model, HasInputSize) else None
    if not isinstance(found, tuple | list) or len(found) != 2 or not all(map(is_length, found)):
        return None
    return int(found[0]), int(found[1])


def is_length(found: object) -> bool:
    """Whether it is a length in pixels; NumPy's whole numbers are, too."""
    return isinstance(found, Integral) and not isinstance(found, bool) and int(found) > 0


def declared_network(model: object) -> nn.Module | None:
    """The module inside a view of one instant, which may itself be such a view."""
    found: object = model.network if isinstance(model, View) else None
    return found if isinstance(found, nn.Module | View) else None  # type: ignore[return-value]


def declared_feature_map(model: object) -> FeatureMap | None:
    """Where a network's last feature map is."""
    found = model.feature_map if isinstance(model, HasFeatureMap) else None
    return found if isinstance(found, FeatureMap) else None


def declared_vit(model: object) -> nn.Module | None:
    """The Vision Transformer inside."""
    found = model.vit if isinstance(model, HasVisionTransformer) else None
    return found if isinstance(found, nn.Module) else None


def declared_maps(model: object) -> Mapping[str, OwnMap]:
    """The explanations that a network writes itself, by their literature names; empty where it writes none."""
    found = model.own_maps if isinstance(model, WritesMaps) else None
    if not isinstance(found, Mapping):
        return {}
    return {name: each for name, each in found.items() if isinstance(each, OwnMap)}


def declared_encoder(model: object) -> nn.Sequential | None:
    """The plain chain of layers with which a network begins."""
    found = model.encoder if isinstance(model, HasEncoder) else None
    return found if isinstance(found, nn.Sequential) else None
