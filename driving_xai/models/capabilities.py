"""What a model offers an explainer: declared by its class, or found in a plain torchvision or timm network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import UnsupportedModelError
from driving_xai.models.feature_maps import last_feature_map, map_at, named_layer
from driving_xai.types import (
    FeatureMap,
    FrameModel,
    Frames,
    HasEncoder,
    HasFeatureMap,
    HasInputSize,
    HasOutputs,
    HasVisionTransformer,
    Outputs,
    OwnMap,
    RecurrentModel,
    View,
    WritesMaps,
)

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def frame_model(model: object) -> FrameModel:
    """A model as explainers and metrics call it: one instant, frames to scores.

    A recurrent model is taken at the first frame of a drive; `model.at(state)` is its view of another. A
    compiled or data-parallel network is called through the module inside, where hooks are seen.

    Raises:
        UnsupportedModelError: it cannot be called.
    """
    found = unwrapped(model)
    if isinstance(found, RecurrentModel):
        return found.at(None)
    if not callable(found):
        raise UnsupportedModelError(
            f"{type(found).__name__} cannot be called; give a network, or wrap(network)"
        )
    return found


def unwrapped(model: object) -> object:
    """The model inside a loaded checkpoint, torch.compile, DataParallel and DistributedDataParallel; any other
    as it is."""
    while True:
        if isinstance(model, Checkpoint):
            model = model.model
        elif isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(inner := model._modules.get("_orig_mod"), nn.Module):
            model = inner
        else:
            return model


def network_of(model: object) -> nn.Module:
    """The module in which layers are found and hooks run.

    Raises:
        UnsupportedModelError: the model is no module and names none.
    """
    found = unwrapped(model)
    while not isinstance(found, nn.Module):
        if not isinstance(found, View):
            raise UnsupportedModelError(
                f"{type(found).__name__} is no torch.nn.Module and has no attribute network that is one; "
                "give a network, or use a method that only calls the model, such as rise"
            )
        found = unwrapped(found.network)
    return found


def feature_map_of(model: object, frames: Frames, *, layer: str | nn.Module | None = None) -> FeatureMap:
    """The feature map that class activation mapping weights, with cells measured at the size at which the network
    sees the frames.

    Args:
        layer: a module of the network, or its dotted name; None takes what the network declares, or else
            its last feature map, of a Vision Transformer the first normalisation of its last block.

    Raises:
        UnsupportedModelError: there is none, or the layer is unknown or puts out no maps.
    """
    network = network_of(model)
    declared = network.feature_map if isinstance(network, HasFeatureMap) else None
    if isinstance(layer, str):
        layer = named_layer(network, layer)
    if declared is not None and layer in (None, declared.layer):
        return declared
    size = seen_size(network, frames)
    if size == tuple(frames.shape[2:]):
        layer = layer or _last_normalisation(network) or last_feature_map(network, frames)
        return map_at(network, frames, layer)
    found = feature_map_of(network, frames.new_zeros(1, 3, *size), layer=layer)
    return replace(found, cells=None if found.cells is None else found.cells._replace(frame_px=size))


def seen_size(model: object, frames: Frames) -> tuple[int, int]:
    """Height and width at which a network sees frames: those it was made for, or the frames' own."""
    network = network_of(model)
    made_for = network.input_size if isinstance(network, HasInputSize) else None
    return made_for or (frames.shape[2], frames.shape[3])


def _last_normalisation(network: nn.Module) -> nn.Module | None:
    """Of a Vision Transformer, what its last block's attention reads: later only CLS reaches the scores."""
    vit: Any = _timm_transformer(network)
    if vit is not None:
        return vit.blocks[-1].norm1
    from torchvision.models import VisionTransformer

    found = [module for module in network.modules() if isinstance(module, VisionTransformer)]
    return found[0].encoder.layers[-1].ln_1 if len(found) == 1 else None


def vision_transformer_of(model: object) -> nn.Module:
    """The Vision Transformer inside a model: what it declares, or timm's where there is exactly one.

    Raises:
        UnsupportedModelError: there is none, or several.
    """
    network = network_of(model)
    declared = network.vit if isinstance(network, HasVisionTransformer) else None
    found = declared if isinstance(declared, nn.Module) else _timm_transformer(network)
    if found is None:
        raise UnsupportedModelError(
            f"{type(network).__name__} has no Vision Transformer of timm's; use a gradient or a perturbation"
        )
    return found


def _timm_transformer(network: nn.Module) -> nn.Module | None:
    from timm.models.vision_transformer import VisionTransformer

    found = [module for module in network.modules() if isinstance(module, VisionTransformer)]
    return found[0] if len(found) == 1 else None


def own_map_of(model: object, name: str) -> OwnMap:
    """An explanation that the network writes itself, by its method's name.

    Raises:
        UnsupportedModelError: it writes no such map; the message lists those it writes.
    """
    network = network_of(model)
    written = network.own_maps if isinstance(network, WritesMaps) else {}
    if name not in written:
        raise UnsupportedModelError(
            f"{type(network).__name__} does not write {name} (it writes {', '.join(written) or 'no maps'}); "
            "use a method that needs none, such as grad-cam"
        )
    return written[name]


def own_attention_of(model: object) -> OwnMap:
    """The attention map that the network writes, whatever its name.

    Raises:
        UnsupportedModelError: it writes none.
    """
    network = network_of(model)
    written = network.own_maps if isinstance(network, WritesMaps) else {}
    for found in written.values():
        if found.read == "attention":
            return found
    raise UnsupportedModelError(
        f"{type(network).__name__} writes no attention map; use a method that needs none"
    )


def encoder_of(model: object) -> nn.Sequential:
    """The plain chain of layers with which a network begins: declared, or the first that begins with a
    convolution.

    Raises:
        UnsupportedModelError: there is none.
    """
    network = network_of(model)
    declared = network.encoder if isinstance(network, HasEncoder) else None
    if isinstance(declared, nn.Sequential):
        return declared
    for module in network.modules():
        if isinstance(module, nn.Sequential) and _is_plain(list(module)):
            return module
    raise UnsupportedModelError(
        f"{type(network).__name__} has no encoder that is a plain chain of layers; give stages of your choice"
    )


def _is_plain(layers: Sequence[nn.Module]) -> bool:
    first = layers[0] if layers else None
    return (
        isinstance(first, nn.Conv2d) and first.in_channels == 3 and not any(any(x.children()) for x in layers)
    )


def outputs_of(model: object) -> Outputs:
    """What the columns of a model's scores mean.

    Raises:
        UnsupportedModelError: it does not say so.

    Example:
        >>> outputs_of(nn.Identity())
        Traceback (most recent call last):
        driving_xai.errors.UnsupportedModelError: Identity says nothing of its outputs; wrap it: driving_xai.wrap(net, ...)
    """
    if not isinstance(model, HasOutputs):
        name = model.__class__.__name__
        raise UnsupportedModelError(
            f"{name} says nothing of its outputs; wrap it: driving_xai.wrap(net, ...)"
        )
    return model.outputs


def device_of(model: object) -> torch.device:
    """Where a model computes: where its first weight lies, and the CPU where it has none.

    Example:
        >>> device_of(nn.Identity())
        device(type='cpu')
    """
    found = unwrapped(model)
    network = network_of(found) if isinstance(found, nn.Module | View) else None
    weight = None if network is None else next(network.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def sample_frames(model: object) -> Frames:
    """One black frame of the size that a model was made for, 224 x 224 where it names none."""
    network = network_of(model)
    named = network.input_size if isinstance(network, HasInputSize) else None
    weight = next(network.parameters(), torch.empty(0))
    return weight.new_zeros(1, 3, *(named or (224, 224)))
