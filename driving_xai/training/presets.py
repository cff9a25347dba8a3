"""Recipes under a name: settings that are a paper's own, where our defaults are others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from data_prep.values import build

if TYPE_CHECKING:
    from driving_xai.training.dino import DinoTraining
    from driving_xai.training.steering import SteeringTraining

Preset = Literal["paper"]
Recipe = TypeVar("Recipe", "SteeringTraining", "DinoTraining")

_STEERING: Mapping[str, Any] = {
    # The paper names none of these. Its predecessor's released code decays the rate, in windows of 20 and batches
    # of 2, and takes the L1 loss.
    "window": 20,
    "batch_size": 2,
    "loss": "l1",
    "schedule": "decay",
    "patience": None,
    "averaging": 0.0,
    "gradient_clip": 0.0,
    "augmentation": {"flip": False, "brightness": 0.0, "contrast": 0.0},
    # Equations 4 and 11 as printed, and no normalisation, which the paper does not mention.
    "model": {"energy": "scalar", "attention_scale": "sum-to-one", "normalisation": "none"},
}
_DINO: Mapping[str, Any] = {"start": "timm", "model": {"backbone": "vit_small_patch8_224.dino"}}
_TABLES: Mapping[str, Mapping[Preset, Mapping[str, Any]]] = {
    "SteeringTraining": {"paper": _STEERING},
    "DinoTraining": {"paper": _DINO},
}
"""By the names of recipes, which are not imported for the one that is asked for."""


def table_of(recipe: type, name: Preset | None) -> Mapping[str, Any]:
    """What a preset sets, as a table of the recipe's configuration file; nothing without one.

    Args:
        recipe: `SteeringTraining` or `DinoTraining`.
        name: of the preset.
    """
    return {} if name is None else _TABLES[recipe.__name__][name]


def preset(recipe: type[Recipe], name: Preset = "paper") -> Recipe:
    """A recipe with a preset's settings; `dataclasses.replace` changes them.

    Source: Tashiro and Awano 2023, section 4, with what it leaves open from the released code of Kim et al. 2018;
    Zhu et al. 2024, section 4.1.
    Deviation: neither names the epochs of steering; there are our 30.

    Args:
        recipe: `SteeringTraining` or `DinoTraining`.
        name: of the preset.

    Example:
        >>> from driving_xai.training.steering import SteeringTraining
        >>> preset(SteeringTraining).schedule, SteeringTraining().schedule
        ('decay', 'cosine')
    """
    return build(recipe, table_of(recipe, name))
