"""Gini index and entropy of maps against naive twins."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.complexity import Complexity, Sparseness, gini_index, share_entropy


def test_both_are_their_definitions():
    maps = torch.randn(4, 15, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for each, gini, entropy in zip(maps.tolist(), gini_index(maps), share_entropy(maps), strict=True):
        sizes = [abs(value) for value in each]
        apart = sum(abs(a - b) for a, b in product(sizes, sizes))
        assert float(gini) == pytest.approx(apart / (2 * len(sizes) * sum(sizes)), abs=1e-12)
        shares = [size / sum(sizes) for size in sizes]
        assert float(entropy) == pytest.approx(-sum(share * math.log(share) for share in shares), abs=1e-12)


def test_scale_and_order_change_nothing():
    maps = torch.rand(2, 30, dtype=torch.float64)
    for function in (gini_index, share_entropy):
        torch.testing.assert_close(function(-7 * maps.flip(1)), function(maps))


def test_a_constant_map_has_no_value():
    maps = torch.stack([torch.zeros(3, 4), torch.full((3, 4), 0.3), torch.arange(12.0).view(3, 4)])[None]
    batch: EvalBatch = None  # type: ignore[assignment]
    for metric in (Sparseness(), Complexity()):
        ((_, found),) = metric.measure(batch, RankedMaps.of(maps))
        assert found["value"].isnan().tolist() == [[True, True, False]]
