"""Activations and gradients at a layer, taken with hooks that live only inside a `with`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.capabilities import frame_model, network_or_none
from driving_xai.models.feature_maps import as_maps, is_linear_head
from driving_xai.models.forward_trace import removed_after
from driving_xai.types import FeatureMap, FrameModel, Frames, Scores, Target


class LayerGradient(NamedTuple):
    """A layer's output and the gradient of each sample's target with respect to it."""

    activation: Float[Tensor, "B C h w"]
    gradient: Float[Tensor, "B C h w"]


def layer_gradient(
    model: FrameModel, frames: Frames, target: Target, *, layer: nn.Module | FeatureMap
) -> LayerGradient:
    """Runs the model once forward, and backward only as far as the layer's output.

    Nothing is recorded for the part of the model before the layer. Weights, gradients, modes and
    frames stay as they are, also where the model fails.

    Args:
        model: in eval mode; scores each frame by itself, so that one backward pass serves the whole batch. A
            recurrent model's state must not come from `torch.inference_mode` (use `no_grad`).
        layer: a part of the model, in eval mode, that runs once in a forward pass; a bare module puts out
            maps with channels first, a `FeatureMap` says how else.

    Raises:
        UnsupportedModelError: the layer is in training mode, does not run exactly once, puts out no feature maps, or
            the target does not depend on it.
    """
    at = layer if isinstance(layer, FeatureMap) else FeatureMap(layer=layer)
    name = type(at.layer).__name__
    if at.layer.training:
        raise UnsupportedModelError(f"layer {name} is in training mode; call eval() on the model first")
    with _graph_starting_at(at.layer) as outputs, _recurrent_layers_without_cudnn(model):
        values = target(model(frames))
        if len(outputs) != 1:
            raise UnsupportedModelError(
                f"layer {name} ran {len(outputs)} times in one forward pass, expected once; choose another"
            )
        (activation,) = outputs
        maps = as_maps(activation, at)
        if len(maps) != len(frames):
            raise UnsupportedModelError(
                f"layer {name} put out shape {tuple(activation.shape)}, expected ({len(frames)}, C, h, w)"
            )
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), activation, allow_unused=True)
        if gradient is None:
            raise UnsupportedModelError(f"the target does not depend on layer {name}; choose another")
    return LayerGradient(maps.detach(), as_maps(gradient, at))


def input_gradient(model: FrameModel, frames: Frames, target: Target) -> Frames:
    """The gradient of each frame's target with respect to its own pixels.

    Weights, gradients, modes and frames stay as they are, also where the model fails.

    Args:
        model: in eval mode; judges each frame by itself, so that one backward pass serves the whole batch. A
            recurrent model's state must not come from `torch.inference_mode` (use `no_grad`).

    Raises:
        UnsupportedModelError: the target does not depend on the pixels.
    """
    with torch.inference_mode(False), torch.enable_grad(), _recurrent_layers_without_cudnn(model):
        leaf = frames.detach().clone().requires_grad_()
        values = target(model(leaf))
        gradient = None
        if values.requires_grad:
            (gradient,) = torch.autograd.grad(values.sum(), leaf, allow_unused=True)
    if gradient is None:
        raise UnsupportedModelError(
            "the target has no gradient with respect to the frames; use another method"
        )
    return gradient


def require_pixel_gradient(model: object, frames: Frames) -> None:
    """Makes sure, with one pass of one frame, that a model's scores have a gradient with respect to its pixels.

    Raises:
        UnsupportedModelError: they have none, as where the model decides or rounds.
    """
    input_gradient(frame_model(model), frames[:1], lambda scores: scores.sum(1))


def pooled_gradient(
    model: FrameModel, frames: Frames, target: Target, *, layer: nn.Module, head: nn.Linear
) -> LayerGradient:
    """What `layer_gradient` gives, from one forward pass, where the scores are a linear layer of the
    spatial mean of the layer's output.

    Then dy/dA^k is the same at every position: sum_c dy/ds_c w_ck / Z. That holds for every target.

    Raises:
        UnsupportedModelError: for these frames the head does not take the mean of the layer's output,
            or does not give the scores; or the target does not depend on the scores.

    Source: Zhou et al. 2016 (CAM), section 2; Selvaraju et al. 2017, section 3.1.
    """
    maps: list[Tensor] = []
    taken: list[Tensor] = []
    handles = [
        # Cloned, because a following in-place layer may write on it.
        layer.register_forward_hook(lambda _layer, _inputs, output: maps.append(output.clone())),
        head.register_forward_pre_hook(lambda _head, inputs: taken.append(inputs[0])),
    ]
    with torch.inference_mode(False), torch.no_grad(), removed_after(handles):
        scores = model(frames)
        if not (len(maps) == len(taken) == 1 and is_linear_head(head, maps[0], taken[0], scores)):
            raise UnsupportedModelError(
                f"the scores are no linear layer of the mean of layer {type(layer).__name__}; leave head=None"
            )
        slope = _slope(target, scores)
        weights = slope @ head.weight / maps[0][0, 0].numel()
    return LayerGradient(maps[0], weights[:, :, None, None].expand_as(maps[0]))


@torch.enable_grad()
def _slope(target: Target, scores: Scores) -> Float[Tensor, "B K"]:
    """The gradient of each sample's target with respect to its scores."""
    leaf = scores.detach().clone().requires_grad_()
    values = target(leaf)
    if not values.requires_grad:
        raise UnsupportedModelError("the target does not depend on the scores; choose another")
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return slope


@contextmanager
def _graph_starting_at(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Records gradients from the layer's output on; the list receives that output at each run."""
    outputs: list[Tensor] = []

    def start_graph(_layer: nn.Module, _inputs: tuple, output: Tensor) -> Tensor:
        if not isinstance(output, Tensor):
            raise UnsupportedModelError(
                f"layer {type(layer).__name__} puts out {type(output).__name__}, expected one tensor"
            )
        leaf = output.detach().requires_grad_()
        outputs.append(leaf)
        torch.set_grad_enabled(True)
        # A following in-place layer may write on a clone, never on the leaf itself.
        return leaf.clone()

    # Leaving `no_grad` restores the caller's grad mode, whatever the hook has set.
    handle = layer.register_forward_hook(start_graph)
    with torch.inference_mode(False), torch.no_grad(), removed_after([handle]):
        yield outputs


@contextmanager
def _recurrent_layers_without_cudnn(model: FrameModel) -> Iterator[None]:
    """Switches cuDNN off from the first recurrent layer that runs to the end of the scope.

    cuDNN's recurrent layers have no backward pass in eval mode, and switching to training mode would
    change the model: https://github.com/pytorch/pytorch/issues/15788. Layers that run before the
    first recurrent one, the convolutions of a CNN-LSTM, keep cuDNN; a plain function, whose layers cannot be
    seen, goes without.
    """
    enabled = torch.backends.cudnn.enabled

    def leave_cudnn(_module: nn.Module, _inputs: tuple) -> None:
        torch.backends.cudnn.enabled = False

    network = network_or_none(model)
    layers = [] if network is None else [each for each in network.modules() if isinstance(each, nn.RNNBase)]
    try:
        if network is None:
            torch.backends.cudnn.enabled = False
        with removed_after(layer.register_forward_pre_hook(leave_cudnn) for layer in layers):
            yield
    finally:
        torch.backends.cudnn.enabled = enabled
