"""VisualBackProp: where all layers of a plain convolutional encoder are active together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.base import Explainer
from driving_xai.explain.grid import to_frame_grid
from driving_xai.models.capabilities import encoder_of, frame_model, seen_size
from driving_xai.models.forward_trace import removed_after
from driving_xai.targets import magnitude
from driving_xai.types import FrameModel, Frames, Saliency, Target

_RESIZING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_HEAD = (nn.Flatten, nn.Linear, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
"""What ends the features in a network that is one chain of layers."""


class Stage(NamedTuple):
    """A step of an encoder: a convolution or pooling, up to what follows it before the next."""

    resizing: nn.Module
    """Whose kernel, stride and padding say how its output lies over its input."""
    end: nn.Module
    """Whose output is averaged: the activation, as a rule."""


def stages(encoder: nn.Sequential) -> list[Stage]:
    """The stages of a chain of layers, from the frame on.

    Raises:
        UnsupportedModelError: it is no plain chain that begins with a convolution.
    """
    found: list[Stage] = []
    for layer in encoder:
        if isinstance(layer, _HEAD):
            break
        if any(layer.children()):
            raise UnsupportedModelError(
                f"{type(layer).__name__} is no single layer; VisualBackProp needs a plain chain of them, "
                "or stages of your choice"
            )
        if isinstance(layer, _RESIZING):
            found.append(Stage(layer, layer))
        elif found:
            found[-1] = Stage(found[-1].resizing, layer)
    if not found or not isinstance(found[0].resizing, nn.Conv2d):
        raise UnsupportedModelError(
            "the encoder does not begin with a convolution; give stages of your choice"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class VisualBackProp(Explainer):
    """The averages over channels of all stages' features, multiplied from the last stage to the frame.

    The last average is upscaled by a transposed convolution of ones with its stage's own kernel, stride
    and padding, multiplied by the average before, and so on down to the frame. Values are >= 0 and not
    normalised. The map does not depend on the target, nor on what the model makes of the features.

    Source: Bojarski et al. 2018, section III (VisualBackProp); 2017 for PilotNet.
    Deviation: the last stage of the steering model has no ReLU, so averages are taken of the positive
    part; pooling counts as a stage; biases and batch normalisation act before the average.

    Args:
        stages: from the frame on, each running once in a forward pass; see `stages`. None takes those of the
            plain chain of layers with which the network begins, where it puts out the last feature map.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> from driving_xai.targets import magnitude
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> VisualBackProp()(model, torch.rand(2, 3, 80, 160), magnitude).shape
        torch.Size([2, 80, 160])
    """

    stages: Sequence[Stage] | None = None

    def _check(self, model: object, frames: Frames) -> None:
        self._explain(frame_model(model), frames, magnitude)

    def _stages(self, model: object, frames: Frames) -> Sequence[Stage]:
        return self.stages or self._remembered(model, frames, _stages_of)

    @torch.no_grad()
    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        chain = self._stages(model, frames)
        with _averages(chain) as averages:
            model(frames)
        for stage, seen in zip(chain, averages, strict=True):
            if len(seen) != 1 or len(seen[0]) != len(frames):
                raise UnsupportedModelError(
                    f"layer {type(stage.end).__name__} gave {len(seen)} outputs in one forward pass, expected "
                    "one for all frames; choose other stages"
                )
        (mask,) = averages[-1]
        for stage, (below,) in zip(chain[:0:-1], averages[-2::-1], strict=True):
            mask = below * _upscaled(mask, stage.resizing, below.shape[-2:])
        seen_px = seen_size(model, frames)
        mask = _upscaled(mask, chain[0].resizing, seen_px).squeeze(1)
        return mask if seen_px == tuple(frames.shape[2:]) else to_frame_grid(mask, frames)


def _stages_of(model: object, frames: Frames) -> Sequence[Stage]:
    return tuple(stages(encoder_of(model, frames)))


@contextmanager
def _averages(stages: Sequence[Stage]) -> Iterator[list[list[Float[Tensor, "B 1 h w"]]]]:
    """Lists that receive the mean over channels of the positive part of each stage's output."""
    averages: list[list[Tensor]] = [[] for _ in stages]

    def average(seen: list[Tensor], _layer: nn.Module, _inputs: tuple, output: Tensor) -> None:
        if not isinstance(output, Tensor) or output.dim() != 4:
            raise UnsupportedModelError(
                f"layer {type(_layer).__name__} puts out no feature maps; choose other stages"
            )
        seen.append(output.relu().mean(1, keepdim=True))

    handles = (
        stage.end.register_forward_hook(partial(average, seen))
        for stage, seen in zip(stages, averages, strict=True)
    )
    with removed_after(handles):
        yield averages


def _upscaled(
    maps: Float[Tensor, "B 1 h w"], resizing: nn.Module, size: Sequence[int]
) -> Float[Tensor, "B 1 H W"]:
    """Each value added to every pixel that its stage saw it from."""
    kernel, stride, padding, dilation = (
        _pair(getattr(resizing, name, 1)) for name in ("kernel_size", "stride", "padding", "dilation")
    )
    # Rows and columns at the end that the stage's stride has left out.
    left_out = [
        full - ((short - 1) * s - 2 * p + d * (k - 1) + 1)
        for full, short, k, s, p, d in zip(
            size, maps.shape[-2:], kernel, stride, padding, dilation, strict=True
        )
    ]
    if any(not 0 <= out < step for out, step in zip(left_out, stride, strict=True)):
        raise UnsupportedModelError(
            f"{type(resizing).__name__} does not turn {tuple(size)} into {tuple(maps.shape[-2:])}; "
            "something between the stages resizes; choose other stages"
        )
    ones = maps.new_ones(1, 1, *kernel)
    return F.conv_transpose2d(maps, ones, None, stride, padding, tuple(left_out), dilation=dilation)


def _pair(value: int | str | tuple[int, int]) -> tuple[int, int]:
    if isinstance(value, str):
        raise UnsupportedModelError(
            f"padding {value!r} is not supported by VisualBackProp; give it in numbers"
        )
    return value if isinstance(value, tuple) else (value, value)
