"""Make a model of any network: what its scores mean, its normalisation, its frame size."""

from __future__ import annotations

import math
from collections.abc import Iterable, KeysView, Mapping, Sequence, Set
from numbers import Real
from typing import Literal, Self, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.backbone import IMAGENET_MEAN, IMAGENET_STD
from driving_xai.models.capabilities import network_of, sample_frames
from driving_xai.models.declared import is_length
from driving_xai.models.forward_trace import frames_taken
from driving_xai.models.modes import evaluating, is_exported
from driving_xai.models.weights import first_line
from driving_xai.types import FrameModel, Frames, Kind, Outputs, Scores

Colours = Sequence[float] | Tensor | np.ndarray
"""Three finite numbers; a tensor or an array may have sides of length one as well."""
Normalise = Literal["none", "imagenet"] | tuple[Colours, Colours]
"""Nothing, ImageNet's mean and standard deviation, or these two for each colour."""
_NAMED = {"none": ((0.0,) * 3, (1.0,) * 3), "imagenet": (IMAGENET_MEAN, IMAGENET_STD)}


class WrappedModel(nn.Module):
    """A network as a `types.FrameModel`: it takes RGB frames in [0, 1] and says what its scores mean.

    It has no memory: along a drive (`step`, `at`) its state is `()`.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        outputs: Outputs,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        size: tuple[int, int] | None,
    ) -> None:
        super().__init__()
        self.network, self.outputs, self.input_size = network, outputs, size
        like = _weight_of(network)
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1).to(like))
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1).to(like))
        self.training = network.training and not is_exported(network)

    def train(self, mode: bool = True) -> Self:
        """As of every module; a network that torch.export wrote stays in the mode in which it was exported."""
        if not is_exported(self.network):
            return super().train(mode)
        self.training = mode
        return self

    def forward(self, frames: Frames) -> Scores:
        """The network's scores, [B, K], in the frames' precision; the network is given frames in its weights' own.

        Raises:
            FrameSizeError: the network does not take frames of this size.
            UnsupportedModelError: it takes more than frames, has weights of several precisions that do not go
                together, or gives no scores of its outputs.
        """
        precision = frames.dtype
        if self.input_size is not None and tuple(frames.shape[2:]) != self.input_size:
            frames = F.interpolate(frames, self.input_size, mode="bilinear", antialias=True)
        frames = frames.to(_weight_of(self.network).dtype)
        scores = _called(self.network, (frames - self.mean.to(frames)) / self.std.to(frames))
        expected = (len(frames), len(self.outputs.names))
        if not isinstance(scores, Tensor) or scores.shape != expected:
            got = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UnsupportedModelError(
                f"{type(self.network).__name__} gave {got}, expected {expected}: a score "
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
    names: Iterable[str] | None = None,
    normalise: Normalise = "none",
    size: tuple[int, int] | None = None,
) -> WrappedModel:
    """A network with what its scores mean, in the mode it is in; compiled and parallel ones as the module inside.

    Args:
        network: takes [B, 3, H, W] and gives a score for each name, [B, K]: logits, or the steering of a
            regressor, the inverse turning radius in 1/m, positive to the left.
        outputs: what the scores are.
        names: of the outputs, in the scores' order, none twice; None numbers them, after a look at one black frame.
        normalise: applied to frames in [0, 1] before the network.
        size: height and width that the network takes; other frames are resized to it, bilinearly, and maps stay
            on the frames' own grid. None takes frames as they are.

    Raises:
        ValueError: `outputs`, `names`, `normalise` or `size` is not what is described here.
        UnsupportedModelError: the network is no module; or names are to be counted, and it does not take the frame or
            gives no scores.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)).eval()
        >>> model = wrap(net, outputs="multiclass", names=("cat", "dog"), normalise="imagenet")
        >>> model(torch.rand(5, 3, 16, 16)).shape, model.outputs.names
        (torch.Size([5, 2]), ('cat', 'dog'))
    """
    # What torch.compile and DataParallel put around a network hides its layers from hooks.
    network = network_of(network)
    mean, std = _mean_and_std(normalise)
    size = None if size is None else _sides(size)
    if outputs not in get_args(Kind):
        raise ValueError(f"got outputs {outputs!r}; expected one of {', '.join(get_args(Kind))}")
    meaning = Outputs(
        kind=outputs,
        names=_numbered(network, size) if names is None else _texts(names),
        unit="1/m" if outputs == "regression" else None,
    )
    return WrappedModel(network, meaning, mean=mean, std=std, size=size)


def _mean_and_std(normalise: Normalise) -> tuple[list[float], list[float]]:
    if isinstance(normalise, str) and normalise in _NAMED:
        normalise = _NAMED[normalise]
    pair = normalise if isinstance(normalise, tuple | list) and len(normalise) == 2 else ((), ())
    mean, std = map(_of_colours, pair)
    if mean is None or std is None:
        raise ValueError(
            f"got normalise {_short(normalise)}; expected {', '.join(map(repr, _NAMED))}, or (mean, std), three finite numbers each"
        )
    if not min(std) > 0:
        raise ValueError(f"got standard deviations {std}; expected over 0")
    return mean, std


def _of_colours(values: object) -> list[float] | None:
    """Three finite numbers; None of anything else."""
    if isinstance(values, Tensor | np.ndarray):
        values = values.reshape(-1).tolist()
    if not isinstance(values, Sequence) or len(values) != 3:
        return None
    finite = all(isinstance(each, Real) and math.isfinite(each) for each in values)
    return [float(each) for each in values] if finite else None


def _sides(size: object) -> tuple[int, int]:
    pair = size if isinstance(size, tuple | list) and len(size) == 2 else ()
    if not pair or not all(is_length(side) for side in pair):
        raise ValueError(
            f"got size {_short(size)}; expected (height, width) in pixels, each 1 or more, or None"
        )
    return int(pair[0]), int(pair[1])


def _texts(names: object) -> tuple[str, ...]:
    """Names in their order: a set has none, and of a mapping it is not clear which side they are."""
    unordered = isinstance(names, Set) and not isinstance(names, KeysView)
    ordered = isinstance(names, Iterable) and not unordered and not isinstance(names, str | Mapping)
    texts: tuple[object, ...] = tuple(names) if ordered else ()  # type: ignore[arg-type]
    if not texts or not all(isinstance(each, str) for each in texts) or len(set(texts)) < len(texts):
        raise ValueError(f"got names {_short(names)}; expected one or more texts in order, none twice")
    return tuple(map(str, texts))


def _short(value: object) -> str:
    """A value for a message of one line."""
    return " ".join(repr(value).split())[:80]


def _weight_of(network: nn.Module) -> Tensor:
    """The first weight that is no whole number, whose precision and device frames are given in."""
    return next((each for each in network.parameters() if each.is_floating_point()), torch.empty(0))


def _called(network: nn.Module, frames: Frames) -> object:
    """What a network gives for frames.

    Raises:
        FrameSizeError: it does not take frames of this size.
        UnsupportedModelError: it takes more than frames, or its weights have several precisions.
    """
    name = type(network).__name__
    try:
        with frames_taken(network, frames):
            return network(frames)
    except UnsupportedModelError as error:
        found = sorted({str(each.dtype) for each in network.parameters() if each.is_floating_point()})
        if len(found) < 2:
            raise
        raise UnsupportedModelError(
            f"{name} has weights of {' and '.join(found)}, which do not go together ({error.__cause__}); "
            "convert them to one, or use torch.autocast in its forward"
        ) from error
    except TypeError as error:
        raise UnsupportedModelError(
            f"{name} is called with frames alone, and raised TypeError: {first_line(error)}; "
            "wrap a module whose forward takes frames"
        ) from error


def _numbered(network: nn.Module, size: tuple[int, int] | None) -> tuple[str, ...]:
    """`0`, `1` and so on for the columns of the scores."""
    frames = sample_frames(network)
    with torch.no_grad(), evaluating(network):
        scores = _called(network, frames if size is None else frames.new_zeros(1, 3, *size))
    if not isinstance(scores, Tensor) or scores.dim() != 2:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise UnsupportedModelError(
            f"{type(network).__name__} gave {got}, expected scores (B, K); wrap what gives such"
        )
    return tuple(str(column) for column in range(scores.shape[1]))
