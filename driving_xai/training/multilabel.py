"""How well several yes-or-no labels are predicted, beside predictors that do not look."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Float64

Labels = Bool[np.ndarray, "N K"]
CalibrationRule = Literal["none", "f1", "accuracy"]


def agreement(predicted: Labels, truth: Labels, names: Sequence[str]) -> dict[str, Any]:
    """Accuracy and F1 scores of predicted labels.

    Returns:
        `accuracy`: share of all N x K labels that are right. `accuracies` and `f1`: of each label, by
        name. `mf1`: the mean of these. `f1_all`: the F1 of each image's labels, averaged over images.
        An F1 without a positive, true or predicted, is 0.

    Source: Xu et al. 2020 for `mf1` and `f1_all`, as in the authors' released evaluation.
    """
    right = predicted == truth
    by_label = _f1(predicted, truth, axis=0)
    return {
        "accuracy": float(right.mean()),
        "accuracies": _by_name(names, right.mean(0)),
        "f1": _by_name(names, by_label),
        "mf1": float(by_label.mean()),
        "f1_all": float(_f1(predicted, truth, axis=1).mean()),
    }


def trivial_agreements(
    train: Bool[np.ndarray, "M K"], truth: Labels, names: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """The same of two predictors that do not look: each label's majority in training, and never."""
    majority = np.broadcast_to(train.mean(0) > 0.5, truth.shape)
    return {
        "majority": agreement(majority, truth, names),
        "all_negative": agreement(np.zeros_like(truth), truth, names),
    }


def calibrated_thresholds(
    probability: Float64[np.ndarray, "N K"], truth: Labels, rule: CalibrationRule
) -> Float64[np.ndarray, " K"]:
    """For each label the threshold at which its F1 or its accuracy is best.

    Thresholds lie halfway between neighbouring probabilities; of equally good ones the nearest to 1/2
    is taken. "none" gives 1/2.
    """
    thresholds = np.full(truth.shape[1], 0.5)
    if rule == "none":
        return thresholds
    for label in range(truth.shape[1]):
        values = np.unique(probability[:, label])
        candidates = np.concatenate([[0.5], (values[1:] + values[:-1]) / 2])
        predicted = probability[:, label, None] > candidates
        wanted = np.broadcast_to(truth[:, label, None], predicted.shape)
        quality = _f1(predicted, wanted, axis=0) if rule == "f1" else (predicted == wanted).mean(0)
        best = candidates[quality >= quality.max() - 1e-12]
        thresholds[label] = best[np.argmin(np.abs(best - 0.5))]
    return thresholds


def _f1(predicted: np.ndarray, truth: np.ndarray, *, axis: int) -> np.ndarray:
    hits, positives = (predicted & truth).sum(axis), predicted.sum(axis) + truth.sum(axis)
    return np.divide(2.0 * hits, positives, out=np.zeros(len(hits)), where=positives > 0)


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float]:
    return {name: float(value) for name, value in zip(names, values, strict=True)}
