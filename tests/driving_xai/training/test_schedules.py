"""Schedules at their ends and between them, by hand, and as the recipes' optimisers meet them."""

from __future__ import annotations

import lightning as L
import numpy as np
import pytest

from driving_xai.training.classify import ClassifierTraining, train
from driving_xai.training.schedules import FLOOR, cosine, rate_share
from tests.driving_xai.training.pictures import Pictures


@pytest.mark.parametrize(("epochs", "warmup"), [(10, 0), (10, 4), (1, 0), (3, 3), (2, 5)])
def test_the_share_starts_at_one_after_its_warm_up_and_ends_at_the_floor(epochs, warmup) -> None:
    shares = [rate_share(epoch, epochs, "cosine", warmup_epochs=warmup) for epoch in range(epochs + 1)]
    rising = min(warmup, epochs)
    assert shares[:rising] == [(epoch + 1) / rising for epoch in range(rising)]
    assert max(shares) == 1.0
    if rising < epochs:
        assert shares[rising] == 1.0
        assert shares[epochs] == pytest.approx(FLOOR)
        assert all(np.diff(shares[rising:]) < 0)
        middle = [
            FLOOR + (1 - FLOOR) * np.cos(np.pi * i / (epochs - rising) / 2) ** 2
            for i in range(epochs - rising)
        ]
        np.testing.assert_allclose(shares[rising:epochs], middle, rtol=1e-12)


def test_a_constant_rate_has_a_warm_up_too() -> None:
    assert [rate_share(e, 4, "constant", warmup_epochs=2) for e in range(4)] == [0.5, 1.0, 1.0, 1.0]


def test_the_warm_up_from_zero_is_numpys_linspace() -> None:
    """Caron et al.'s code: np.linspace(0, base, warmup_steps), then the cosine of what is left."""
    base, end, warmup, steps = 0.3, 1e-3, 5, 17
    left = np.arange(steps - warmup)
    theirs = np.concatenate(
        [np.linspace(0, base, warmup), end + 0.5 * (base - end) * (1 + np.cos(np.pi * left / len(left)))]
    )
    ours = [cosine(step, steps, base, end, warmup_steps=warmup) for step in range(steps)]
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


class Rates(L.Callback):
    """The rates that each epoch trained with, by group."""

    def __init__(self) -> None:
        self.found: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        self.found.append({group["name"]: group["lr"] for group in trainer.optimizers[0].param_groups})


def test_each_group_of_the_optimiser_follows_its_own_rate(tmp_path) -> None:
    how = ClassifierTraining(
        epochs=3, learning_rate=0.1, features_learning_rate=0.01, warmup_epochs=1, patience=None
    )
    rates = Rates()
    small = {"network": "small-cnn", "channels": (4,), "pooled": 1}
    how = ClassifierTraining(**{**vars(how), "model": type(how.model)(**small)})
    train(Pictures(20), tmp_path, how, data={}, device="cpu", callbacks=(rates,))
    shares = [1.0, 1.0, FLOOR + (1 - FLOOR) / 2]
    assert [each["heads"] for each in rates.found] == pytest.approx([0.1 * share for share in shares])
    assert [each["features"] for each in rates.found] == pytest.approx([0.01 * share for share in shares])
