"""Explainers, and the table of their literature names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol

from torch import nn

from driving_xai.contracts import Explainer, Saliency
from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.attention_flow import (
    AttentionGradient,
    GenericAttention,
    NormAttention,
    RawAttention,
    Rollout,
)
from driving_xai.explain.cam import CAMS, SmoothGradCAMPlusPlus
from driving_xai.explain.causal_filter import CausalFilter
from driving_xai.explain.controls import CentrePrior, RandomOrder
from driving_xai.explain.gradient import Gradient, IntegratedGradients, SmoothGrad
from driving_xai.explain.grid import Cells
from driving_xai.explain.heavier_side import AttentionWeighted, HeavierSide
from driving_xai.explain.learned import LayerMean, learned_attention, learned_selection
from driving_xai.explain.lime import LIME
from driving_xai.explain.perturbation import RISE, Occlusion
from driving_xai.explain.smoothed_attention import SNNA, AttentionIG
from driving_xai.explain.visual_backprop import VisualBackProp, stages
from driving_xai.explain.vit_capture import check_vit


class MethodFactory(Protocol):
    """Fits a method to a model: finds the layer it needs, or says why the model cannot serve.

    Raises:
        UnsupportedModelError: the model lacks what the method needs.
    """

    def __call__(self, model: nn.Module, *, seed: int, batch_size: int) -> Explainer: ...


def build(name: str, model: nn.Module, *, seed: int = 0, batch_size: int = 32) -> Explainer:
    """The explainer of a literature name, for this model.

    Args:
        model: the whole model, not its view of one instant.
        seed: of methods that draw; the others ignore it.
        batch_size: of methods that run many edited frames: the most in one pass, but never fewer than
            one of every frame; see `perturb.batches`.

    Raises:
        ValueError: no method has that name; the message lists those there are.
        UnsupportedModelError: the model lacks what the method needs.
    """
    if name not in METHODS:
        raise ValueError(f"method {name!r} is unknown; expected one of: {', '.join(METHODS)}")
    return METHODS[name](model, seed=seed, batch_size=batch_size)


def _attention_of(
    method: str, *kinds: str, trained_by: str, read: Callable[..., Saliency] = learned_attention
) -> MethodFactory:
    """The model's own attention, where it is of one of these kinds; `trained_by` is how to come by one."""

    def fit(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
        found = getattr(getattr(model, "config", None), "attention", "none")
        if found not in kinds:
            raise UnsupportedModelError(
                f"method {method!r} needs a model with {' or '.join(kinds)} attention, this one has {found!r}; "
                f"use grad-cam, or {trained_by}"
            )
        return partial(read, cells=_cells(model))

    return fit


def _cam(name: str) -> MethodFactory:
    def fit(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
        layer = getattr(model, "cam_layer", None)
        if layer is None:
            raise UnsupportedModelError(
                f"{type(model).__name__} names no cam_layer; build {CAMS[name].__name__}(layer=...) with a "
                "layer of your choice, for example feature_maps.last_feature_map(model, frames)"
            )
        # Smooth Grad-CAM++ in one pass needs a target that is linear in the scores: the caller's to say.
        if name == "smooth-grad-cam++":
            return SmoothGradCAMPlusPlus(layer=layer, cells=_cells(model), seed=seed)
        return CAMS[name](layer=layer, cells=_cells(model), head=getattr(model, "cam_head", None))

    return fit


def _own_map(name: str) -> MethodFactory:
    """A map that the network writes itself, where it does."""

    def fit(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
        found = getattr(model, "own_maps", {})
        if name not in found:
            has = ", ".join(found) or "none"
            raise UnsupportedModelError(
                f"method {name!r} needs a network that writes such a map, {type(model).__name__} writes {has}; "
                "use grad-cam, or train a classifier with network labn"
            )
        layer, cells = found[name]
        return LayerMean(layer=layer, cells=None if cells is None else Cells(*cells))

    return fit


def _cells(model: nn.Module) -> Cells | None:
    """Where the model says that its feature grid lies."""
    placed = getattr(model, "cells_px", None)
    return None if placed is None else Cells(*placed)


def _gradient(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return Gradient()


def _gradient_x_input(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return Gradient(times="input")


def _smoothgrad(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return SmoothGrad(seed=seed, batch_size=batch_size)


def _integrated_gradients(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return IntegratedGradients(batch_size=batch_size)


def _heavier_side_ig(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return HeavierSide(IntegratedGradients(batch_size=batch_size))


def _heavier_side_attention_ig(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    found = getattr(getattr(model, "config", None), "attention", "none")
    if found not in ("sign", "soft"):
        raise UnsupportedModelError(
            "method 'heavier-side-attention-ig' needs a steering model with sign or soft attention, this one "
            f"has {found!r}; use heavier-side-ig"
        )
    signed = AttentionWeighted(IntegratedGradients(batch_size=batch_size), cells=_cells(model))
    return HeavierSide(signed)


def _occlusion(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return Occlusion(batch_size=batch_size)


def _rise(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return RISE(seed=seed, batch_size=batch_size)


def _lime(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return LIME(seed=seed, batch_size=batch_size)


def _visual_backprop(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Sequential):
        raise UnsupportedModelError(
            f"{type(model).__name__} has no encoder that is a chain of layers; build VisualBackProp(stages=...) "
            "with stages of your choice"
        )
    return VisualBackProp(stages=stages(encoder))


def _filtered(name: str) -> MethodFactory:
    """Another method's maps, cut down to what changes the prediction."""

    def fit(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
        attention = METHODS[name](model, seed=seed, batch_size=batch_size)
        return CausalFilter(attention=attention, seed=seed, batch_size=batch_size)

    return fit


def _attention_flow(name: str, explainer: Callable[..., Explainer]) -> MethodFactory:
    def fit(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
        return explainer(vit=_transformer_of(model, name))

    return fit


def _attention_ig(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return AttentionIG(vit=_transformer_of(model, "attention-ig"), batch_size=batch_size)


def _snna(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return SNNA(vit=_transformer_of(model, "snna"), seed=seed, batch_size=batch_size)


def _transformer_of(model: nn.Module, method: str) -> nn.Module:
    """The Vision Transformer by which a model judges."""
    vit = getattr(model, "vit", None)
    if not isinstance(vit, nn.Module):
        raise UnsupportedModelError(
            f"method {method!r} needs a model whose attribute vit is a Vision Transformer, and "
            f"{type(model).__name__} has none; use a gradient or a perturbation"
        )
    check_vit(vit)
    return vit


def _random(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return RandomOrder(seed=seed)


def _centre_prior(model: nn.Module, *, seed: int, batch_size: int) -> Explainer:
    return CentrePrior()


_STEERING = "train steering with attention {!r}"
_SELECTING = (
    "train a classifier with --model {}; for several labels an image also --set model.output_kind=multilabel"
)
METHODS: Mapping[str, MethodFactory] = {
    "sign-attention": _attention_of("sign-attention", "sign", trained_by=_STEERING.format("sign")),
    "soft-attention": _attention_of("soft-attention", "soft", trained_by=_STEERING.format("soft")),
    "bla": _attention_of("bla", "bla", "bla-t", trained_by=_SELECTING.format("bla-t")),
    "bla-hard": _attention_of(
        "bla-hard", "bla", "bla-t", trained_by=_SELECTING.format("bla-t"), read=learned_selection
    ),
    "l2x-f": _attention_of("l2x-f", "l2x-f", trained_by=_SELECTING.format("l2x-f")),
    "sign-attention-filtered": _filtered("sign-attention"),
    "soft-attention-filtered": _filtered("soft-attention"),
    "lambda-attention": _own_map("lambda-attention"),
    "labn": _own_map("labn"),
    **{name: _cam(name) for name in CAMS},
    "gradient": _gradient,
    "gradient-x-input": _gradient_x_input,
    "smoothgrad": _smoothgrad,
    "integrated-gradients": _integrated_gradients,
    "heavier-side-ig": _heavier_side_ig,
    "heavier-side-attention-ig": _heavier_side_attention_ig,
    "occlusion": _occlusion,
    "rise": _rise,
    "lime": _lime,
    "visual-backprop": _visual_backprop,
    "raw-attention": _attention_flow("raw-attention", RawAttention),
    "rollout": _attention_flow("rollout", Rollout),
    "attention-gradient": _attention_flow("attention-gradient", AttentionGradient),
    "norm-attention": _attention_flow("norm-attention", NormAttention),
    "generic-attention": _attention_flow("generic-attention", GenericAttention),
    "attention-ig": _attention_ig,
    "snna": _snna,
    "random": _random,
    "centre-prior": _centre_prior,
}
