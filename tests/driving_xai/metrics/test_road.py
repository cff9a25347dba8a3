"""ROAD: pytorch-grad-cam's imputer, a dense twin, and the measure by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_grad_cam.metrics.road import NoisyLinearImputer
from torch import nn

from driving_xai.metrics.quantities import PROBABILITY, STEERING_ERROR
from driving_xai.metrics.road import ROAD, imputed
from driving_xai.targets import output
from driving_xai.types import Outputs

SIZE = (9, 12)


@pytest.fixture
def frame() -> torch.Tensor:
    return torch.rand(3, *SIZE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def _removed(share: float) -> torch.Tensor:
    return torch.rand(SIZE, generator=torch.Generator().manual_seed(1)) < share


@pytest.mark.filterwarnings("ignore:__array_wrap__:DeprecationWarning")  # The peer calls NumPy on tensors.
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_imputation_is_the_peers_and_that_of_a_dense_system(frame, share):
    removed = _removed(share)
    found = imputed(frame, removed)
    theirs = NoisyLinearImputer(noise=0)(frame.float(), (~removed).float())
    torch.testing.assert_close(found, theirs.double(), rtol=0, atol=1e-6)  # Theirs is float32.
    places = [tuple(place) for place in removed.nonzero().tolist()]
    system, known = np.zeros((len(places),) * 2), np.zeros((len(places), 3))
    for here, (row, column) in enumerate(places):
        for down in (-1, 0, 1):
            for right in (-1, 0, 1):
                there = (row + down, column + right)
                inside = 0 <= there[0] < SIZE[0] and 0 <= there[1] < SIZE[1]
                if there == (row, column) or not inside:
                    continue
                weight = 1 / 6 if 0 in (down, right) else 1 / 12
                system[here, here] += weight
                if there in places:
                    system[here, places.index(there)] -= weight
                else:
                    known[here] += weight * frame[:, there[0], there[1]].numpy()
    expected = frame.clone()
    expected[:, removed] = torch.from_numpy(np.linalg.solve(system, known).T)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_nothing_removed_and_everything_removed(frame):
    assert torch.equal(imputed(frame, torch.zeros(SIZE, dtype=torch.bool)), frame)
    assert torch.equal(
        imputed(frame, torch.ones(SIZE, dtype=torch.bool)), frame.mean((1, 2), keepdim=True).expand_as(frame)
    )


def test_the_measure_is_half_the_least_first_less_the_most_first():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(2)).double()
    model.outputs = Outputs(kind="multiclass", names=("a", "b"))
    frames = torch.rand(2, 3, *SIZE, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    maps = torch.rand(2, *SIZE, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        model(frames)
        found = ROAD(noise_std=0, fractions=(0.25, 0.5))(model, frames, maps, output(1)).value
        for row in range(2):
            ordered, total = maps[row].flatten().sort(descending=True).values, 0.0
            for count in (27, 54):
                most = maps[row] >= ordered[count - 1]
                least = maps[row] <= ordered[-count]
                left, gone = (
                    model(imputed(frames[row], each)[None]).softmax(1)[0, 1] for each in (least, most)
                )
                total += float(left - gone) / 2
            assert float(found[row]) == pytest.approx(total / 2, abs=1e-12)
        noisy = ROAD(fractions=(0.5,))(model, frames, maps, output(1)).value
        alone = ROAD(fractions=(0.5,))(model, frames[1:], maps[1:], output(1)).value
        torch.testing.assert_close(noisy[1:], alone, rtol=1e-12, atol=1e-15)
        assert not torch.equal(noisy, ROAD(fractions=(0.5,), seed=1)(model, frames, maps, output(1)).value)
    assert (ROAD().faithful(PROBABILITY), ROAD().faithful(STEERING_ERROR)) == ("high", "low")
