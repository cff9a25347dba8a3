"""The base class of explainers: checks once, subclasses compute."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from jaxtyping import Float
from torch import Tensor, nn

from driving_xai.errors import NonFiniteError, UnsupportedModelError
from driving_xai.explain.options import checked_fields
from driving_xai.models.capabilities import (
    frame_model,
    network_of,
    network_or_none,
    require_eval_mode,
    scores_of,
)
from driving_xai.models.forward_trace import frames_taken, removed_after, uncompiled
from driving_xai.targets import checked, single
from driving_xai.types import FrameModel, Frames, Saliency, Target

Part = TypeVar("Part")


class Explainer(ABC):
    """Says how much each pixel of each frame matters for a target.

    An explainer holds its options and no model: what it needs of a network, a layer say, it asks the network
    it is given, once for each, and remembers. So one object serves a network, the instants of a drive
    (`model.at(state)`) and a stream of frames.

    A subclass implements `_explain`; `_check` too where it needs more of a model than its scores. Where it is a
    dataclass, its keywords are checked as the command line's options are; its own `__post_init__`, if it has one,
    calls this one first.

    Example:
        >>> class Darkness(Explainer):
        ...     def _explain(self, model, frames, target):
        ...         return 1 - frames.mean(1)
        >>> Darkness()(lambda frames: frames.mean((2, 3)), torch.zeros(2, 3, 4, 6), lambda scores: scores[:, 0])[0, 0, 0]
        tensor(1.)
    """

    def __post_init__(self) -> None:
        for name, value in checked_fields(self).items():
            # The dataclass is frozen once it is made.
            object.__setattr__(self, name, value)

    @property
    def takes_one_instant(self) -> bool:
        """Whether instants of a drive have to come one by one; see `EvalBatch.explained`."""
        return False

    def __call__(self, model: object, frames: Frames, target: Target) -> Saliency:
        """Explains each frame.

        Args:
            model: a network, a `types.View` of one, or a loaded checkpoint, in eval mode; a recurrent model
                is taken at the first frame of a drive. It scores each frame by itself.
            frames: RGB in [0, 1], [B, 3, H, W]. They, the weights, gradients and modes stay as they are.
            target: the scores' one number that is explained, for each frame; see `targets`.

        Returns:
            Raw maps on the frame grid, [B, H, W]: never normalised, signed or not as the method says; of no frames, none.

        Raises:
            UnsupportedModelError: the model lacks what the method needs, is in training mode, or does not take
                frames of this size.
            NonFiniteError: a map has NaN or infinity.
            ValueError: frames, maps or what the target gives have another shape.
        """
        return self._mapped(
            lambda view: self._explain(view, frames, checked(target)),
            model,
            frames,
            (len(frames), *frames.shape[2:]),
        )

    def explain_each(
        self, model: object, frames: Frames, targets: Sequence[Target]
    ) -> Float[Tensor, "B C H W"]:
        """One map for each of C targets, otherwise as a call; methods that can share work between targets do."""
        return self._mapped(
            lambda view: self._explain_each(view, frames, [checked(target) for target in targets]),
            model,
            frames,
            (len(frames), len(targets), *frames.shape[2:]),
        )

    def _mapped(
        self,
        explain: Callable[[FrameModel], Tensor],
        model: object,
        frames: Frames,
        shape: tuple[int, ...],
    ) -> Tensor:
        _require_frames(frames)
        view = frame_model(model)
        require_eval_mode(view)
        if 0 in shape:
            return single(frames.new_zeros(shape))
        with _taking(view, frames):
            maps = explain(view)
        _require_shape(maps, shape)
        return single(finite(maps))

    def check(self, model: object, frames: Frames) -> None:
        """Makes sure, without explaining, that a call with this model and frames of this size will not be refused.

        Args:
            frames: of the size that will be explained; one of zeros will do.

        Raises:
            UnsupportedModelError: the model lacks what the method needs; the message says what and what to do.
        """
        _require_frames(frames)
        require_eval_mode(model)
        with _taking(frame_model(model), frames):
            self._check(model, frames)

    def _check(self, model: object, frames: Frames) -> None:  # noqa: B027 - most need nothing but scores
        """What `check` makes sure of, for methods that need more of a model than its scores."""

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
        """What `find` finds in the model's network for frames of this size, looked for once.

        A layer of the network that was replaced since means that all is looked for again.
        """
        network = network_of(model)
        found = self.__dict__.setdefault("_found", WeakKeyDictionary()).setdefault(network, {})
        key = (getattr(find, "__func__", find), *frames.shape[-2:])
        modules = tuple(network.modules())
        if key not in found or not found[key].is_of(modules):
            found[key] = _Memory.of(find(model, frames), modules)
        return found[key].value(modules)


class _Memory(NamedTuple):
    """What was found in a network, with its modules as numbers: a memory must not keep the network alive."""

    modules: tuple[ref[nn.Module], ...]
    found: Any

    @classmethod
    def of(cls, found: object, modules: tuple[nn.Module, ...]) -> _Memory:
        places = {id(module): place for place, module in enumerate(modules)}
        return cls(
            tuple(map(ref, modules)),
            _replaced(
                found, nn.Module, lambda each: _Place(places[id(each)]) if id(each) in places else each
            ),
        )

    def is_of(self, modules: tuple[nn.Module, ...]) -> bool:
        pairs = zip(self.modules, modules, strict=False)
        return len(self.modules) == len(modules) and all(own() is module for own, module in pairs)

    def value(self, modules: tuple[nn.Module, ...]) -> Any:
        return _replaced(self.found, _Place, lambda each: modules[each.number])


@dataclass(frozen=True)
class _Place:
    number: int


def _replaced(value: Any, kind: type, other: Callable[[Any], Any]) -> Any:
    """A value with each object of a kind replaced, inside tuples and dataclasses too."""
    if isinstance(value, kind):
        return other(value)
    if isinstance(value, tuple):
        items = (_replaced(each, kind, other) for each in value)
        return type(value)(*items) if hasattr(value, "_fields") else tuple(items)
    if is_dataclass(value) and not isinstance(value, type):
        given = {each.name: getattr(value, each.name) for each in fields(value) if each.init}
        return replace(value, **{name: _replaced(each, kind, other) for name, each in given.items()})
    return value


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


@contextmanager
def _taking(view: FrameModel, frames: Frames) -> Iterator[None]:
    """Contains what a network does to the frames that it is given, and says where it does not take them.

    Raises:
        FrameSizeError: the network raised, and raises again when it is only called.
        UnsupportedModelError: a view of a network has written on the frames.
    """
    version = None if frames.is_inference() else frames._version
    network = network_or_none(view) or nn.Module()
    try:
        with _given_copies(view), uncompiled(network):
            yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError):
        with frames_taken(view, frames):
            scores_of(view, frames)
        raise
    if version is not None and frames._version != version:
        raise UnsupportedModelError(
            f"{type(view).__name__} writes on the frames that it is given; let it clone them first"
        )


@contextmanager
def _given_copies(view: FrameModel) -> Iterator[None]:
    """Gives a network copies of frames: a first layer that works in place writes on what it is given."""

    def copied(_network: nn.Module, given: tuple) -> tuple:
        return tuple(each.clone() if isinstance(each, Tensor) else each for each in given)

    handles = [view.register_forward_pre_hook(copied)] if isinstance(view, nn.Module) else []
    with removed_after(handles):
        yield


def _require_frames(frames: Frames) -> None:
    if frames.dim() != 4 or frames.shape[1] != 3 or not frames.is_floating_point():
        raise ValueError(
            f"got frames of shape {tuple(frames.shape)} and {frames.dtype}; expected (B, 3, H, W), RGB in [0, 1]"
        )


def _require_shape(maps: Tensor, expected: tuple[int, ...]) -> None:
    if tuple(maps.shape) != expected:
        raise ValueError(f"got maps of shape {tuple(maps.shape)}, expected {expected}: one value a pixel")


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
