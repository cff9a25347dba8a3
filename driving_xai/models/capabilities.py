"""What a model offers an explainer: declared by its class, or found in a plain torchvision or timm network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import nn

from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import UnsupportedModelError
from driving_xai.models.declared import (
    at_instant,
    declared_encoder,
    declared_feature_map,
    declared_input_size,
    declared_maps,
    declared_network,
    declared_outputs,
    declared_vit,
    is_recurrent,
)
from driving_xai.models.feature_maps import last_feature_map, map_at, named_layer
from driving_xai.models.modes import is_exported, part_in_training
from driving_xai.types import FeatureMap, FrameModel, Frames, Outputs, OwnMap, Scores

_PARALLEL = (nn.DataParallel, nn.parallel.DistributedDataParallel)


def frame_model(model: object) -> FrameModel:
    """A model as explainers and metrics call it: one instant, frames to scores.

    A recurrent model is taken at the first frame of a drive; `model.at(state)` is its view of another. A
    compiled or data-parallel network is called through the module inside, where hooks are seen.

    Raises:
        UnsupportedModelError: it cannot be called.
    """
    found = unwrapped(model)
    if not is_recurrent(found) and not callable(found):
        raise UnsupportedModelError(
            f"{type(found).__name__} cannot be called; give a network, or wrap(network)"
        )
    return at_instant(found)


@torch.no_grad()
def scores_of(view: FrameModel, frames: Frames) -> Scores:
    """What a view of an instant says of frames, which stay as they are: a first layer may work in place.

    Example:
        >>> frames = torch.full((1, 3, 2, 2), -1.0)
        >>> _ = scores_of(nn.Sequential(nn.ReLU(inplace=True), nn.Flatten()), frames)
        >>> frames.unique()
        tensor([-1.])
    """
    return view(frames.clone())


def unwrapped(model: object) -> object:
    """The model inside a loaded checkpoint, torch.compile, DataParallel and DistributedDataParallel; any other
    as it is."""
    while True:
        if isinstance(model, Checkpoint):
            model = model.model
        elif isinstance(model, _PARALLEL):
            model = model.module
        elif isinstance(model, nn.Module) and isinstance(
            inner := getattr(model, "_orig_mod", None), nn.Module
        ):
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
        inside = declared_network(found)
        if inside is None:
            raise UnsupportedModelError(
                f"{type(found).__name__} is no torch.nn.Module and has no attribute network that is one; "
                "give a network, or use a method that only calls the model, such as rise"
            )
        found = unwrapped(inside)
    return found


def feature_map_of(
    model: object,
    frames: Frames,
    *,
    layer: str | nn.Module | None = None,
    cells: Literal["measured", "even"] = "measured",
) -> FeatureMap:
    """The feature map that class activation mapping weights, with cells measured at the size at which the network
    sees the frames.

    Args:
        layer: a module of the network, or its dotted name; None takes what the network declares, or else
            its last feature map, of a Vision Transformer the first normalisation of its last block.
        cells: `even` does not look where they lie.

    Raises:
        UnsupportedModelError: there is none, or the layer is unknown or puts out no maps, or the network cuts frames
            and it cannot be said where its cells lie.
    """
    network = network_of(model)
    declared = declared_feature_map(network)
    if isinstance(layer, str):
        layer = named_layer(network, layer)
    if declared is not None and layer in (None, declared.layer):
        return declared
    size = seen_size(network, frames)
    if size == tuple(frames.shape[2:]):
        layer = layer or _last_normalisation(network) or last_feature_map(network, frames)
        return map_at(network, frames, layer, cells=cells)
    found = feature_map_of(network, frames.new_zeros(1, 3, *size), layer=layer, cells=cells)
    return replace(found, cells=None if found.cells is None else found.cells._replace(frame_px=size))


def declared_size(model: object) -> tuple[int, int] | None:
    """Height and width of the frames that a network says it was made for; None where it says none."""
    return declared_input_size(network_of(model))


def seen_size(model: object, frames: Frames) -> tuple[int, int]:
    """Height and width at which a network sees frames: those it was made for, or the frames' own."""
    return declared_size(model) or (frames.shape[2], frames.shape[3])


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
        UnsupportedModelError: there is none, or several, or its scores are made of all tokens and not of CLS.
    """
    network = network_of(model)
    if (declared := declared_vit(network)) is not None:
        return declared
    found: Any = _timm_transformer(network)
    if found is None:
        raise UnsupportedModelError(
            f"{type(network).__name__} has no Vision Transformer of timm's; use a gradient or a perturbation"
        )
    if found.global_pool not in _READS_CLS:
        raise UnsupportedModelError(
            f"{type(found).__name__} pools its tokens (global_pool={found.global_pool!r}): its scores do not come from "
            "CLS, whose attention these methods follow; use grad-cam, a gradient or a perturbation"
        )
    return found


_READS_CLS = ("token", "")
"""timm's names: the class token, and all tokens as they are for whoever called."""


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
    written = declared_maps(network)
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
    written = declared_maps(network)
    for found in written.values():
        if found.read == "attention":
            return found
    raise UnsupportedModelError(
        f"{type(network).__name__} writes no attention map; use a method that needs none"
    )


def encoder_of(model: object, frames: Frames) -> nn.Sequential:
    """The plain chain of layers with which a network begins: declared, or the one that puts out its last feature map.

    A chain that only begins a network, its stem, does not say where the network is active.

    Args:
        frames: of the size that will be explained.

    Raises:
        UnsupportedModelError: there is none.
    """
    network = network_of(model)
    if (declared := declared_encoder(network)) is not None:
        return declared
    chains = [each for each in network.modules() if isinstance(each, nn.Sequential) and _is_plain(list(each))]
    if chains:
        last = feature_map_of(network, frames, cells="even").layer
        chains = [chain for chain in chains if last in (chain, *chain)]
    if not chains:
        raise UnsupportedModelError(
            f"{type(network).__name__} has no plain chain of layers from the frame to its last feature map; "
            "give stages of your choice, or use grad-cam"
        )
    return chains[0]


def _is_plain(layers: Sequence[nn.Module]) -> bool:
    first = layers[0] if layers else None
    return (
        isinstance(first, nn.Conv2d) and first.in_channels == 3 and not any(any(x.children()) for x in layers)
    )


def require_eval_mode(model: object) -> None:
    """Makes sure that a model's network is in eval mode, all of it; see `modes.part_in_training`.

    In training mode layers mix the frames of a batch, draw, and change their own statistics. A plain function has
    no mode.

    Raises:
        UnsupportedModelError: a part is in training mode.

    Example:
        >>> require_eval_mode(nn.Sequential(nn.Linear(2, 2), nn.Dropout()).eval())
        >>> require_eval_mode(nn.Dropout())
        Traceback (most recent call last):
        driving_xai.errors.UnsupportedModelError: Dropout is in training mode; call eval() on the model first
    """
    network = network_or_none(model)
    found = None if network is None else part_in_training(network)
    if found is None:
        return
    name, part = found
    if is_exported(part):
        raise UnsupportedModelError(
            "the network was exported in training mode; call eval() on it and export it again"
        )
    what = f"layer {name} ({type(part).__name__})" if name else type(part).__name__
    raise UnsupportedModelError(f"{what} is in training mode; call eval() on the model first")


def outputs_of(model: object) -> Outputs:
    """What the columns of a model's scores mean.

    Raises:
        UnsupportedModelError: it does not say so.

    Example:
        >>> outputs_of(nn.Identity())
        Traceback (most recent call last):
        driving_xai.errors.UnsupportedModelError: Identity says nothing of its outputs; wrap it: driving_xai.wrap(net, ...)
    """
    found = unwrapped(model)
    outputs = declared_outputs(found)
    if outputs is None:
        raise UnsupportedModelError(
            f"{type(found).__name__} says nothing of its outputs; wrap it: driving_xai.wrap(net, ...)"
        )
    return outputs


def device_of(model: object) -> torch.device:
    """Where a model computes: where its first weight lies, and the CPU where it has none.

    Example:
        >>> device_of(nn.Identity())
        device(type='cpu')
    """
    network = network_or_none(model)
    weight = None if network is None else next(network.parameters(), None)
    return torch.device("cpu") if weight is None else weight.device


def network_or_none(model: object) -> nn.Module | None:
    """The module of a model; None of one that is only called."""
    with suppress(UnsupportedModelError):
        return network_of(model)
    return None


def sample_frames(model: object) -> Frames:
    """One black frame of the size that a model was made for, 224 x 224 where it names none."""
    network = network_of(model)
    weight = next(network.parameters(), torch.empty(0))
    return weight.new_zeros(1, 3, *(declared_size(network) or (224, 224)))
