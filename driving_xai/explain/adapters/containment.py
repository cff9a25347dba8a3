"""The base class of adapters: another library's method, with whatever it does to a model undone."""

from __future__ import annotations

import io
import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from driving_xai.errors import NonFiniteError, OptionError, UnsupportedModelError
from driving_xai.explain.base import Explainer
from driving_xai.explain.variants import ReferenceScores
from driving_xai.models.capabilities import network_of
from driving_xai.types import FrameModel, Frames, Saliency, Target

_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class Adapter(Explainer):
    """An explainer of another library under this project's contract.

    Frames, weights, gradients, modes, hooks and random numbers are as before afterwards, also where the library
    fails; in-place layers write elsewhere meanwhile, since libraries read what these overwrite. What the
    library raises is one line.
    """

    name: str
    seed: int = 0

    @property
    def takes_one_instant(self) -> bool:
        """Libraries run copies of frames in an order of their own, and cannot keep several pasts apart."""
        return True

    def _check(self, model: object, frames: Frames) -> None:
        network_of(model)

    def _explain(self, model: FrameModel, frames: Frames, target: Target) -> Saliency:
        """The library's maps.

        Raises:
            UnsupportedModelError: the library cannot explain this model.
        """
        network = network_of(model)
        clean = ReferenceScores(model, frames, target)
        with torch.inference_mode(False), contained(network, seed=self.seed):
            try:
                maps = self._attributed(model, network, frames.detach().clone(), clean)
            except (UnsupportedModelError, NonFiniteError, OptionError, torch.OutOfMemoryError):
                raise
            # Another library's code, on networks it was not tried on, raises anything.
            except Exception as error:
                reason = (str(error).strip().splitlines() or [""])[0][:160]
                raise UnsupportedModelError(
                    f"{self.name} does not run on {type(network).__name__} ({type(error).__name__}: {reason}); "
                    "use another method"
                ) from error
        return maps.detach()

    @abstractmethod
    def _attributed(
        self, model: FrameModel, network: nn.Module, frames: Frames, clean: ReferenceScores
    ) -> Saliency:
        """The maps, by the library."""


class Scored(nn.Module):
    """A frame model as a module, which is what libraries take."""

    def __init__(self, model: FrameModel, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        # In a tuple, because a module would be registered a second time.
        self._model = (model,)

    def forward(self, frames: Frames) -> Tensor:
        return self._model[0](frames)


def require_one_frame_of_a_view(model: object, frames: Frames, name: str) -> None:
    """See `Adapter.takes_one_instant`.

    Raises:
        UnsupportedModelError: several frames of a drive's instants.
    """
    if not isinstance(model, nn.Module) and len(frames) > 1:
        raise UnsupportedModelError(
            f"{name} explains a drive's instants one frame at a time, got {len(frames)}; give them one by one"
        )


@contextmanager
def contained(network: nn.Module, *, seed: int) -> Iterator[None]:
    """Whatever happens to a network within the scope is undone: modes, gradients, hooks, in-place flags.

    Random numbers are drawn from the seed, the global ones go on as before; warnings and progress bars of
    libraries are not shown.
    """
    modules, parameters = list(network.modules()), list(network.parameters())
    training = [module.training for module in modules]
    tensors = [(each, each.data) for each in (*parameters, *network.buffers())]
    gradients = [(parameter.grad, parameter.requires_grad) for parameter in parameters]
    hooks = [{name: dict(getattr(module, name)) for name in _HOOKS} for module in modules]
    in_place = [module for module in modules if getattr(module, "inplace", False) is True]
    numpy_state = np.random.get_state()  # noqa: NPY002 - libraries draw from the global generator
    for parameter in parameters:
        parameter.grad = None
    for module in in_place:
        module.inplace = False  # type: ignore[assignment]
    try:
        devices = sorted({parameter.device for parameter in parameters if parameter.is_cuda}, key=str)
        with (
            torch.random.fork_rng(devices=devices),
            torch.enable_grad(),
            warnings.catch_warnings(),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            np.random.seed(seed)  # noqa: NPY002
            yield
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        for module in in_place:
            module.inplace = True  # type: ignore[assignment]
        for tensor, data in tensors:
            tensor.data = data
        for parameter, (gradient, required) in zip(parameters, gradients, strict=True):
            parameter.requires_grad_(required)
            parameter.grad = gradient
        for module, mode, registered in zip(modules, training, hooks, strict=True):
            module.training = mode
            for name, before in registered.items():
                current = getattr(module, name)
                current.clear()
                current.update(before)


def checked(
    name: str, options: Mapping[str, Any], *callables: Any, taken: tuple[str, ...] = ()
) -> list[dict[str, Any]]:
    """Options shared out among the callables that take them.

    Args:
        taken: keywords that the adapter gives itself.

    Raises:
        OptionError: none of them takes an option; the message lists those that there are.
    """
    known = [
        [each for each in signature(call).parameters if each not in ("self", "args", "kwargs", *taken)]
        for call in callables
    ]
    for option in options:
        if not any(option in each for each in known):
            there = ", ".join(sorted({name for each in known for name in each})) or "none"
            raise OptionError(f"{name} has no option {option!r}; it has {there}")
    # The command line has lists where libraries ask for tuples.
    given = {option: tuple(value) if isinstance(value, list) else value for option, value in options.items()}
    return [{option: value for option, value in given.items() if option in each} for each in known]


def slope_of_target(clean: ReferenceScores, scores: Tensor) -> Tensor:
    """The gradient of each frame's target with respect to its scores: a one of the class that is explained."""
    leaf = scores.detach().requires_grad_()
    values = clean.target(leaf)
    if not values.requires_grad:
        raise UnsupportedModelError("the target does not depend on the scores; choose another")
    (slope,) = torch.autograd.grad(values.sum(), leaf)
    return slope


class FirstInput:
    """What the first convolution or linear layer of a run takes, as a leaf that gradients reach.

    Relevance is read there: a model normalises colours inside itself, and relevance that went through that as
    through any multiplication would be weighted by one over the channel's deviation.
    """

    def __init__(self) -> None:
        self.leaf: Tensor | None = None

    def replace(self, _module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """A forward pre-hook."""
        if self.leaf is not None or not isinstance(inputs[0], Tensor) or inputs[0].dim() != 4:
            return None
        self.leaf = inputs[0].detach().requires_grad_()
        return (self.leaf, *inputs[1:])


def first_layers(network: nn.Module) -> list[nn.Module]:
    """Those of which one is the first to read the frame."""
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)]
