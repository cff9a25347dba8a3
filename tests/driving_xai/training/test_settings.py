"""Every recipe's settings are bounded by the same types, so that a slip is one line and no traceback."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import pytest

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig
from driving_xai.data.splits import FoldOut, HoldOut
from driving_xai.evaluation.explain_images import ExplainConfig
from driving_xai.training.actions import ActionTraining
from driving_xai.training.attention import AttentionTraining
from driving_xai.training.augment import Augmentation
from driving_xai.training.bounded_logit import BoundedLogitTraining, Schedule
from driving_xai.training.classify import ClassifierTraining
from driving_xai.training.dino import DinoTraining
from driving_xai.training.dino_views import Crops
from driving_xai.training.steering import SteeringTraining

RECIPES: tuple[Any, ...] = (
    *(ActionTraining, AttentionTraining, Augmentation, BoundedLogitTraining, ClassifierTraining, Crops),
    *(DinoTraining, FoldOut, HoldOut, Schedule, SteeringTraining),
)
COUNTS = [
    (recipe, field.name)
    for recipe in RECIPES
    for field in fields(recipe)
    if "int" in str(field.type) or any(kind in str(field.type) for kind in ("Count", "Seed"))
]


@pytest.mark.parametrize(
    ("recipe", "name"), COUNTS, ids=[f"{recipe.__name__}.{name}" for recipe, name in COUNTS]
)
@pytest.mark.parametrize("value", [-1, 2**40, 0.5])
def test_seeds_and_counts_are_bounded(recipe: Any, name: str, value: Any) -> None:
    assert is_dataclass(recipe)
    with pytest.raises(ValueError, match=rf"{name} is .*; expected"):
        recipe(**{name: value})


@pytest.mark.parametrize("recipe", [SteeringTraining, ClassifierTraining])
def test_patience_says_what_it_takes(recipe: Any) -> None:
    assert recipe(patience=None).patience is None
    with pytest.raises(ValueError, match=r"expected a whole number of 1 or more .* or none"):
        recipe(patience=0)


@pytest.mark.parametrize("change", [{"seed": -1}, {"blocks": 0}, {"frames_per_shard": 0}])
def test_preparation_is_bounded(change: dict[str, int]) -> None:
    with pytest.raises(DataError, match=f"{next(iter(change))} is .*; expected"):
        PrepConfig(reader="synthetic", source="-", **change)


@pytest.mark.parametrize("change", [{"seed": -1}, {"batch_size": 0}, {"seed": 2**33}])
def test_explaining_is_bounded(change: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(change))} is .*; expected"):
        ExplainConfig(methods=("grad-cam",), **change)
