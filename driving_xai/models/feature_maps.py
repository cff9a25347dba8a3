"""What a convolutional network looks like from outside: its last feature map, where its cells lie, its head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from driving_xai.errors import UnsupportedModelError
from driving_xai.types import Frames

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)


class _Run(NamedTuple):
    """One run of a module in a forward pass; the shapes of its first input and of its output."""

    module: nn.Module
    took: torch.Size
    gave: torch.Size


def last_feature_map(network: nn.Module, frames: Frames) -> nn.Module:
    """The layer whose output is the last feature map: what a class activation map weights.

    That is the module that ends last among those that run once and put out maps of more than one
    cell. Where nested modules end with the same map it is the outermost: `layer4` of a ResNet.
    Adaptive pooling is passed over: VGG's puts out a map, but no new one.

    Args:
        frames: any frames of the size that will be explained; they are only looked at for shapes.

    Raises:
        UnsupportedModelError: no module puts out such a map.
    """
    runs = _runs(network, frames)
    times: dict[int, int] = {}
    for run in runs:
        times[id(run.module)] = times.get(id(run.module), 0) + 1
    for run in reversed(runs):
        alone = times[id(run.module)] == 1 and run.module is not network
        if alone and _is_map(run.gave) and not isinstance(run.module, _ADAPTIVE_POOLS):
            return run.module
    raise UnsupportedModelError(
        f"{type(network).__name__} puts out no feature map of more than one cell for frames of "
        f"{frames.shape[2]} x {frames.shape[3]}; name a layer, or use larger frames"
    )


def named_layer(network: nn.Module, name: str) -> nn.Module:
    """The part of a network with a dotted name, such as `layer4.1`.

    Raises:
        UnsupportedModelError: there is none; the message lists the parts where the name ends.
    """
    found, path = network, ""
    for part in name.split("."):
        children = dict(found.named_children())
        if part not in children:
            raise UnsupportedModelError(
                f"layer {name!r} is unknown: {path or type(network).__name__} has {', '.join(children) or 'no parts'}"
            )
        found, path = children[part], f"{path}.{part}".lstrip(".")
    return found


def linear_head(network: nn.Module, frames: Frames, layer: nn.Module) -> nn.Linear | None:
    """The linear layer that turns the spatial mean of `layer`'s output into the scores, or None.

    What lies between is checked on the values of these frames, so that a pooling, dropout or flatten
    of any name is recognised, and an activation that changes anything is not.
    """
    inputs: dict[nn.Linear, Tensor] = {}
    maps: list[Tensor] = []

    def remember_input(module: nn.Module, taken: tuple[Tensor, ...]) -> None:
        if isinstance(module, nn.Linear):
            inputs[module] = taken[0]

    def handles() -> Iterator[RemovableHandle]:
        yield from (module.register_forward_pre_hook(remember_input) for module in network.modules())
        # Cloned, because a following in-place activation would hide that it changes the maps.
        yield layer.register_forward_hook(lambda _module, _taken, given: maps.append(given.clone()))

    with torch.no_grad(), evaluating(network), removed_after(handles()):
        scores = network(frames)
    if not inputs or len(maps) != 1 or maps[0].dim() != 4:
        return None
    last, taken = list(inputs.items())[-1]
    return last if is_linear_head(last, maps[0], taken, scores) else None


def is_linear_head(head: nn.Linear, maps: Tensor, taken: Tensor, scores: Tensor) -> bool:
    """Whether a linear layer took the maps' spatial mean and gave the scores, to rounding."""
    pooled = maps.mean((2, 3))
    if pooled.shape != taken.shape or scores.shape != (len(maps), head.out_features):
        return False
    rounding = 100 * torch.finfo(maps.dtype).eps
    scale = float(pooled.abs().amax().clamp_min(torch.finfo(maps.dtype).tiny))
    return torch.allclose(pooled, taken, rtol=rounding, atol=rounding * scale) and torch.equal(
        nn.functional.linear(taken, head.weight, head.bias), scores
    )


def cell_centres(network: nn.Module, frames: Frames, layer: nn.Module) -> tuple[float, float] | None:
    """Where the cells of a layer's output are centred in the frame, in pixels: the first, and the stride.

    Follows the windows of convolutions and pools, one for each change of the grid's size: cell i of a
    layer with kernel k, stride s and padding p is centred on s * i + (k - 1) / 2 - p of the cells it
    reads. None where the two axes differ or a window is padded in a way of its own (TensorFlow's).
    """
    first, stride, size = 0.0, 1, frames.shape[-2:]
    for run in _runs(network, frames):
        changes = run.took[-2:] == size and run.gave[-2:] != size and len(run.gave) == 4
        if changes and isinstance(run.module, (nn.Conv2d, *_POOLS)):
            window = _window(run.module)
            if window is None:
                return None
            first, stride, size = first + window[0] * stride, stride * window[1], run.gave[-2:]
        if run.module is layer:
            return (first, float(stride)) if run.gave[-2:] == size else None
    return None


def _window(module: nn.Module) -> tuple[float, int] | None:
    """How far a window's centre lies from its first cell, and its stride; None where the axes differ."""
    values = []
    for name in ("kernel_size", "stride", "padding", "dilation"):
        value = getattr(module, name, 1)
        pair = value if isinstance(value, tuple) else (value, value)
        if pair[0] != pair[1] or isinstance(value, str):
            return None
        values.append(pair[0])
    kernel, stride, padding, dilation = values
    # Subclasses that pad inside forward, such as timm's, do not say how far.
    own = type(module) in (nn.Conv2d, *_POOLS)
    return (dilation * (kernel - 1) / 2 - padding, stride) if own or stride == 1 else None


def _is_map(shape: torch.Size) -> bool:
    return len(shape) == 4 and shape[2] * shape[3] > 1


@torch.no_grad()
def _runs(network: nn.Module, frames: Frames) -> list[_Run]:
    """Every run of every module in one forward pass, in the order in which they end."""
    runs: list[_Run] = []

    def remember(module: nn.Module, taken: tuple, given: object) -> None:
        if isinstance(given, Tensor) and taken and isinstance(taken[0], Tensor):
            runs.append(_Run(module, taken[0].shape, given.shape))

    handles = (module.register_forward_hook(remember) for module in network.modules())
    # A model of a drive judges them as the first of one.
    model: Any = network
    judge = model.at(None) if hasattr(model, "at") else model
    with evaluating(network), removed_after(handles):
        judge(frames)
    return runs


@contextmanager
def removed_after(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Removes hooks at the end of the scope, also after a failure.

    Args:
        handles: of hooks that are registered; a generator that registers them may fail on its way, and
            those it has registered are removed.
    """
    registered: list[RemovableHandle] = []
    try:
        registered.extend(handles)
        yield
    finally:
        for handle in registered:
            handle.remove()


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards each part is in the mode it was in."""
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
