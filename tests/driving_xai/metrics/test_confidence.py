"""Average drop, increase and percentage-in: torch-cam, cases worked out by hand, batches."""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import pytest
import torch
import torchcam.methods
from torch import nn
from torchcam.metrics import ClassificationMetric

from driving_xai.evaluation.results import FRAME_COLUMNS, frame_rows
from driving_xai.evaluation.summary import summarise_scores
from driving_xai.explain.cam import GradCAM
from driving_xai.metrics.confidence import (
    AverageDrop,
    Increase,
    OfClass,
    average_drop,
    increase,
    percentage_in,
    scores_of_weighted,
    soft_mask,
)
from driving_xai.metrics.curves import rank
from driving_xai.metrics.registry import build
from driving_xai.metrics.statistics import BlockBootstrap
from driving_xai.targets import output
from driving_xai.types import Outputs


class Net(nn.Module):
    """Maps as large as the frame, so that nothing is interpolated before the peer stretches them."""

    outputs = Outputs(kind="multiclass", names=("a", "b", "c", "d"))

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU())
        self.head = nn.Linear(6, 4)

    def forward(self, frames):
        return 8 * self.head(self.features(frames).square().mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().eval()


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(8, 3, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(4))


class Brightness(nn.Module):
    """Class 1 is told by how much of the frame is bright, class 0 by nothing."""

    outputs = Outputs(kind="multiclass", names=("dark", "bright"))

    def forward(self, frames):
        bright = frames.mean((1, 2, 3))
        return torch.stack((torch.zeros_like(bright), bright), 1)


@pytest.mark.parametrize("column", [0, 2])
def test_drop_and_increase_equal_torchcams(net, frames, column):
    with torchcam.methods.GradCAM(net, net.features) as extractor:
        peer = ClassificationMetric(extractor, partial(torch.softmax, dim=-1))
        peer.update(frames, class_idx=column)
    # With a softmax in the metric, the peer's map is also the probability's.
    saliency = GradCAM(layer=net.features)(net, frames, lambda scores: scores.softmax(1)[:, column])
    value = OfClass(classes=torch.full((8,), column))
    clean = value(net(frames)).detach()
    shown = value(scores_of_weighted(net, frames, saliency))
    summary = peer.summary()
    # Theirs adds 1e-7 to the clean score and 1e-8 to the range of a map of a few 1e-4.
    assert average_drop(clean, shown).mean().item() == pytest.approx(100 * summary["avg_drop"], rel=1e-4)
    assert increase(clean, shown).mean().item() == pytest.approx(100 * summary["conf_increase"])
    assert 0 < summary["avg_drop"] < 1


def test_drop_and_increase_by_hand():
    clean = torch.tensor([0.8, 0.5, 0.4])
    shown = torch.tensor([[0.4, 0.8], [0.5, 0.6], [0.1, 0.0]])
    torch.testing.assert_close(
        average_drop(clean, shown), torch.tensor([[50.0, 0.0], [0.0, 0.0], [75.0, 100.0]])
    )
    torch.testing.assert_close(increase(clean, shown), torch.tensor([[0.0, 0.0], [0.0, 100.0], [0.0, 0.0]]))
    with pytest.raises(ValueError, match="got a clean score of -1; expected scores above 0"):
        average_drop(torch.tensor([-1.0]), torch.tensor([0.5]))


def test_a_map_is_stretched_within_its_frame_and_a_constant_one_hides_nothing():
    maps = torch.stack((torch.tensor([[-2.0, 0.0], [2.0, 6.0]]), torch.full((2, 2), 3.0)))
    torch.testing.assert_close(soft_mask(maps)[0], torch.tensor([[0.0, 0.25], [0.5, 1.0]]))
    torch.testing.assert_close(soft_mask(maps)[1], torch.ones(2, 2))


def test_percentage_in_of_a_linear_model_is_what_is_shown():
    """Bright pixels first: exactly k of them shown on black give their sum, as a logit."""
    frames = torch.zeros(2, 3, 10, 10, dtype=torch.float64)
    frames[0, :, :4] = 1  # 40 bright pixels.
    frames[1, :, :1] = 1  # 10 bright pixels.
    saliency = frames.mean(1)
    ranks = rank(saliency, torch.Generator().manual_seed(0))
    value = OfClass(classes=torch.tensor([1, 1]), scale="logit")
    found = percentage_in(Brightness(), frames, ranks, value)
    expected = [[0.05, 0.10, 0.20, 0.25, 0.40], [0.05, 0.10, 0.10, 0.10, 0.10]]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-15)
    probability = percentage_in(Brightness(), frames, ranks, OfClass(classes=torch.tensor([1, 1])))
    torch.testing.assert_close(probability, found.sigmoid(), rtol=1e-12, atol=0)


def test_each_frame_has_its_own_class():
    scores = torch.tensor([[[0.0, 1.0], [2.0, 3.0]], [[4.0, 5.0], [6.0, 7.0]]])
    found = OfClass(classes=torch.tensor([0, 1]), scale="logit")(scores)
    torch.testing.assert_close(found, torch.tensor([[0.0, 2.0], [5.0, 7.0]]))


def test_batches_and_order_change_nothing(net, frames):
    saliency = torch.rand(8, 12, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    whole = scores_of_weighted(net, frames, saliency)
    torch.testing.assert_close(
        scores_of_weighted(net, frames, saliency, batch_size=3), whole, rtol=1e-12, atol=0
    )
    turned = scores_of_weighted(net, frames.flip(0), saliency.flip(0), batch_size=5)
    torch.testing.assert_close(turned.flip(0), whole, rtol=1e-12, atol=0)
    ranks = rank(saliency, torch.Generator().manual_seed(0))
    value = OfClass(classes=torch.arange(8) % 4)
    many = percentage_in(net, frames, ranks, value, batch_size=64)
    torch.testing.assert_close(
        percentage_in(net, frames, ranks, value, batch_size=1), many, rtol=1e-12, atol=0
    )


def test_a_constant_map_is_counted_and_never_perfect():
    """An empty map and a constant one would leave the frame whole: a drop of 0, the best value."""
    net = nn.Sequential(nn.AvgPool2d(4), nn.Flatten())
    net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
    frames = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    maps = torch.stack([torch.zeros(4, 4), torch.full((4, 4), 0.7), torch.arange(16.0).view(4, 4)])
    for metric in (AverageDrop(), Increase()):
        found = metric(net, frames, maps, output(0))
        assert found.value.isnan().tolist() == [True, True, False]
        assert found.mean == pytest.approx(float(found.value[2]))
    places = {name: [0] * 3 for name in FRAME_COLUMNS} | {"frame": [0, 1, 2]}
    nothing = {name: np.full(3, np.nan) for name in ("prediction", "truth", "error")}
    value = torch.stack(
        [AverageDrop()(net, frames, each, output(0)).value for each in (maps, maps.flip(0))], 1
    )
    degenerate = np.array([[True, False], [True, True], [False, True]])
    rows = frame_rows(
        places,
        methods=["a", "b"],
        measure="average-drop",
        reference="target",
        known=nothing,
        columns={"value": value.numpy()},
        degenerate=degenerate,
    )
    scores = summarise_scores(pd.DataFrame(rows), BlockBootstrap(block=1, resamples=10, level=0.95, seed=0))
    assert [(each["frames"], each["degenerate"], each["without_value"]) for each in scores] == [
        (1, 1, 1),
        (1, 1, 1),
    ]


def test_percentage_in_as_a_logit_is_the_mean_logit_of_what_is_shown():
    net = Net().eval()
    frames, maps = torch.rand(2, 3, 12, 10), torch.rand(2, 12, 10)
    metric = build("percentage-in-logit")
    assert metric.label == "percentage-in-logit"
    found = metric(net, frames, maps, output(2))
    with torch.no_grad():
        for row in range(2):
            order = maps[row].flatten().argsort(descending=True)
            shown = []
            for fraction in metric.fractions:
                mask = torch.zeros(120)
                mask[order[: round(fraction * 120)]] = 1
                shown.append(float(net(frames[row : row + 1] * mask.view(12, 10))[0, 2]))
            assert found.curve[row].tolist() == pytest.approx(shown, abs=1e-5)
            assert float(found.value[row]) == pytest.approx(sum(shown) / 5, abs=1e-5)
    assert found.unit == "logit"
