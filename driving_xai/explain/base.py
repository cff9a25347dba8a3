"""The base class of explainers: checks once, subclasses compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.errors import NonFiniteError
from driving_xai.models.capabilities import frame_model, network_of
from driving_xai.types import FrameModel, Frames, Saliency, Target

Part = TypeVar("Part")


class Explainer(ABC):
    """Says how much each pixel of each frame matters for a target.

    An explainer holds its options and no model: what it needs of a network, a layer say, it asks the network
    it is given, once for each, and remembers. So one object serves a network, the instants of a drive
    (`model.at(state)`) and a stream of frames.

    A subclass implements `_explain`; `check` too where it needs more of a model than its scores.

    Example:
        >>> class Darkness(Explainer):
        ...     def _explain(self, model, frames, target):
        ...         return 1 - frames.mean(1)
        >>> Darkness()(lambda frames: frames.mean((2, 3)), torch.zeros(2, 3, 4, 6), lambda scores: scores[:, 0])[0, 0, 0]
        tensor(1.)
    """

    def __call__(self, model: object, frames: Frames, target: Target) -> Saliency:
        """Explains each frame.

        Args:
            model: a network, a `types.View` of one, or a loaded checkpoint, in eval mode; a recurrent model
                is taken at the first frame of a drive. It scores each frame by itself.
            frames: RGB in [0, 1], [B, 3, H, W]. They, the weights, gradients and modes stay as they are.
            target: the scores' one number that is explained, for each frame; see `targets`.

        Returns:
            Raw maps on the frame grid, [B, H, W]: never normalised, signed or not as the method says.

        Raises:
            UnsupportedModelError: the model lacks what the method needs, or is in training mode.
            NonFiniteError: a map has NaN or infinity.
            ValueError: frames or maps have another shape.
        """
        _require_frames(frames)
        maps = self._explain(frame_model(model), frames, target)
        _require_shape(maps, (len(frames), *frames.shape[2:]))
        return _rankable(finite(maps))

    def explain_each(
        self, model: object, frames: Frames, targets: Sequence[Target]
    ) -> Float[Tensor, "B C H W"]:
        """One map for each of C targets, otherwise as a call; methods that can share work between targets do."""
        _require_frames(frames)
        maps = self._explain_each(frame_model(model), frames, targets)
        _require_shape(maps, (len(frames), len(targets), *frames.shape[2:]))
        return _rankable(finite(maps))

    def check(self, model: object, frames: Frames) -> None:  # noqa: B027 - most need nothing but scores
        """Makes sure, without explaining, that this method fits a model.

        Args:
            frames: of the size that will be explained; one of zeros will do.

        Raises:
            UnsupportedModelError: the model lacks what the method needs; the message says what and what to do.
        """

    @abstractmethod
    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """The maps; `model` is a view of one instant."""

    def _explain_each(
        self, model: FrameModel, frames: Frames, targets: Sequence[Target]
    ) -> Float[Tensor, "B C H W"]:
        """Maps of several targets; overridden where they share work."""
        return torch.stack([self._explain(model, frames, target) for target in targets], 1)

    def __getstate__(self) -> dict[str, object]:
        """Without what was found in networks: a copy and another process look for themselves."""
        return {name: value for name, value in self.__dict__.items() if name != "_found"}

    def _remembered(self, model: object, frames: Frames, find: Callable[[object, Frames], Part]) -> Part:
        """What `find` finds in the model's network for frames of this size, looked for once."""
        found = self.__dict__.setdefault("_found", WeakKeyDictionary())
        of_network = found.setdefault(network_of(model), {})
        key = (find.__qualname__, *frames.shape[-2:])
        if key not in of_network:
            of_network[key] = find(model, frames)
        return of_network[key]


@dataclass(frozen=True, kw_only=True)
class Function(Explainer):
    """A function as an explainer, so that its maps are checked as all others are.

    Args:
        function: takes the model at one instant, frames and a target; returns maps [B, H, W].

    Example:
        >>> dark = Function(function=lambda model, frames, target: 1 - frames.mean(1))
        >>> dark(lambda frames: frames.mean((2, 3)), torch.zeros(1, 3, 2, 2), lambda scores: scores[:, 0]).shape
        torch.Size([1, 2, 2])
    """

    function: Callable[[FrameModel, Frames, Target], Saliency]

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        return self.function(model, frames, target)


def _require_frames(frames: Frames) -> None:
    if frames.dim() != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise ValueError(
            f"got frames of shape {tuple(frames.shape)} and {frames.dtype}; expected (B, 3, H, W), RGB in [0, 1]"
        )


def _require_shape(maps: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(maps.shape) != expected:
        raise ValueError(f"got maps of shape {tuple(maps.shape)}, expected {expected}: one value a pixel")


def _rankable(maps: Tensor) -> Tensor:
    """Maps of half precision in single precision, which NumPy and rankings know."""
    return maps.float() if maps.dtype in (torch.float16, torch.bfloat16) else maps


def finite(values: Tensor) -> Tensor:
    """The values, all of them finite.

    Raises:
        NonFiniteError: they are not.
    """
    if not values.isfinite().all():
        raise NonFiniteError(
            "got NaN or infinity from the model or its gradient; expected finite; check the weights"
        )
    return values


def require_at_least(bounds: Mapping[str, tuple[float, float]]) -> None:
    """Checks options: by name, a value and the least that is allowed.

    Raises:
        ValueError: a value is lower; the message names the option.
    """
    for name, (value, least) in bounds.items():
        if not value >= least:
            raise ValueError(f"got {name} {value}; expected {least} or more")
