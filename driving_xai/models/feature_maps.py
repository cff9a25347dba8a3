"""Find a network's last feature map, the layout and geometry of its cells, and its linear head."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.hooks import RemovableHandle

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.declared import at_instant, declared_network
from driving_xai.models.forward_trace import (
    Move,
    Run,
    removed_after,
    traced,
    traced_as_far_as_it_goes,
)
from driving_xai.models.modes import evaluating
from driving_xai.types import Cells, FeatureMap, Frames, Layout

_CHANNELS_FIRST = (nn.Conv2d, nn.ConvTranspose2d, _BatchNorm, nn.GroupNorm, nn.MaxPool2d, nn.AvgPool2d)
_CHANNELS_LAST = (nn.Linear, nn.LayerNorm)
"""Not their subclasses, some of which put the channels first."""
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
_MOST_PREFIX_TOKENS = 16
"""Class and distillation tokens, registers."""

_Layout = Literal["channels-first", "channels-last", "either"]


class _Pass:
    """One forward pass, and which axes of what modules put out are rows and columns of the frame."""

    def __init__(self, network: nn.Module, frames: Frames) -> None:
        self.network, self.frames = network, frames[:1]
        self.record = traced(network, self.frames)
        self.runs = [each for each in self.record if isinstance(each, Run)]

    @cached_property
    def _larger(self) -> list[list[Run]]:
        """What runs on frames of twice the height, and of twice the width.

        Of a network that takes no such frames, the layers before the one that refuses them are seen nevertheless.
        """
        height, width = self.frames.shape[-2:]
        records = (
            traced_as_far_as_it_goes(self.network, self.frames.new_zeros(1, 3, *size))
            for size in ((2 * height, width), (height, 2 * width))
        )
        return [[each for each in record if isinstance(each, Run)] for record in records]

    def layout(self, place: int) -> _Layout | None:
        """Of what the run at this place put out; None where that is no map of several cells.

        A shape that convolutions have, and no layer that reads channels last, is settled. Else it is seen which axes
        grow with the frame. Of a network of one size nothing grows, and nothing behind an adaptive pooling.
        """
        shape = self.runs[place].gave
        if len(shape) != 4:
            return None
        found = self._known_layout(shape)
        if found != "channels-first" and (grew := self._grew(place)) not in (None, (set(), set())):
            found = _layout_of(*grew)
        elif found == "channels-last" and not _is_grid(shape[1], shape[2], *self.frames.shape[-2:]):
            found = None
        cells = 0 if found is None else min(math.prod(_sides(shape, each)) for each in _readings(found))
        return found if cells > 1 else None

    def _grew(self, place: int) -> tuple[set[int], set[int]] | None:
        """The axes that grew with the frame's height, and those with its width; None where that was not seen."""
        run, grew = self.runs[place], []
        for larger in self._larger:
            same = place < len(larger) and larger[place].module is run.module
            if not same or len(larger[place].gave) != len(run.gave):
                return None
            pairs = zip(run.gave, larger[place].gave, strict=True)
            grew.append({axis for axis, (before, after) in enumerate(pairs) if before != after})
        return grew[0], grew[1]

    def _known_layout(self, shape: torch.Size) -> _Layout | None:
        """As layers that know where channels are took or gave just such a shape."""
        like = [run.module for run in self.runs if shape in (run.took, run.gave)]
        first = any(isinstance(module, _CHANNELS_FIRST) for module in like)
        last = any(type(module) in _CHANNELS_LAST for module in like)
        if first and last:
            return "either"
        return "channels-first" if first else "channels-last" if last else None


def _layout_of(rows: set[int], columns: set[int]) -> _Layout | None:
    """Attention between tokens, [B, heads, N, N], has two axes that grow with either side, and is no map."""
    if rows <= {2} and columns <= {3}:
        return "channels-first"
    return "channels-last" if rows <= {1} and columns <= {2} else None


def _is_grid(rows: int, columns: int, height: int, width: int) -> bool:
    """Whether sides are those of the frame, each divided by the same stride, up to padding."""
    if rows > height or columns > width:
        return False
    # Unpadded convolutions take a constant number of cells from both sides; hence the margin.
    margin = 2 + max(rows, columns) // 4
    return abs(rows - columns * height / width) <= margin and abs(columns - rows * width / height) <= margin


def _readings(layout: _Layout) -> tuple[Layout, ...]:
    return ("channels-first", "channels-last") if layout == "either" else (layout,)


def _sides(shape: Sequence[int], layout: Layout) -> tuple[int, int]:
    """Rows and columns."""
    return (shape[2], shape[3]) if layout == "channels-first" else (shape[1], shape[2])


def last_feature_map(network: nn.Module, frames: Frames) -> nn.Module:
    """The layer whose output is the last feature map: what a class activation map weights.

    That is the module that ends last among those that run once, put out maps of more than one cell, channels first
    or last, and act on the scores. Where nested modules end with the same map it is the outermost: `layer4`
    of a ResNet. Adaptive pooling is passed over: VGG's puts out a map, but no new one.

    Args:
        frames: any frames of the size that will be explained; they are only looked at for shapes.

    Raises:
        UnsupportedModelError: no module puts out such a map, or tokens follow it: the scores of a
            transformer do not come from its patch embedding.
    """
    seen = _Pass(network, frames)
    times: dict[int, int] = {}
    for run in seen.runs:
        times[id(run.module)] = times.get(id(run.module), 0) + 1
    candidates = [
        place
        for place, run in reversed(list(enumerate(seen.runs)))
        if times[id(run.module)] == 1 and run.module is not network
        if not isinstance(run.module, _ADAPTIVE_POOLS)
    ]
    maps = (place for place in candidates if seen.layout(place) is not None)
    place = _first_that_acts(network, seen, maps)
    if place is None:
        raise UnsupportedModelError(
            f"{type(network).__name__} puts out no feature map of more than one cell for frames of "
            f"{frames.shape[2]} x {frames.shape[3]}; name a layer, or use larger frames"
        )
    _require_no_tokens(network, seen, place)
    return seen.runs[place].module


@torch.no_grad()
def _first_that_acts(network: nn.Module, seen: _Pass, places: Iterable[int]) -> int | None:
    """The first place whose module's output changes the scores, which that of an auxiliary head does not."""
    generator = torch.Generator().manual_seed(0)

    def disturb(_module: nn.Module, _taken: tuple, given: Tensor) -> Tensor:
        noise = torch.randn(given.shape, generator=generator).to(given)
        return given + noise * given.abs().amax().clamp_min(1)

    clean = _scores(network, seen.frames)
    first = None
    for place in places:
        first = place if first is None else first
        with removed_after([seen.runs[place].module.register_forward_hook(disturb)]):
            scores = _scores(network, seen.frames)
        if not (isinstance(scores, Tensor) and torch.equal(clean, scores)):
            return place
    return first


def _scores(network: nn.Module, frames: Frames) -> Any:
    # A model of a drive scores them as the first of one.
    model: Any = at_instant(network)
    with evaluating(network):
        return model(frames.clone())


def _require_no_tokens(network: nn.Module, seen: _Pass, place: int) -> None:
    """Raises UnsupportedModelError where the cells of the last map go on as a sequence."""
    shape = seen.runs[place].gave
    counts = [math.prod(_sides(shape, each)) for each in _readings(seen.layout(place) or "either")]
    after = [run.gave for run in seen.runs[place + 1 :] if len(run.gave) == 3]
    if any(0 <= gave[1] - cells <= _MOST_PREFIX_TOKENS for gave in after for cells in counts):
        raise UnsupportedModelError(
            f"{type(network).__name__} turns its feature map into tokens; name a layer whose output is weighted, "
            "such as the first normalisation of the last block, or use a gradient"
        )


def map_at(
    network: nn.Module, frames: Frames, layer: nn.Module, *, cells: Literal["measured", "even"] = "measured"
) -> FeatureMap:
    """What a layer puts out, as a feature map: its layout, its grid, where its cells lie.

    Args:
        frames: any frames of the size that will be explained; they are only looked at for shapes.
        cells: `even` leaves out where they lie.

    Raises:
        UnsupportedModelError: the layer does not run once, puts out neither maps nor tokens, or it cannot be said
            how its axes or its cells lie.
    """
    seen = _Pass(network, frames)
    places = [place for place, run in enumerate(seen.runs) if run.module is layer]
    name = type(layer).__name__
    if len(places) != 1:
        raise UnsupportedModelError(
            f"layer {name} ran {len(places)} times in one forward pass, expected once; choose another"
        )
    shape, layout = seen.runs[places[0]].gave, seen.layout(places[0])
    if layout == "either":
        raise UnsupportedModelError(
            f"layer {name} put out shape {tuple(shape)}, where channels may come first or last; declare feature_map "
            "(types.HasFeatureMap) on the network, or choose another layer"
        )
    if layout is not None:
        placed = _centres(seen, layer, layout) if cells == "measured" else None
        return FeatureMap(layer=layer, cells=placed, layout=layout)
    if len(shape) == 3 and (grid := _token_grid(seen, shape[1])) is not None:
        embedding, rows, columns = grid
        return FeatureMap(
            layer=layer,
            cells=_centres(seen, embedding, "channels-first") if cells == "measured" else None,
            layout="tokens",
            grid=(rows, columns),
            prefix_tokens=shape[1] - rows * columns,
        )
    raise UnsupportedModelError(
        f"layer {name} put out shape {tuple(shape)}, expected (1, C, h, w), channels last, or tokens of a grid; "
        "choose another"
    )


def _token_grid(seen: _Pass, tokens: int) -> tuple[nn.Module, int, int] | None:
    """The last map that has about as many cells as there are tokens: the module and its rows and columns."""
    for place, run in reversed(list(enumerate(seen.runs))):
        if seen.layout(place) == "channels-first":
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
    """The part of a network with a dotted name, such as `layer4.1`; of a wrapped one also with the name inside.

    Raises:
        UnsupportedModelError: there is none; the message lists the parts where the name ends.

    Example:
        >>> from driving_xai.models.wrap import wrap
        >>> model = wrap(nn.Sequential(nn.Conv2d(3, 2, 1)), outputs="regression", names=["curvature"])
        >>> named_layer(model, "network.0") is named_layer(model, "0")
        True
    """
    found, path = network, ""
    for part in name.split("."):
        children = dict(found.named_children())
        if part not in children:
            inside = declared_network(network)
            if found is network and inside is not None:
                return named_layer(inside, name)
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
    """Where the cells of a layer's output are centred in frames of any size, in pixels: the first, and the stride.

    Follows what changes the size of the grid, modules and functions alike: convolutions, poolings, cuts, margins,
    interpolations. Cell i of a layer with kernel k, stride s and padding p is centred on s * i + (k - 1) / 2 - p
    of the cells it reads. None where rows and columns have other strides, something else changes the size, or the
    place depends on the frame's size, as with TensorFlow's padding.

    Raises:
        UnsupportedModelError: the network cuts or pads the frame, and what follows cannot be said.
    """
    found = _centres(_Pass(network, frames), layer, "channels-first")
    try:
        of_larger = _centres(_Pass(network, pad(frames, (0, 1, 0, 1))), layer, "channels-first")
    except UnsupportedModelError:
        return found  # Frames of one size.
    return found if of_larger == found else None


class _Grid(NamedTuple):
    """Where the cells of a grid lie in the frame, along rows and columns."""

    first: tuple[float, float] = (0.0, 0.0)
    stride: tuple[float, float] = (1.0, 1.0)
    frame_px: tuple[int, int] | None = None

    def after(self, move: Move) -> _Grid:
        if move.kind == "resize" and (self.first, self.stride) == ((0.0, 0.0), (1.0, 1.0)):
            return _Grid(frame_px=(move.gave[2], move.gave[3]))
        first, stride = (
            (self.first[axis] + self.stride[axis] * move.first[axis], self.stride[axis] * move.stride[axis])
            for axis in (0, 1)
        )
        return _Grid((first[0], stride[0]), (first[1], stride[1]), self.frame_px)


def _centres(seen: _Pass, layer: nn.Module, layout: Layout) -> Cells | None:
    grids, cut, rearranged = _grids(seen, layer)
    if rearranged:
        raise UnsupportedModelError(
            "the frame is mirrored, turned, rolled or warped before the network's first layer, and where cells lie "
            "cannot be followed from there; do so with frames before they are explained"
        )
    (shape,) = [run.gave for run in seen.runs if run.module is layer][:1] or [torch.Size()]
    grid = grids.get(_sides(shape, layout)) if len(shape) == 4 else None
    if grid is not None and grid.stride[0] == grid.stride[1]:
        least = min(grid.first)
        offset = (grid.first[0] - least, grid.first[1] - least)
        return Cells(least, grid.stride[0], grid.frame_px, offset)
    if cut:
        raise UnsupportedModelError(
            f"the frame is cut or padded before the network's first layer, and where the cells of layer "
            f"{type(layer).__name__} lie cannot be followed from there; give cells=Cells(first_px, stride_px), or cut "
            "frames before they are explained"
        )
    return None


def _grids(seen: _Pass, layer: nn.Module) -> tuple[dict[tuple[int, int], _Grid], bool, bool]:
    """By rows and columns, the grids there are when the layer ends; whether the frame itself was cut; and rearranged.

    A size has the grid of what came to it first: a shortcut beside a convolution leads to the same cells. Before the
    first convolution there are no shortcuts, and a frame may be cut and stretched to its old size.
    """
    height, width = seen.frames.shape[-2:]
    grids, cut, rearranged, begun = {(height, width): _Grid()}, False, False, False
    for each in seen.record:
        if isinstance(each, Run):
            if each.module is layer:
                break
            continue
        if each.kind == "rearrangement":
            rearranged = rearranged or not begun
            continue
        took, gave = _sides(each.took, "channels-first"), _sides(each.gave, "channels-first")
        before = grids.get(took)
        if before is None or (gave in grids and begun) or gave == (1, 1):
            cut = cut or (not begun and each.kind == "window" and not _is_regrouped(seen.frames, each.took))
        elif took != gave:
            grids[gave] = before.after(each)
            cut = cut or (not begun and each.kind == "cut")
        begun = begun or each.kind == "window"
    return grids, cut, rearranged


def _is_regrouped(frames: Frames, took: torch.Size) -> bool:
    """Whether blocks of pixels were made channels, which cuts nothing off."""
    return frames[0].numel() == math.prod(took[1:])
