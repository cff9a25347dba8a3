"""Explainers of captum (https://captum.ai)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import captum.attr
import torch
from torch import Tensor, nn

from driving_xai.explain.adapters.containment import Adapter, checked, require_one_frame_of_a_view
from driving_xai.explain.variants import ReferenceScores
from driving_xai.types import FrameModel, Frames, Saliency


class _Method(NamedTuple):
    order: Literal["copies", "frames"] = "copies"
    """How captum lines up V copies of B frames: copy by copy, or frame by frame."""
    module: bool = False
    """Whether it hangs hooks on a module, and so must see its own order inside."""
    options: Mapping[str, Any] = {}
    """Where captum has no default."""


METHODS: Mapping[str, _Method] = {
    "Saliency": _Method(),
    "InputXGradient": _Method(),
    "IntegratedGradients": _Method(options={"internal_batch_size": 32}),
    "GradientShap": _Method(order="frames"),
    "Occlusion": _Method(options={"sliding_window_shapes": (3, 16, 16), "strides": (3, 8, 8)}),
    "DeepLift": _Method(module=True),
    "GuidedBackprop": _Method(module=True),
    "Deconvolution": _Method(module=True),
}
"""By captum's class names."""


class Captum(Adapter):
    """A method of captum: its attribution of the target, one value a pixel.

    Quirks contained: captum picks a column of the scores, here it sees the target's value itself; it lines up
    copies of frames in orders of its own, which are turned back for targets and for a drive's states;
    DeepLift and guided backpropagation fail behind in-place activations, which write elsewhere meanwhile, and
    leave warnings.
    Stays as captum has it: `Saliency` is the gradient's absolute value; baselines are black frames;
    DeepLift wants every activation to be a module of its own that runs once.

    Source: Kokhlikyan et al. 2020, captum.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2)).eval()
        >>> Captum(method="DeepLift")(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def __init__(
        self, *, method: str, channels: Literal["sum", "abs"] = "sum", seed: int = 0, **options: Any
    ) -> None:
        """Chooses a method.

        Args:
            method: a name of `METHODS`.
            channels: a pixel's three values added with their signs, or their sizes added.
            seed: of methods that draw.
            options: of captum's class and of its `attribute`, such as `n_steps`.

        Raises:
            OptionError: captum's method has no such option.
            ValueError: there is no such method.
        """
        if method not in METHODS:
            raise ValueError(f"captum has no method {method!r} here; it has {', '.join(METHODS)}")
        self.name, self.seed, self.channels = f"captum:{method}", seed, channels
        self._how, self._class = METHODS[method], getattr(captum.attr, method)
        of_class, of_call = checked(
            self.name,
            options,
            self._class.__init__,
            self._class.attribute,
            taken=("inputs", "target", "forward_func", "model", "additional_forward_args"),
        )
        self._of_class, self._of_call = of_class, {**self._how.options, **of_call}

    @property
    def takes_one_instant(self) -> bool:
        """Only where the library calls the network as a module; else it keeps copies of a frame together."""
        return self._how.module

    def _attributed(
        self, model: FrameModel, network: nn.Module, frames: Frames, clean: ReferenceScores
    ) -> Saliency:
        if self.takes_one_instant:
            require_one_frame_of_a_view(model, frames, self.name)
        scalar = _TargetValue(model, network, clean, self._how)
        of_call = dict(self._of_call)
        if self._class is captum.attr.GradientShap:
            of_call.setdefault("baselines", torch.zeros_like(frames[:1]))
        found = self._class(scalar, **self._of_class).attribute(frames.requires_grad_(), **of_call)
        return found.sum(1) if self.channels == "sum" else found.abs().sum(1)


class _TargetValue(nn.Module):
    """The target's value of frames in captum's order, as captum's methods want to be given it."""

    def __init__(self, model: FrameModel, network: nn.Module, clean: ReferenceScores, how: _Method) -> None:
        super().__init__()
        self.network = network
        # In a tuple, because a module would be registered a second time.
        self._model, self._clean, self._how = (model,), clean, how

    def forward(self, frames: Frames) -> Tensor:
        model = self._model[0]
        scores = self._by_frame(model(frames)) if self._how.module else model(self._by_frame(frames))
        values = self._clean.per_variant(scores)
        if self._how.order == "frames":
            return values
        return values.unflatten(0, (self._clean.count, -1)).T.flatten()

    def _by_frame(self, rows: Tensor) -> Tensor:
        """Rows in which the copies of one frame stand together."""
        if self._how.order == "frames":
            return rows
        return rows.unflatten(0, (-1, self._clean.count)).transpose(0, 1).flatten(0, 1)
