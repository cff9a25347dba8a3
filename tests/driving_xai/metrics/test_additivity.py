"""Infidelity and sensitivity-n: captum, a slow twin, and linear models, whose exact map is known."""

from __future__ import annotations

import pytest
import torch
from captum.metrics import infidelity as of_captum
from scipy import stats
from torch import nn

from driving_xai.metrics.additivity import Infidelity, SensitivityN, infidelity
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.perturb import blank
from driving_xai.targets import magnitude, output
from driving_xai.types import Outputs

HEIGHT, WIDTH = 10, 14


class Net(nn.Module):
    def __init__(self, kind: str = "multiclass", *, linear: bool = False) -> None:
        super().__init__()
        drawn = torch.Generator().manual_seed(0)
        columns = 1 if kind == "regression" else 3
        self.weight = torch.randn(columns, 3, HEIGHT, WIDTH, generator=drawn, dtype=torch.float64) / 10
        self.outputs = Outputs(kind=kind, names=("a", "b", "c")[:columns])
        self.linear = linear
        self.eval()

    def forward(self, frames):
        found = torch.einsum("bchw,kchw->bk", frames, self.weight) + 4
        return found if self.linear else found.tanh() + found.square() / 10


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(3, 3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.randn(3, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("fill", ["black", "blur"])
def test_infidelity_is_captums(frames, maps, fill):
    """With the map on one channel and a perturbation of 1 where a pixel is removed."""
    model, metric = Net(), Infidelity(samples=20, fill=fill, batch_size=7)
    (sets,) = metric.sets(HEIGHT, WIDTH)
    nothing = blank(frames, fill)

    def removed(inputs):
        count = len(inputs) // len(sets)
        gone = sets.repeat(count, 1, 1)[:, None]
        first = torch.zeros_like(inputs)
        first[:, 0] = gone[:, 0].double()
        hidden = nothing[:count].repeat_interleave(len(sets), 0)
        return first, torch.where(gone, hidden, inputs)

    attributions = torch.zeros_like(frames)
    attributions[:, 0] = maps.double()
    expected = of_captum(
        lambda inputs: model(inputs).softmax(1)[:, 1],
        removed,
        frames,
        attributions,
        n_perturb_samples=len(sets),
        normalize=True,
    )
    clean = model(frames).softmax(1)[:, 1]
    lost = torch.stack(
        [clean - model(torch.where(each, nothing, frames)).softmax(1)[:, 1] for each in sets], 1
    )
    sums = torch.einsum("bhw,shw->bs", maps.double(), sets.double())
    torch.testing.assert_close(infidelity(sums, lost), expected, rtol=1e-10, atol=1e-14)
    found = metric(model, frames, maps, output(1))
    torch.testing.assert_close(found.value, expected / lost.square().mean(1), rtol=1e-9, atol=1e-12)


def test_sensitivity_n_is_scipys_correlation_over_sets_removed_one_by_one(frames, maps):
    model, metric = (
        Net("regression"),
        SensitivityN(fractions=(0.1, 0.5), samples=9, fill="mean", batch_size=5),
    )
    found = metric(model, frames, maps, magnitude).value
    nothing = blank(frames, "mean")
    for row in range(3):
        by_n = []
        for sets in metric.sets(HEIGHT, WIDTH):
            lost = []
            for each in sets:
                edited = frames[row].clone()
                edited[:, each] = nothing[row][:, each]
                lost.append(float(model(frames[row][None]).abs() - model(edited[None]).abs()))
            sums = [float(maps[row].double()[each].sum()) for each in sets]
            by_n.append(stats.pearsonr(sums, lost).statistic)
        assert float(found[row]) == pytest.approx(sum(by_n) / 2, abs=1e-9)
    assert [int(sets.sum((1, 2)).unique()) for sets in metric.sets(HEIGHT, WIDTH)] == [14, 70]


def test_the_exact_map_of_a_linear_model_predicts_every_loss(frames):
    model = Net("regression", linear=True)
    exact = (frames * model.weight[0]).sum(1)
    assert (Infidelity()(model, frames, exact.float(), magnitude).value < 1e-10).all()
    assert (SensitivityN()(model, frames, 5 * exact.float(), magnitude).value > 1 - 1e-10).all()


def test_nothing_is_said_of_constant_maps_and_of_models_that_nothing_changes(frames):
    flat = torch.full((3, HEIGHT, WIDTH), 0.7)
    dark = torch.zeros_like(frames)
    for metric in (Infidelity(), SensitivityN()):
        assert metric(Net(), frames, flat, output(0)).value.isnan().all()
        assert metric(Net(), dark, torch.rand(3, HEIGHT, WIDTH), output(0)).value.isnan().all()


def test_batches_and_other_methods_change_nothing(frames, maps):
    batch = EvalBatch.of(Net(), frames, output(0))
    ranked = RankedMaps.of(torch.stack([maps, maps.flip(1)], 1))
    for kind in (Infidelity, SensitivityN):
        ((_, whole),) = kind(batch_size=100).measure(batch, ranked)
        ((_, small),) = kind(batch_size=1).measure(batch, ranked)
        torch.testing.assert_close(small["value"], whole["value"], rtol=1e-9, atol=1e-12)
        alone = kind()(Net(), frames[1:2], maps[1:2], output(0)).value
        torch.testing.assert_close(alone, whole["value"][1:2, 0], rtol=1e-9, atol=1e-12)
    for settings in ({"fill": "grey"}, {"samples": 2}, {"side": 0.0}):
        with pytest.raises(ValueError, match="expected"):
            Infidelity(**settings)
