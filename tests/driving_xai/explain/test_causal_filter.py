"""Causal filtering: clusters as scikit-learn's, hulls by hand, and a model whose cause is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import DBSCAN
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.base import Function
from driving_xai.explain.causal_filter import CausalFilter, density_clusters, hull_mask
from driving_xai.explain.registry import fitted
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import left, magnitude, right


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(1, 120), least=st.integers(1, 9))
def test_clusters_are_dbscans(seed, count, least):
    points = np.random.default_rng(seed).integers(0, 25, (count, 2)).astype(float)
    labels = density_clusters(points, radius_px=2.5, least=least)
    peer = DBSCAN(eps=2.5, min_samples=least).fit(points)
    core = peer.core_sample_indices_
    assert np.array_equal(labels == -1, peer.labels_ == -1)
    # The same partition of the core points; numbers may differ.
    pairs = set(zip(labels[core].tolist(), peer.labels_[core].tolist(), strict=True))
    assert len(pairs) == len({ours for ours, _ in pairs}) == len({theirs for _, theirs in pairs})
    for i in set(np.flatnonzero(labels >= 0)) - set(core.tolist()):
        distances = np.hypot(*(points[core] - points[i]).T)
        assert labels[i] in labels[core][distances == distances.min()]


def test_a_hull_holds_its_pixels_and_what_lies_between():
    corners = np.array([(2, 3), (2, 9), (8, 3)], dtype=float)
    mask = hull_mask(corners, (12, 14))
    # The hull of the corner pixels' squares: its long side runs through (8.5, 3.5) and (2.5, 9.5).
    expected = np.array([[2 <= i <= 8 and 3 <= j <= 9 and i + j <= 12 for j in range(14)] for i in range(12)])
    assert np.array_equal(mask, expected)
    assert hull_mask(corners[:1], (12, 14)).nonzero() == (np.array([2]), np.array([3]))
    line = np.array([(5, 1), (5, 11)], dtype=float)
    assert np.array_equal(hull_mask(line, (12, 14)).nonzero()[1], np.arange(1, 12))
    assert hull_mask(np.array([(0, 0), (11, 13), (0, 13), (11, 0)], dtype=float), (12, 14)).all()


PATCHES = {
    "cause": (slice(4, 10), slice(4, 12)),
    "spurious": (slice(18, 26), slice(26, 36)),
    "weak": (slice(4, 10), slice(28, 36)),
}


class Patchy(nn.Module):
    """Answers to one patch, a tenth as much to another, and not at all to the third."""

    def forward(self, frames):
        cause, weak = (frames[:, :, *PATCHES[name]].mean((1, 2, 3)) for name in ("cause", "weak"))
        return (cause + 0.1 * weak)[:, None]


def attention(model, frames, target):
    """High on all three patches, low elsewhere."""
    maps = torch.full(frames[:, 0].shape, 0.01, dtype=frames.dtype)
    for patch in PATCHES.values():
        maps[:, *patch] = 1.0
    return maps


@pytest.fixture
def scene() -> torch.Tensor:
    return 0.5 + 0.5 * torch.rand(
        2, 3, 30, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )


def test_only_what_causes_the_prediction_is_left(scene):
    found = CausalFilter(attention=attention, min_share=0.5)
    saliency, regions = found(Patchy().eval(), scene, left), found.regions(Patchy().eval(), scene, left)
    assert regions.masks.flatten(2).any(2).sum(1).tolist() == [3, 3]
    assert regions.kept.sum(1).tolist() == [1, 1]
    inside = torch.zeros(30, 40, dtype=torch.bool)
    inside[PATCHES["cause"]] = True
    # The hull of particles drawn there: nearly all of the patch, and at most its nearest surroundings.
    assert (saliency[:, inside] > 0).double().mean() > 0.9
    assert (saliency[:, ~inside] > 0).double().mean() < 0.03
    assert torch.equal(saliency[saliency > 0], regions.attention[saliency > 0])


@pytest.mark.parametrize(
    ("options", "kept"), [({"min_share": 0.05}, 2), ({"min_change": 0.3}, 1), ({"min_change": 9.0}, 0)]
)
def test_thresholds_decide_how_much_is_enough(scene, options, kept):
    found = CausalFilter(attention=attention, **{"min_share": 0.0, **options}).regions(
        Patchy().eval(), scene, left
    )
    assert found.kept.sum(1).tolist() == [kept, kept]


def test_changes_are_those_of_hiding_each_region(scene):
    found = CausalFilter(attention=attention, fill="mean").regions(Patchy().eval(), scene, right)
    mean = scene.mean((2, 3), keepdim=True).expand_as(scene)
    for b in range(2):
        for mask, change in zip(found.masks[b], found.changes[b], strict=True):
            hidden = torch.where(mask, mean[b], scene[b])[None]
            expected = (left(Patchy().eval()(hidden)) - left(Patchy().eval()(scene[b : b + 1]))).abs()[0]
            torch.testing.assert_close(change, expected, rtol=1e-10, atol=1e-13)


def test_frames_of_more_and_fewer_regions_go_together(scene):
    """Batch, order and batch size change nothing, whatever the other frames hold."""

    def of_brightness(model, frames, target):
        maps = attention(model, frames, target)
        maps[frames[:, 0, 0, 0] > 0.7, *PATCHES["spurious"]] = 0.01
        return maps

    scene[0, 0, 0, 0], scene[1, 0, 0, 0] = 0.6, 0.9
    explain = CausalFilter(attention=of_brightness, min_share=0.05)
    assert explain.regions(Patchy().eval(), scene, left).masks.flatten(2).any(2).sum(1).tolist() == [3, 2]
    together = explain(Patchy().eval(), scene, left)
    for batch_size in (1, 4):
        other = CausalFilter(attention=of_brightness, min_share=0.05, batch_size=batch_size)
        assert torch.equal(other(Patchy().eval(), scene, left), together)
    assert torch.equal(explain(Patchy().eval(), scene.flip(0), left), together.flip(0))
    assert torch.equal(torch.cat([explain(Patchy().eval(), frame[None], left) for frame in scene]), together)
    other_seed = CausalFilter(attention=of_brightness, min_share=0.05, seed=1)
    assert not torch.equal(other_seed(Patchy().eval(), scene, left), together)


@pytest.mark.parametrize("level", [0.0, 1.0])
def test_attention_without_clusters_leaves_nothing(scene, level):
    """Nothing to draw from, or so even that no place is denser than others by far."""
    explain = CausalFilter(
        attention=lambda model, frames, target: torch.full_like(frames[:, 0], level), density=6.0
    )
    assert torch.equal(explain(Patchy().eval(), scene, left), torch.zeros(2, 30, 40, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["soft", "sign"])
def test_filtered_attention_of_a_steering_model(kind, untouched):
    torch.manual_seed(0)
    model = SteeringModel(
        SteeringConfig(hidden_size=8, attention=kind, height=32, width=48, temperature=0.02)
    ).eval()
    frames = torch.rand(3, 3, 32, 48)
    own, filtered = (
        fitted(name, model)(model.at(None), frames, magnitude)
        for name in (f"{kind}-attention", f"{kind}-attention-filtered")
    )
    with untouched(model, frames):
        assert torch.equal(
            fitted(f"{kind}-attention-filtered", model)(model.at(None), frames, magnitude), filtered
        )
    assert torch.equal(filtered[filtered > 0], own[filtered > 0])
    assert 0 < (filtered > 0).float().mean() < 1
    other = "sign" if kind == "soft" else "soft"
    with pytest.raises(UnsupportedModelError, match=f"does not write {other}-attention"):
        fitted(f"{other}-attention-filtered", model)


def test_a_broken_attention_and_impossible_options_are_refused(scene):
    with pytest.raises(ValueError, match="got NaN or infinity"):
        CausalFilter(attention=Function(function=lambda *_: torch.full((2, 30, 40), torch.nan)))(
            Patchy().eval(), scene, left
        )
    for options in (
        {"particles": 0},
        {"radius": 0.0},
        {"density": -1.0},
        {"min_share": -0.1},
        {"batch_size": 0},
    ):
        with pytest.raises(ValueError, match="got "):
            CausalFilter(attention=attention, **options)
