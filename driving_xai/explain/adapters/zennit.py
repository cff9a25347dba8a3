"""Layer-wise relevance propagation by zennit (https://github.com/chr5tphr/zennit)."""

from __future__ import annotations

from typing import Any

import torch
import zennit.composites
from torch import nn
from torchvision.models.resnet import ResNet
from zennit.canonizers import Canonizer, SequentialMergeBatchNorm
from zennit.torchvision import ResNetCanonizer

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.adapters.containment import (
    Adapter,
    FirstInput,
    checked,
    first_layers,
    require_one_frame_of_a_view,
    slope_of_target,
)
from driving_xai.explain.grid import to_frame_grid
from driving_xai.explain.variants import ReferenceScores
from driving_xai.models.forward_trace import removed_after
from driving_xai.types import FrameModel, Frames, Saliency

METHODS = (
    *("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "EpsilonAlpha2Beta1Flat"),
    *("GuidedBackprop", "ExcitationBackprop"),
)
"""By zennit's names of composites, less those that need the range of the first layer's input."""


class Zennit(Adapter):
    """A composite of zennit's rules: the relevance of the first layer's input, channels added.

    Relevance starts as the target's gradient at the scores, a one at the class that is explained, as in
    zennit's own use. Batch normalisation is merged into the layer before it, and torchvision's ResNets are
    rewritten by zennit's canonizer; both are undone.
    Quirks contained: in-place activations, which zennit's hooks forbid, write elsewhere meanwhile; relevance is
    read where the first convolution reads, so that a model's normalisation does not weigh colours.
    Stays as zennit has it: residual sums of other networks pass relevance on whole to both branches, and layers
    without a rule (attention, recurrent ones) pass gradients.

    Source: Anders et al. 2021, zennit.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2)).eval()
        >>> Zennit(method="EpsilonPlus")(net, torch.rand(2, 3, 16, 16), lambda scores: scores[:, 0]).shape
        torch.Size([2, 16, 16])
    """

    def __init__(self, *, method: str, **options: Any) -> None:
        """Chooses a composite.

        Args:
            method: a name of `METHODS`.
            options: of zennit's class, such as `epsilon`.

        Raises:
            OptionError: the composite has no such option.
            ValueError: there is no such composite.
        """
        if method not in METHODS:
            raise ValueError(f"zennit has no method {method!r} here; it has {', '.join(METHODS)}")
        self.name = f"zennit:{method}"
        self._class = getattr(zennit.composites, method)
        (self._options,) = checked(
            self.name, options, self._class.__init__, taken=("canonizers", "layer_map")
        )

    def _attributed(
        self, model: FrameModel, network: nn.Module, frames: Frames, clean: ReferenceScores
    ) -> Saliency:
        require_one_frame_of_a_view(model, frames, self.name)
        composite = self._class(canonizers=[_canonizer(network)], **self._options)
        first = FirstInput()
        # Registered before zennit's hooks, so that these see the leaf.
        handles = (layer.register_forward_pre_hook(first.replace) for layer in first_layers(network))
        with removed_after(handles), composite.context(network):
            scores = model(frames)
            if first.leaf is None:
                raise UnsupportedModelError(f"{self.name} found no convolution in {type(network).__name__}")
            (relevance,) = torch.autograd.grad(
                scores, first.leaf, grad_outputs=slope_of_target(clean, scores)
            )
        return to_frame_grid(relevance.sum(1), frames)


def _canonizer(network: nn.Module) -> Canonizer:
    """One only: two that merge the same normalisation merge it twice, and undo it in the wrong order."""
    if any(isinstance(module, ResNet) for module in network.modules()):
        return ResNetCanonizer()
    return SequentialMergeBatchNorm()
