"""Explainers, and the table of their literature names."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from inspect import signature
from typing import Any

from torch import nn

from driving_xai.errors import OptionError, UnsupportedModelError
from driving_xai.explain.cam import CAMS
from driving_xai.explain.causal_filter import CausalFilter
from driving_xai.explain.controls import CentrePrior, RandomOrder
from driving_xai.explain.gradient import Channels, Gradient, IntegratedGradients, SmoothGrad
from driving_xai.explain.grid import Cells
from driving_xai.explain.heavier_side import AttentionWeighted, HeavierSide
from driving_xai.explain.learned import LayerMean, learned_attention, learned_selection
from driving_xai.explain.lime import LIME
from driving_xai.explain.options import Options, OptionsOf, checked, options_of, require_tables
from driving_xai.explain.perturbation import RISE, Occlusion
from driving_xai.explain.visual_backprop import VisualBackProp, stages
from driving_xai.explain.vit.capture import check_vit
from driving_xai.explain.vit.flow import (
    AttentionGradient,
    GenericAttention,
    NormAttention,
    RawAttention,
    Rollout,
)
from driving_xai.explain.vit.smoothing import SNNA, AttentionIG
from driving_xai.explain.vit.tiles import GPU_TILE_ROWS, TILE_ROWS
from driving_xai.models.feature_maps import cell_centres, named_layer
from driving_xai.perturb import Fill
from driving_xai.types import Explainer, Saliency


@dataclass(frozen=True, kw_only=True)
class Method:
    """How an explainer is fitted to a model."""

    explainer: Callable[..., Explainer]
    """Takes the model's parts, and the options: other keywords, such as a number of samples."""
    parts: Callable[..., Mapping[str, Any]] = lambda model: {}
    """What a model gives its explainer, a layer say; keywords of its own are options too.

    Raises UnsupportedModelError where the model lacks it.
    """

    @property
    def options(self) -> dict[str, Any]:
        """Each option's type."""
        return options_of(self.parts, self.explainer)


def build(
    name: str, model: nn.Module, *, seed: int = 0, batch_size: int = 32, options: Options | None = None
) -> Explainer:
    """The explainer of a literature name, for this model.

    Args:
        name: of `METHODS`; behind an `@` may stand a label, which says what its options are for.
        model: the whole model, not its view of one instant, on the device that it will run on.
        seed: of methods that draw; the others ignore it.
        batch_size: of methods that run many edited frames: the most in one pass, but never fewer than
            one of every frame; see `perturb.batches`.
        options: the explainer's own, by name, for example `{"samples": 3}` of `snna`.

    Raises:
        OptionError: the method has no such option, or it does not take the value.
        ValueError: no method has that name; the message lists those there are.
        UnsupportedModelError: the model lacks what the method needs.

    Example:
        >>> from driving_xai.models.steering import SteeringConfig, SteeringModel
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> build("rise", model, options={"masks": 500, "normalisation": "observed"}).masks
        500
    """
    method = METHODS.get(without_label(name))
    if method is None:
        raise ValueError(f"method {name!r} is unknown; expected one of: {', '.join(METHODS)}")
    chosen = checked(name, options or {}, method.options)
    of_parts = {each: chosen.pop(each) for each in options_of(method.parts) if each in chosen}
    parts = method.parts(model, **of_parts)
    of_run = {"seed": seed, "batch_size": batch_size, "tile_rows": _tile_rows(model)}
    takes = signature(method.explainer).parameters
    fitting = {each: value for each, value in of_run.items() if each in takes}
    try:
        return method.explainer(**{**fitting, **parts, **chosen})
    except ValueError as error:
        raise OptionError(f"method {name!r}: {error}") from None


_LABELLED = re.compile(r"[^@]+@[A-Za-z0-9_-]{1,40}")
"""A label is part of files' names."""


def require_methods(
    names: Sequence[str], options: OptionsOf, *, least: int = 1, also: Sequence[str] = ()
) -> None:
    """Checks a recipe's methods and their options before there is a model.

    Args:
        least: how many there must be.
        also: names that run in any case and have options too.

    Raises:
        ValueError: a method is unknown, or named twice; the message says what is possible.
        OptionError: options are of no method named, unknown, or of another type.
    """
    unknown = [each for each in names if without_label(each) not in METHODS]
    if wrong := [each for each in names if "@" in each and not _LABELLED.fullmatch(each)]:
        raise ValueError(
            f"got method {wrong[0]!r}; expected a label of up to 40 letters, digits, - and _ after one @"
        )
    if unknown or len(names) < least:
        got = repr(unknown[0]) if unknown else "none"
        raise ValueError(f"got method {got}, expected some of: {', '.join(METHODS)}")
    if twice := [each for each in names if names.count(each) > 1]:
        raise ValueError(
            f"got method {twice[0]!r} twice, expected each once; with other options call it {twice[0]}@LABEL"
        )
    require_tables(options, dict.fromkeys([*names, *also]))
    for name, given in options.items():
        checked(name, given, METHODS[without_label(name)].options)


def without_label(name: str) -> str:
    """`snna` of `snna@literal`: one method may run several times in one run, with other options."""
    return name.partition("@")[0]


def _tile_rows(model: nn.Module) -> int:
    first = next(model.parameters(), None)
    return GPU_TILE_ROWS if first is not None and first.is_cuda else TILE_ROWS


def _reading(read: Callable[..., Saliency]) -> Callable[..., Explainer]:
    """A function of the model's own attention as an explainer."""

    def with_cells(*, cells: Cells | None) -> Explainer:
        return partial(read, cells=cells)

    return with_cells


def _attention_of(
    method: str, *kinds: str, trained_by: str, read: Callable[..., Saliency] = learned_attention
) -> Method:
    """The model's own attention, where it is of one of these kinds; `trained_by` is how to come by one."""

    def parts(model: nn.Module) -> Mapping[str, Any]:
        found = getattr(getattr(model, "config", None), "attention", "none")
        if found not in kinds:
            raise UnsupportedModelError(
                f"method {method!r} needs a model with {' or '.join(kinds)} attention, this one has {found!r}; "
                f"use grad-cam, or {trained_by}"
            )
        return {"cells": _cells(model)}

    return Method(explainer=_reading(read), parts=parts)


def _cam(name: str) -> Method:
    # Smooth Grad-CAM++ in one pass needs a target that is linear in the scores: the caller's to say.
    needs_gradients = name == "smooth-grad-cam++"

    def parts(model: nn.Module, *, layer: str | None = None) -> Mapping[str, Any]:
        own = getattr(model, "cam_layer", None)
        found = own if layer is None else named_layer(model, layer)
        if found is None:
            raise UnsupportedModelError(_no_layer(model, name))
        if found is not own:
            return {"layer": found, "cells": _cells_of(model, found)}
        head = None if needs_gradients else getattr(model, "cam_head", None)
        return {"layer": found, "cells": _cells(model), "head": head}

    return Method(explainer=CAMS[name], parts=parts)


def _no_layer(model: nn.Module, name: str) -> str:
    if isinstance(getattr(model, "vit", None), nn.Module):
        return f"{name} weighs feature maps and this is a transformer; use snna or generic-attention"
    layers = ", ".join(dict(model.named_children())) or "none"
    return (
        f"{type(model).__name__} names no cam_layer; choose one with --set options.{name}.layer=NAME (its parts: "
        f"{layers}), or use a gradient"
    )


def _own_map(name: str) -> Method:
    """A map that the network writes itself, where it does."""

    def parts(model: nn.Module) -> Mapping[str, Any]:
        found = getattr(model, "own_maps", {})
        if name not in found:
            has = ", ".join(found) or "none"
            raise UnsupportedModelError(
                f"method {name!r} needs a network that writes such a map, {type(model).__name__} writes {has}; "
                "use grad-cam, or train a classifier with network labn"
            )
        layer, cells = found[name]
        return {"layer": layer, "cells": None if cells is None else Cells(*cells)}

    return Method(explainer=LayerMean, parts=parts)


def _cells(model: nn.Module) -> Cells | None:
    """Where the model says that its feature grid lies."""
    placed = getattr(model, "cells_px", None)
    return None if placed is None else Cells(*placed)


def _cells_of(model: nn.Module, layer: nn.Module) -> Cells | None:
    """Where the cells of any layer lie, by a look at a frame of the model's own size."""
    config, weight = getattr(model, "config", None), next(model.parameters())
    sides = getattr(config, "height", 224), getattr(config, "width", 224)
    frame = weight.new_zeros(1, 3, *(getattr(config, "image_size", None) or sides))
    placed = cell_centres(model, frame, layer)
    return None if placed is None else Cells(*placed)


def _gradient(*, channels: Channels = "sum") -> Explainer:
    return Gradient(channels=channels)


def _gradient_x_input(*, channels: Channels = "sum") -> Explainer:
    return Gradient(times="input", channels=channels)


def _heavier_side_ig(
    *, share: float = 0.25, baseline: Fill = "black", steps: int = 50, batch_size: int
) -> Explainer:
    return HeavierSide(
        IntegratedGradients(baseline=baseline, steps=steps, batch_size=batch_size), share=share
    )


def _heavier_side_attention_ig(
    *, cells: Cells | None, share: float = 0.25, baseline: Fill = "black", steps: int = 50, batch_size: int
) -> Explainer:
    integrated = IntegratedGradients(baseline=baseline, steps=steps, batch_size=batch_size)
    return HeavierSide(AttentionWeighted(integrated, cells=cells), share=share)


def _cells_of_steering_attention(model: nn.Module) -> Mapping[str, Any]:
    found = getattr(getattr(model, "config", None), "attention", "none")
    if found not in ("sign", "soft"):
        raise UnsupportedModelError(
            "method 'heavier-side-attention-ig' needs a steering model with sign or soft attention, this one "
            f"has {found!r}; use heavier-side-ig"
        )
    return {"cells": _cells(model)}


def _stages(model: nn.Module) -> Mapping[str, Any]:
    encoder = getattr(model, "encoder", None)
    if not isinstance(encoder, nn.Sequential):
        raise UnsupportedModelError(
            f"method 'visual-backprop' needs an encoder that is a chain of convolutions, and {type(model).__name__} "
            "has none; use grad-cam or occlusion"
        )
    return {"stages": stages(encoder)}


def _filtered(name: str) -> Method:
    """Another method's maps, cut down to what changes the prediction."""
    return Method(explainer=CausalFilter, parts=lambda model: {"attention": build(name, model)})


def _of_transformer(name: str, explainer: Callable[..., Explainer]) -> Method:
    """A method of the Vision Transformer by which a model judges."""

    def parts(model: nn.Module) -> Mapping[str, Any]:
        vit = getattr(model, "vit", None)
        if not isinstance(vit, nn.Module):
            raise UnsupportedModelError(
                f"method {name!r} needs a Vision Transformer (attribute vit), as `train actions` makes one, and "
                f"{type(model).__name__} has none; `driving-xai methods CHECKPOINT` lists what fits"
            )
        check_vit(vit)
        return {"vit": vit}

    return Method(explainer=explainer, parts=parts)


_STEERING = "train steering with attention {!r}"
_SELECTING = (
    "train a classifier with --model {}; for several labels an image also --set model.output_kind=multilabel"
)
METHODS: Mapping[str, Method] = {
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
    "gradient": Method(explainer=_gradient),
    "gradient-x-input": Method(explainer=_gradient_x_input),
    "smoothgrad": Method(explainer=SmoothGrad),
    "integrated-gradients": Method(explainer=IntegratedGradients),
    "heavier-side-ig": Method(explainer=_heavier_side_ig),
    "heavier-side-attention-ig": Method(
        explainer=_heavier_side_attention_ig, parts=_cells_of_steering_attention
    ),
    "occlusion": Method(explainer=Occlusion),
    "rise": Method(explainer=RISE),
    "lime": Method(explainer=LIME),
    "visual-backprop": Method(explainer=VisualBackProp, parts=_stages),
    "raw-attention": _of_transformer("raw-attention", RawAttention),
    "rollout": _of_transformer("rollout", Rollout),
    "attention-gradient": _of_transformer("attention-gradient", AttentionGradient),
    "norm-attention": _of_transformer("norm-attention", NormAttention),
    "generic-attention": _of_transformer("generic-attention", GenericAttention),
    "attention-ig": _of_transformer("attention-ig", AttentionIG),
    "snna": _of_transformer("snna", SNNA),
    "random": Method(explainer=RandomOrder),
    "centre-prior": Method(explainer=CentrePrior),
}
