"""Find a network's last feature map, the layout and geometry of its cells, and its linear head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from driving_xai.errors import UnsupportedModelError
from driving_xai.types import Cells, FeatureMap, Frames, RecurrentModel

_POOLS = (nn.MaxPool2d, nn.AvgPool2d)
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_MOST_PREFIX_TOKENS = 16
"""Class and distillation tokens, registers."""


class _Run(NamedTuple):
    """One run of a module in a forward pass; the shapes of its first input and of its output."""

    module: nn.Module
    took: torch.Size
    gave: torch.Size


def last_feature_map(network: nn.Module, frames: Frames) -> nn.Module:
    """The layer whose output is the last feature map: what a class activation map weights.

    That is the module that ends last among those that run once and put out maps of more than one
    cell, channels first or last. Where nested modules end with the same map it is the outermost: `layer4`
    of a ResNet. Adaptive pooling is passed over: VGG's puts out a map, but no new one.

    Args:
        frames: any frames of the size that will be explained; they are only looked at for shapes.

    Raises:
        UnsupportedModelError: no module puts out such a map, or tokens follow it: the scores of a
            transformer do not come from its patch embedding.
    """
    runs = _runs(network, frames)
    times: dict[int, int] = {}
    for run in runs:
        times[id(run.module)] = times.get(id(run.module), 0) + 1
    for place, run in reversed(list(enumerate(runs))):
        alone = times[id(run.module)] == 1 and run.module is not network
        layout = None if isinstance(run.module, _ADAPTIVE_POOLS) else _layout(run, runs, frames)
        if alone and layout is not None:
            _require_no_tokens(network, run, layout, runs[place + 1 :])
            return run.module
    raise UnsupportedModelError(
        f"{type(network).__name__} puts out no feature map of more than one cell for frames of "
        f"{frames.shape[2]} x {frames.shape[3]}; name a layer, or use larger frames"
    )


def _require_no_tokens(network: nn.Module, last: _Run, layout: str, after: Sequence[_Run]) -> None:
    """Raises UnsupportedModelError where the cells of the last map go on as a sequence."""
    cells = math.prod(last.gave[2:] if layout == "channels-first" else last.gave[1:3])
    if any(len(run.gave) == 3 and 0 <= run.gave[1] - cells <= _MOST_PREFIX_TOKENS for run in after):
        raise UnsupportedModelError(
            f"{type(network).__name__} turns its feature map into tokens; name a layer whose output is weighted, "
            "such as the first normalisation of the last block, or use a gradient"
        )


def _layout(
    run: _Run, runs: Sequence[_Run], frames: Frames
) -> Literal["channels-first", "channels-last"] | None:
    """As `layout_of`, but what a convolution put out has its channels first, whatever the sides: PilotNet's last
    map has 1 x 18 cells of a frame of 66 x 200."""
    if len(run.gave) == 4 and run.gave[2] * run.gave[3] > 1:
        ends = (each for each in runs if isinstance(each.module, nn.Conv2d))
        if any(each.gave == run.gave for each in ends):
            return "channels-first"
    return layout_of(run.gave, frames)


def layout_of(shape: Sequence[int], frames: Frames) -> Literal["channels-first", "channels-last"] | None:
    """Which sides of a layer's output are rows and columns; None where it is no map of several cells.

    A map's sides are those of the frame, each divided by the same stride, up to padding. Channels rarely
    are; where both readings fit, channels come first, as in torch's own layers.
    """
    if len(shape) != 4:
        return None
    height, width = frames.shape[-2:]
    if _is_grid(shape[2], shape[3], height, width):
        return "channels-first"
    return "channels-last" if _is_grid(shape[1], shape[2], height, width) else None


def _is_grid(rows: int, columns: int, height: int, width: int) -> bool:
    if rows * columns <= 1 or rows > height or columns > width:
        return False
    # Unpadded convolutions take a constant number of cells from both sides; hence the margin.
    margin = 2 + max(rows, columns) // 4
    return abs(rows - columns * height / width) <= margin and abs(columns - rows * width / height) <= margin


def map_at(network: nn.Module, frames: Frames, layer: nn.Module) -> FeatureMap:
    """What a layer puts out, as a feature map: its layout, its grid, where its cells lie.

    Args:
        frames: any frames of the size that will be explained; they are only looked at for shapes.

    Raises:
        UnsupportedModelError: the layer does not run, or puts out neither maps nor tokens.
    """
    runs = _runs(network, frames)
    here = [run for run in runs if run.module is layer]
    name = type(layer).__name__
    if not here:
        raise UnsupportedModelError(
            f"layer {name} ran 0 times in one forward pass, expected once; choose another"
        )
    shape = here[0].gave
    if (layout := _layout(here[0], runs, frames)) is not None:
        return FeatureMap(layer=layer, cells=_centres(runs, frames, layer), layout=layout)
    if len(shape) == 3 and (grid := _token_grid(runs, shape[1], frames)) is not None:
        embedding, rows, columns = grid
        return FeatureMap(
            layer=layer,
            cells=_centres(runs, frames, embedding),
            layout="tokens",
            grid=(rows, columns),
            prefix_tokens=shape[1] - rows * columns,
        )
    raise UnsupportedModelError(
        f"layer {name} put out shape {tuple(shape)}, expected ({len(frames)}, C, h, w), channels last, or tokens "
        "of a grid; choose another"
    )


def _token_grid(runs: Sequence[_Run], tokens: int, frames: Frames) -> tuple[nn.Module, int, int] | None:
    """The last map that has about as many cells as there are tokens: the module and its rows and columns."""
    for run in reversed(runs):
        if layout_of(run.gave, frames) == "channels-first":
            rows, columns = run.gave[2:]
            if 0 <= tokens - rows * columns <= _MOST_PREFIX_TOKENS:
                return run.module, rows, columns
    return None


def as_maps(output: Tensor, at: FeatureMap) -> Float[Tensor, "B C h w"]:
    """A layer's output, or its gradient, as maps with channels first.

    Raises:
        UnsupportedModelError: it does not have the layout.
    """
    if at.layout == "tokens":
        assert at.grid is not None
        if output.dim() != 3 or output.shape[1] != at.prefix_tokens + math.prod(at.grid):
            raise UnsupportedModelError(
                f"layer {type(at.layer).__name__} put out shape {tuple(output.shape)}, expected {at.prefix_tokens} + "
                f"{at.grid[0]} x {at.grid[1]} tokens"
            )
        return output[:, at.prefix_tokens :].mT.unflatten(2, at.grid)
    if output.dim() != 4:
        raise UnsupportedModelError(
            f"layer {type(at.layer).__name__} put out shape {tuple(output.shape)}, expected (B, C, h, w); choose another"
        )
    return output if at.layout == "channels-first" else output.permute(0, 3, 1, 2)


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


def cell_centres(network: nn.Module, frames: Frames, layer: nn.Module) -> Cells | None:
    """Where the cells of a layer's output are centred in the frame, in pixels: the first, and the stride.

    Follows the windows of convolutions and pools, one for each change of the grid's size: cell i of a
    layer with kernel k, stride s and padding p is centred on s * i + (k - 1) / 2 - p of the cells it
    reads. None where the two axes differ or a window is padded in a way of its own (TensorFlow's).
    """
    return _centres(_runs(network, frames), frames, layer)


def _centres(runs: Sequence[_Run], frames: Frames, layer: nn.Module) -> Cells | None:
    first, stride, size = 0.0, 1, frames.shape[-2:]
    for run in runs:
        changes = run.took[-2:] == size and run.gave[-2:] != size and len(run.gave) == 4
        if changes and isinstance(run.module, (nn.Conv2d, *_POOLS)):
            window = _window(run.module)
            if window is None:
                return None
            first, stride, size = first + window[0] * stride, stride * window[1], run.gave[-2:]
        if run.module is layer:
            return Cells(first, float(stride)) if run.gave[-2:] == size else None
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


@torch.no_grad()
def _runs(network: nn.Module, frames: Frames) -> list[_Run]:
    """Every run of every module in one forward pass, in the order in which they end."""
    runs: list[_Run] = []

    def remember(module: nn.Module, taken: tuple, given: object) -> None:
        if isinstance(given, Tensor) and taken and isinstance(taken[0], Tensor):
            runs.append(_Run(module, taken[0].shape, given.shape))

    handles = (module.register_forward_hook(remember) for module in network.modules())
    # A model of a drive scores them as the first of one.
    model: Any = network.at(None) if isinstance(network, RecurrentModel) else network
    with evaluating(network), removed_after(handles):
        model(frames)
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
