"""Metrics of several labels: as scikit-learn counts them, and by hand."""

import numpy as np
import pytest

from driving_xai.training.multilabel import agreement, calibrated_thresholds, trivial_agreements

NAMES = ("forward", "stop", "left", "right")


@pytest.mark.parametrize("seed", range(4))
def test_scores_are_scikit_learns(seed) -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(seed)
    truth, predicted = rng.uniform(size=(2, 40, 4)) < 0.3
    truth[:, 3] &= seed > 0  # A label that never occurs.
    found = agreement(predicted, truth, NAMES)
    by_label = metrics.f1_score(truth, predicted, average=None, zero_division=0)
    assert list(found["f1"].values()) == pytest.approx(by_label.tolist())
    assert found["mf1"] == pytest.approx(by_label.mean())
    assert found["f1_all"] == pytest.approx(
        metrics.f1_score(truth, predicted, average="samples", zero_division=0)
    )
    assert found["accuracy"] == pytest.approx(1 - metrics.hamming_loss(truth, predicted))


def test_predictors_that_do_not_look() -> None:
    train = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], bool)
    truth = np.array([[1, 1], [0, 0]], bool)
    found = trivial_agreements(train, truth, ("a", "b"))
    assert found["majority"]["accuracy"] == 0.5
    assert found["majority"]["f1"] == {"a": pytest.approx(2 / 3), "b": 0.0}
    assert found["all_negative"]["accuracy"] == 0.5
    assert found["all_negative"]["f1_all"] == 0.0


def test_the_specifications_trivial_accuracies_of_bdd_oia() -> None:
    """Positives 12,491, 10,432, 5,902 and 6,541 of 22,924: 63.7 % for the majority, 61.4 % for never."""
    truth = np.zeros((22924, 4), bool)
    for label, positives in enumerate((12491, 10432, 5902, 6541)):
        truth[:positives, label] = True
    found = trivial_agreements(truth, truth, NAMES)
    assert round(found["majority"]["accuracy"], 3) == 0.637
    assert round(found["all_negative"]["accuracy"], 3) == 0.614


@pytest.mark.parametrize("rule", ["f1", "accuracy"])
def test_a_calibrated_threshold_is_the_best_of_all(rule) -> None:
    rng = np.random.default_rng(0)
    probability = rng.uniform(size=(60, 2))
    truth = probability + 0.3 * rng.standard_normal((60, 2)) > 0.7
    thresholds = calibrated_thresholds(probability, truth, rule)
    for label in range(2):

        def quality(threshold: float, label: int = label) -> float:
            found = agreement(probability[:, [label]] > threshold, truth[:, [label]], ("x",))
            return found["mf1"] if rule == "f1" else found["accuracy"]

        # No cut between two neighbours, tried one by one, is better.
        assert quality(thresholds[label]) == max(quality(t) for t in [0.5, *probability[:, label]])
        assert quality(thresholds[label]) > quality(0.5)


def test_without_a_rule_the_threshold_is_a_half() -> None:
    assert calibrated_thresholds(np.array([[0.1], [0.2]]), np.array([[True], [True]]), "none").tolist() == [
        0.5
    ]
