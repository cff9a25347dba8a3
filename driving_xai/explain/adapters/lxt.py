"""AttnLRP by LXT (https://github.com/rachtibat/LRP-eXplains-Transformers)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from lxt.efficient.patches import layer_norm_forward
from lxt.efficient.rules import identity_rule_implicit, stop_gradient
from timm.layers import Attention
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.adapters.containment import (
    Adapter,
    FirstInput,
    first_layers,
    require_one_frame_of_a_view,
    slope_of_target,
)
from driving_xai.explain.grid import to_frame_grid
from driving_xai.explain.variants import ReferenceScores
from driving_xai.models.forward_trace import removed_after
from driving_xai.types import FrameModel, Frames, Saliency


class AttnLRP(Adapter):
    """AttnLRP of a Vision Transformer: input times gradient under LXT's rules, channels added.

    The rules are those that LXT sets for torchvision's transformer, here for timm's too: the identity rule for
    GELU and layer normalisation, and no relevance through the softmax (CP-LRP), which LXT prefers there.
    Quirks contained: LXT patches the classes of torch.nn for the whole process; here its functions run in hooks
    of this network, for one pass.
    Deviation: LXT's demonstration adds zennit's gamma rule to linear layers and tunes it; here they have the
    epsilon rule with epsilon 0, which is the gradient.

    Source: Achtibat et al. 2024, eqs. 7 and 9; LXT.
    """

    name = "lxt:AttnLRP"

    def __init__(self, *, method: str = "AttnLRP") -> None:
        """`method` is AttnLRP.

        Raises:
            ValueError: it is not.
        """
        if method != "AttnLRP":
            raise ValueError(f"lxt has no method {method!r} here; it has AttnLRP")

    def _attributed(
        self, model: FrameModel, network: nn.Module, frames: Frames, clean: ReferenceScores
    ) -> Saliency:
        require_one_frame_of_a_view(model, frames, self.name)
        attentive = [
            each for each in network.modules() if isinstance(each, nn.MultiheadAttention | Attention)
        ]
        if not attentive:
            raise UnsupportedModelError(f"{self.name} needs a Vision Transformer of timm's or torchvision's")
        first = FirstInput()
        with removed_after(_rules(network, first)):
            scores = model(frames)
            assert first.leaf is not None
            (gradient,) = torch.autograd.grad(scores, first.leaf, grad_outputs=slope_of_target(clean, scores))
        return to_frame_grid((gradient * first.leaf).sum(1), frames)


def _rules(network: nn.Module, first: FirstInput) -> Iterator[RemovableHandle]:
    for layer in first_layers(network):
        yield layer.register_forward_pre_hook(first.replace)
    for module in network.modules():
        if isinstance(module, nn.LayerNorm):
            yield module.register_forward_hook(_normalised)
        elif isinstance(module, nn.GELU):
            yield module.register_forward_hook(_activated)
        elif isinstance(module, nn.MultiheadAttention):
            yield module.register_forward_pre_hook(_without_query_and_key)
        elif isinstance(module, Attention):
            # What query and key go through last before the softmax.
            for norm in (module.q_norm, module.k_norm):
                yield norm.register_forward_hook(lambda _module, _inputs, output: stop_gradient(output))


def _normalised(module: Any, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    return layer_norm_forward(module, inputs[0])


def _activated(module: nn.Module, inputs: tuple[Tensor, ...], _output: Tensor) -> Tensor:
    return identity_rule_implicit(module.forward, inputs[0])


def _without_query_and_key(_module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    query, key, *rest = inputs
    return (stop_gradient(query), stop_gradient(key), *rest)
