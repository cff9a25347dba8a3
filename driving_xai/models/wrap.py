"""Make a model of any network: what its scores mean, its normalisation, its frame size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from driving_xai.models.capabilities import unwrapped
from driving_xai.models.forward_trace import evaluating
from driving_xai.types import FrameModel, Frames, Kind, Outputs, Scores

Normalise = Literal["none", "imagenet"] | tuple[Sequence[float], Sequence[float]]
"""Nothing, ImageNet's mean and standard deviation, or these two for each colour."""


class WrappedModel(nn.Module):
    """A network as a `types.FrameModel`: it takes RGB frames in [0, 1] and says what its scores mean.

    It has no memory: along a drive (`step`, `at`) its state is `()`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, network: nn.Module, outputs: Outputs, *, normalise: Normalise, size: tuple[int, int] | None
    ) -> None:
        super().__init__()
        self.network, self.outputs, self.input_size = network, outputs, size
        named = {"none": ((0.0,) * 3, (1.0,) * 3), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}
        mean, std = named[normalise] if isinstance(normalise, str) else normalise
        like = next(network.parameters(), torch.empty(0))
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1).to(like))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1).to(like))
        self.training = network.training

    def forward(self, frames: Frames) -> Scores:
        """The network's scores, [B, K], in the frames' precision; a network of half precision is given frames in its own.

        Raises:
            UnsupportedModelError: the network does not take such frames, or gives no scores of its outputs.
        """
        precision = frames.dtype
        if self.input_size is not None and tuple(frames.shape[2:]) != self.input_size:
            frames = F.interpolate(frames, self.input_size, mode="bilinear", antialias=True)
        try:
            scores = self.network((frames.to(self.mean.dtype) - self.mean) / self.std)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:
            raise UnsupportedModelError(
                f"{type(self.network).__name__} does not take frames of {frames.shape[2]} x {frames.shape[3]} px, "
                f"{frames.dtype} ({str(error).splitlines()[0][:160]}); wrap it with the size that it takes"
            ) from error
        if not isinstance(scores, Tensor) or scores.shape != (len(frames), len(self.outputs.names)):
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UnsupportedModelError(
                f"{type(self.network).__name__} gave {got}, expected {(len(frames), len(self.outputs.names))}: a score "
                "for each of the outputs that were named"
            )
        return scores.to(precision)

    def step(self, frames: Frames, state: tuple[()] | None) -> tuple[Scores, None, tuple[()]]:
        """See `types.RecurrentModel`."""
        return self(frames), None, ()

    def at(self, state: tuple[()] | None) -> FrameModel:
        """The model itself: every instant is alike."""
        return self


def wrap(
    network: nn.Module,
    *,
    outputs: Literal["regression", "multilabel", "multiclass"],
    names: Sequence[str] | None = None,
    normalise: Normalise = "none",
    size: tuple[int, int] | None = None,
) -> WrappedModel:
    """A network with what its scores mean, in the mode it is in; compiled and parallel ones as the module inside.

    Args:
        network: takes [B, 3, H, W] and gives a score for each name, [B, K]: logits, or the steering of a
            regressor, the inverse turning radius in 1/m, positive to the left.
        outputs: what the scores are.
        names: of the outputs, none twice; None numbers them, after a look at one black frame.
        normalise: applied to frames in [0, 1] before the network.
        size: height and width that the network takes; other frames are resized to it, bilinearly, and maps stay
            on the frames' own grid. None takes frames as they are.

    Raises:
        ValueError: a name is missing or there twice, or a standard deviation is not over 0.
        UnsupportedModelError: names are to be counted and the network does not take the frame.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> model = wrap(net, outputs="multiclass", names=("cat", "dog"), normalise="imagenet")
        >>> model(torch.rand(5, 3, 16, 16)).shape, model.outputs.names
        (torch.Size([5, 2]), ('cat', 'dog'))
    """
    # What torch.compile and DataParallel put around a network hides its layers from hooks.
    inside = unwrapped(network)
    network = inside if isinstance(inside, nn.Module) else network
    if names is None:
        names = _numbered(network, size)
    if not names or len(set(names)) < len(names):
        raise ValueError(f"got names {list(names)}; expected one or more, none twice")
    if not isinstance(normalise, str) and not min(normalise[1]) > 0:
        raise ValueError(f"got standard deviations {list(normalise[1])}; expected over 0")
    if outputs not in get_args(Kind):
        raise ValueError(f"got outputs {outputs!r}; expected one of {', '.join(get_args(Kind))}")
    unit = "1/m" if outputs == "regression" else None
    meaning = Outputs(kind=outputs, names=tuple(names), unit=unit)
    return WrappedModel(network, meaning, normalise=normalise, size=size)


def _numbered(network: nn.Module, size: tuple[int, int] | None) -> list[str]:
    """`0`, `1` and so on for the columns of the scores."""
    weight = next(network.parameters(), torch.empty(0))
    try:
        with torch.no_grad(), evaluating(network):
            scores = network(weight.new_zeros(1, 3, *(size or (224, 224))))
    except RuntimeError as error:
        raise UnsupportedModelError(
            f"{type(network).__name__} does not take frames of {size or (224, 224)} px "
            f"({str(error).splitlines()[0]}); give size, or names"
        ) from error
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        raise UnsupportedModelError(f"{type(network).__name__} gave no scores (B, K); wrap what gives such")
    return [str(column) for column in range(scores.shape[1])]
