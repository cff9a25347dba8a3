"""What a dry run says of a training's speed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from driving_xai.training import throughput
from driving_xai.training.classify import ClassifierModule, recipe
from driving_xai.training.forecast import forecast
from tests.driving_xai.training import together
from tests.driving_xai.training.pictures import Pictures


class Clock:
    """Seconds that pass only where the test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def perf_counter(self) -> float:
        return self.now_s


def test_every_measured_step_counts_the_wait_for_its_data(monkeypatch) -> None:
    clock, load, step = Clock(), ClassifierModule.train_dataloader, ClassifierModule.training_step

    def slowly_fetched(module: ClassifierModule) -> torch.utils.data.DataLoader:
        def collate(batch: np.ndarray) -> torch.Tensor:
            clock.now_s += 3.0
            return torch.from_numpy(batch)

        loader = load(module)
        return torch.utils.data.DataLoader(loader.dataset, batch_size=None, collate_fn=collate)

    def one_second(module: ClassifierModule, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        clock.now_s += 1.0
        return step(module, batch, batch_idx)

    monkeypatch.setattr(throughput, "time", clock)
    monkeypatch.setattr(ClassifierModule, "train_dataloader", slowly_fetched)
    monkeypatch.setattr(ClassifierModule, "training_step", one_second)
    how = replace(together.CLASSIFIER, batch_size=5)
    found = forecast(recipe(Pictures(), how, data={}), device="cpu")
    assert found.speed is not None
    assert found.speed.data_wait_share == pytest.approx(0.75)
    assert found.speed.frames_per_s == pytest.approx(5 / 4)
