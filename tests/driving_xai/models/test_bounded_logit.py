"""Bounded logit attention against its equations, and what does and does not reach its weights."""

from __future__ import annotations

import copy
import math
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.explain.attention import LearnedMap
from driving_xai.explain.cam import GradCAM
from driving_xai.explain.grid import Cells, to_frame_grid
from driving_xai.explain.registry import fitted
from driving_xai.metrics.curves import rank
from driving_xai.models.bounded_logit import (
    AttentiveHead,
    BoundedLogitConfig,
    BoundedLogitModel,
    cells_of,
    hard_selection,
    soft_selection,
    thresholded,
)
from driving_xai.models.frozen_cnn import FrozenCNN
from driving_xai.targets import output
from driving_xai.types import AttentiveFrameModel, SelectiveFrameModel

CLASSES = ("car", "person", "light")
CELLS = 49


def head(attention: str = "bla-t", **settings) -> AttentiveHead:
    torch.manual_seed(1)
    config = BoundedLogitConfig(classes=CLASSES, attention=attention, **{"dropout": 0.0} | settings)
    return AttentiveHead(config, channels=6).double().eval()


def model(attention: str = "bla", **settings) -> BoundedLogitModel:
    torch.manual_seed(1)
    config = BoundedLogitConfig(classes=CLASSES, attention=attention, **settings)
    return BoundedLogitModel(config).double().eval()


@pytest.fixture
def features() -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(4, CELLS, 6, generator=generator, dtype=torch.float64)


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(3, 3, 28, 28, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


@pytest.mark.parametrize("attention", ["none", "bla", "bla-t", "l2x-f"])
@pytest.mark.parametrize("explanation", ["soft", "hard"])
def test_scores_follow_the_equations(attention, explanation, features):
    """A slow twin: one cell at a time, in plain Python but for the softmax."""
    if (attention, explanation) == ("l2x-f", "soft"):
        pytest.skip("its sampling is held to its definition in test_subset_sampling.py")
    network = head(attention, subset_size=5, gamma=0.02).requires_grad_(False)
    found = network(features, explanation=explanation)
    for cells, scores in zip(features, found, strict=True):
        if attention == "none":
            weights = [1 / CELLS] * CELLS
        else:
            g = [float(network.explain.weight[0] @ cell + network.explain.bias[0]) for cell in cells]
            bounded = [min(value, 0.0) for value in g]
            q = torch.softmax(0.1 * torch.tensor(bounded, dtype=torch.float64), 0).tolist()
            if attention == "l2x-f":
                kept = sorted(range(CELLS), key=lambda i: -g[i])[:5]
                weights = [1 / 5 if i in kept else 0.0 for i in range(CELLS)]
            elif explanation == "hard":
                winners = [i for i in range(CELLS) if bounded[i] == max(bounded)]
                weights = [1 / len(winners) if i in winners else 0.0 for i in range(CELLS)]
            else:
                weights = [max(value - 0.02, 0.0) for value in q] if attention == "bla-t" else q
        pooled = sum(weight * cell for weight, cell in zip(weights, cells, strict=True))
        expected = network.classify.weight @ pooled + network.classify.bias
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("explanation", ["soft", "hard"])
@pytest.mark.parametrize("attention", ["concept", "sigmoid"])
def test_other_contexts_follow_their_equations(attention, explanation, features):
    """A slow twin of Jetley's concept vector in the logits, and of a sigmoid for each cell by itself."""
    network = head(attention, cells=CELLS).requires_grad_(False)
    found = network(features, explanation=explanation)
    for cells, scores in zip(features, found, strict=True):
        weight, bias = network.explain.weight[0], float(network.explain.bias[0])
        if attention == "concept":
            concept = sum(network.concept.weight[:, 6 * i : 6 * i + 6] @ cell for i, cell in enumerate(cells))
            logits = [min(float(weight @ (concept + cell)) + bias, 0.0) for cell in cells]
            weights = torch.softmax(0.1 * torch.tensor(logits, dtype=torch.float64), 0).tolist()
        else:
            logits = [float(weight @ cell) + bias for cell in cells]
            weights = [1 / (1 + math.exp(-value)) / CELLS for value in logits]
            logits = [min(value, 0.0) for value in logits]
        if explanation == "hard":
            winners = [i for i in range(CELLS) if logits[i] == max(logits)]
            weights = [1 / len(winners) if i in winners else 0.0 for i in range(CELLS)]
        pooled = sum(weight * cell for weight, cell in zip(weights, cells, strict=True))
        expected = network.classify.weight @ pooled + network.classify.bias
        torch.testing.assert_close(scores, expected, rtol=1e-12, atol=1e-12)


def test_a_concept_vector_lifts_the_bound_and_leaves_one_cell(features):
    """Far below zero the bound does nothing: q is the softmax of unbounded logits, whose maximum is one cell."""
    network = head("concept", cells=CELLS).requires_grad_(False)
    network.explain.bias.fill_(-1000.0)
    unbounded = network.explain(features + network.concept(features.flatten(1))[:, None]).squeeze(2)
    torch.testing.assert_close(
        network.attend(features), torch.softmax(0.1 * unbounded, 1), rtol=1e-12, atol=0
    )
    assert (network.select(features) > 0).sum(1).tolist() == [1, 1, 1, 1]
    with pytest.raises(UnsupportedModelError, match="has 48 cells and this model was trained with 49"):
        network(features[:, 1:])
    with pytest.raises(ValueError, match="cells is not set"):
        head("concept")


def test_a_network_explained_after_the_fact_predicts_as_before(frames):
    """With `predicts` all-cells, scores and Grad-CAM are the baseline's, and the selection is the explanation's."""
    plain = model("none")
    explained, selecting = (model("bla-t", predicts=which) for which in ("all-cells", "selection"))
    for each in (explained, selecting):
        missing = each.load_state_dict(plain.state_dict(), strict=False).missing_keys
        assert missing == ["head.explain.weight", "head.explain.bias"]
    assert torch.equal(explained(frames), plain(frames))
    assert torch.equal(explained.selection(frames), selecting.selection(frames))
    assert not torch.allclose(explained(frames), selecting(frames))
    assert explained.feature_map.head is explained.head.classify
    torch.testing.assert_close(
        GradCAM()(explained, frames, output(1)), GradCAM()(plain, frames, output(1)), rtol=1e-12, atol=0
    )


def test_bounded_logits_make_soft_selections_nearly_even(features):
    """With every logit <= 0 no cell outweighs one of logit 0, and those of logit 0 are all equal."""
    network = head("bla")
    logits, soft = network.logits(features), network.attend(features)
    assert (logits <= 0).all()
    zero = logits == 0
    assert zero.any()
    best = soft.amax(1, keepdim=True).expand_as(soft)
    torch.testing.assert_close(soft[zero], best[zero], rtol=1e-12, atol=0)
    torch.testing.assert_close(soft.sum(1), torch.ones(4, dtype=torch.float64), rtol=1e-12, atol=0)
    # Below -1 / theta a logit costs a factor of e; theta divides the logits' reach by ten.
    torch.testing.assert_close(soft, soft_selection(0.1 * logits, theta=1.0), rtol=1e-12, atol=0)


def test_hard_selections_sum_to_one_and_differ_where_all_is_rejected():
    logits = torch.tensor([[0.0, -1.0, 0.0, -3.0], [-2.0, -1.0, -4.0, -1.0]])
    assert hard_selection(logits, rule="maximal").tolist() == [[0.5, 0, 0.5, 0], [0, 0.5, 0, 0.5]]
    assert hard_selection(logits, rule="zero-logit").tolist() == [[0.5, 0, 0.5, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("k", [1, 10, 40, 49])
def test_excess_of_equal_winners_sums_to_less_than_one(k):
    """k winners with all the mass sum to 1 - k gamma where hard weights sum to 1: 0.8 at 10, 0.2 at 40."""
    soft = torch.zeros(1, CELLS, dtype=torch.float64)
    soft[:, :k] = 1 / k
    found = thresholded(soft, gamma=0.02, rule="excess")
    assert float(found.sum()) == pytest.approx(1 - 0.02 * k, abs=1e-12)
    assert float(thresholded(soft, gamma=0.02, rule="renormalised").sum()) == pytest.approx(1)
    assert float(thresholded(soft, gamma=0.02, rule="indicator").sum()) == k


def test_the_threshold_of_one_over_n_zeroes_an_even_selection():
    even = torch.full((1, CELLS), 1 / CELLS, dtype=torch.float64)
    for rule in ("excess", "renormalised", "indicator"):
        assert thresholded(even, gamma=1 / CELLS, rule=rule).tolist() == [[0.0] * CELLS]


@pytest.mark.parametrize("rule", ["excess", "renormalised", "straight-through"])
def test_these_thresholds_let_the_explanation_learn(rule, features):
    network = head("bla-t", thresholding=rule).train()
    F.cross_entropy(network(features), torch.tensor([0, 1, 2, 0])).backward()
    assert network.explain.weight.grad.abs().sum() > 0


def test_the_papers_equation_gives_the_explanation_no_gradient(features):
    network = head("bla-t", thresholding="indicator").train()
    F.cross_entropy(network(features), torch.tensor([0, 1, 2, 0])).backward()
    assert network.explain.weight.grad is None
    assert network.classify.weight.grad.abs().sum() > 0
    straight = head("bla-t", thresholding="straight-through").train()
    torch.testing.assert_close(straight(features), network(features), rtol=1e-12, atol=1e-12)


def test_straight_through_has_the_gradient_of_the_soft_selection():
    soft = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64, requires_grad=True)
    weights = thresholded(soft, gamma=0.25, rule="straight-through")
    (gradient,) = torch.autograd.grad(weights, soft, torch.tensor([[3.0, 5.0, 7.0]]).double())
    assert weights.tolist() == [[1.0, 1.0, 0.0]]
    assert gradient.tolist() == [[3.0, 5.0, 7.0]]


def test_training_pools_softly_and_judging_by_the_selection(features):
    network = head("bla-t")
    torch.testing.assert_close(network(features), network(features, explanation="hard"), rtol=0, atol=0)
    training = copy.deepcopy(network).train()
    torch.testing.assert_close(training(features), network(features, explanation="soft"), rtol=0, atol=0)


def test_one_unit_is_the_sigmoid_of_its_difference(features):
    config = BoundedLogitConfig(classes=("three", "eight"), attention="bla", units="difference", dropout=0)
    network = AttentiveHead(config, channels=6).double().eval()
    scores = network(features)
    z = network.classify(torch.einsum("bn,bnc->bc", network.select(features), features)).squeeze(1)
    torch.testing.assert_close(torch.softmax(scores, 1)[:, 1], torch.sigmoid(z), rtol=1e-12, atol=0)
    labels = torch.tensor([0, 1, 1, 0])
    torch.testing.assert_close(
        F.cross_entropy(scores, labels),
        F.binary_cross_entropy_with_logits(z, labels.double()),
        rtol=1e-12,
        atol=0,
    )


@pytest.mark.parametrize("attention", ["none", "bla", "bla-t", "l2x-f"])
def test_each_frame_is_judged_by_itself(attention, frames):
    network = model(attention)
    together = network(frames)
    alone = torch.cat([network(frame[None]) for frame in frames])
    torch.testing.assert_close(together, alone, rtol=1e-11, atol=1e-12)


def test_maps_fit_the_contract_and_the_frame(frames):
    network = model("bla-t")
    assert isinstance(network, AttentiveFrameModel)
    assert isinstance(network, SelectiveFrameModel)
    soft, hard = network.attention(frames), network.selection(frames)
    for maps in (soft, hard):
        assert maps.shape == (3, 7, 7)
        torch.testing.assert_close(maps.sum((1, 2)), torch.ones(3, dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(
        fitted("bla", network)(network, frames, output(0)),
        to_frame_grid(soft, frames, Cells(1.5, 4)).detach(),
        rtol=1e-12,
        atol=0,
    )
    repeated = F.interpolate(hard[:, None].detach(), scale_factor=4, mode="nearest")[:, 0]
    assert torch.equal(LearnedMap(map="bla-hard")(network, frames, output(0)), repeated)


def test_the_hard_map_is_the_selection_and_orders_nothing_inside(frames):
    network = model("bla-t")
    maps = fitted("bla-hard", network)(network, frames, output(0))
    chosen = network.selection(frames) > 0
    one, other = (rank(maps, torch.Generator().manual_seed(seed)) for seed in (0, 1))
    assert 1 < chosen[0].sum() < 49
    for saliency, cells, first, again in zip(maps, chosen, one, other, strict=True):
        assert saliency.unique().tolist() == pytest.approx([0, 1 / int(cells.sum())])
        pixels = int(cells.sum()) * 16
        for ranks in (first, again):
            inside = (ranks < pixels).view(7, 4, 7, 4)
            assert torch.equal(inside, cells[:, None, :, None].expand(7, 4, 7, 4))
    assert not torch.equal(one, other), "which of them comes first is the seed's draw"


def test_cells_lie_where_their_receptive_fields_are_centred():
    """The pixels that can change a cell's feature are centred on the cell."""
    network = model("none", kernel=3, channels=(4, 4, 4)).backbone
    first, stride, *_ = network.feature_map.cells
    # Over many frames, as a maximum hides some pixels of each.
    reached = torch.zeros(28, 28, dtype=torch.float64)
    for seed in range(20):
        torch.manual_seed(seed)
        values = torch.rand(1, 3, 28, 28, dtype=torch.float64, requires_grad=True)
        network.layers[:-1](values.mean(1, keepdim=True))[0, :, 3, 4].sum().backward()
        reached += values.grad.abs().sum((0, 1))
    rows, columns = reached.sum(1).nonzero().squeeze(1), reached.sum(0).nonzero().squeeze(1)
    assert float(rows[0] + rows[-1]) / 2 == first + 3 * stride
    assert float(columns[0] + columns[-1]) / 2 == first + 4 * stride


def test_grad_cam_of_the_baseline_is_the_cam_of_its_weights(frames):
    """CAM_i = w_c . f_i: the head pools the mean, so that Grad-CAM's weights are w_c / n."""
    network = model("none")
    maps = network.backbone(frames).detach()
    cam = torch.einsum("c,bchw->bhw", network.head.classify.weight[2].detach(), maps)
    expected = to_frame_grid(cam.relu() / 49, frames, Cells(1.5, 4))
    found = GradCAM()(network, frames, output(2))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-14)


def test_a_method_of_another_attention_is_refused():
    for name, attention in (("bla", "l2x-f"), ("bla-hard", "l2x-f"), ("l2x-f", "bla"), ("bla", "none")):
        with pytest.raises(UnsupportedModelError, match=f"does not write {name} "):
            fitted(name, model(attention))
    with pytest.raises(UnsupportedModelError, match="selects nothing"):
        model("none").attention(torch.rand(1, 3, 28, 28, dtype=torch.float64))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"classes": ("a",)}, "expected two names or more"),
        ({"classes": ("a", "a")}, "none twice"),
        ({"theta": 0.0}, "theta is 0.0"),
        ({"gamma": 1.5}, "gamma is 1.5"),
        ({"units": "difference"}, "units is 'difference'"),
    ],
)
def test_settings_out_of_range_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        BoundedLogitConfig(**{"classes": CLASSES} | settings)


def test_cells_are_in_reading_order():
    maps = torch.arange(2 * 3 * 4.0).view(1, 2, 3, 4)
    assert cells_of(maps)[0, :, 0].tolist() == list(range(12))
    assert cells_of(maps)[0, 5].tolist() == [5, 17]


@pytest.fixture(scope="module")
def frozen() -> BoundedLogitModel:
    torch.manual_seed(0)
    return BoundedLogitModel(BoundedLogitConfig(classes=CLASSES, backbone="efficientnet_b0", attention="bla"))


def test_a_frozen_network_stays_as_it_is_in_training(frozen):
    frames = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    kept = {name: tensor.clone() for name, tensor in frozen.backbone.state_dict().items()}
    F.cross_entropy(frozen.train()(frames), torch.tensor([0, 1])).backward()
    assert all(torch.equal(tensor, kept[name]) for name, tensor in frozen.backbone.state_dict().items())
    assert all(parameter.grad is None for parameter in frozen.backbone.parameters())
    assert frozen.head.explain.weight.grad is not None
    assert not frozen.backbone.trunk.training


def test_a_frozen_network_takes_timms_weights_strictly(frozen, tmp_path):
    import timm

    torch.manual_seed(5)
    whole = timm.create_model("efficientnet_b0", num_classes=4).eval()
    torch.save(whole.state_dict(), tmp_path / "whole.pth")
    network = FrozenCNN()
    network.load(tmp_path / "whole.pth")
    frames = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    expected = whole.forward_features((frames - network.mean) / network.std)
    torch.testing.assert_close(network(frames), expected.detach(), rtol=1e-5, atol=1e-6)
    assert network(frames).shape == (1, 1280, 2, 2)
    state = whole.state_dict()
    state.pop("conv_stem.weight")
    torch.save(state, tmp_path / "part.pth")
    with pytest.raises(CheckpointError, match=r"lacks conv_stem\.weight"):
        network.load(tmp_path / "part.pth")
    with pytest.raises(UnsupportedModelError, match="is a transformer"):
        FrozenCNN("vit_tiny_patch16_224")


@pytest.mark.parametrize(
    ("name", "cells"),
    [("efficientnet_b0", (0.0, 32.0)), ("tf_efficientnet_lite0", None), ("resnet10t", (0.0, 32.0))],
)
def test_cells_are_placed_by_the_padding(name, cells):
    """TensorFlow's padding depends on the frame: no place holds for all sizes."""
    assert FrozenCNN(name).feature_map.cells == (None if cells is None else Cells(*cells))


def test_grad_cam_weighs_the_frozen_features(frozen):
    frames = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    baseline = BoundedLogitModel(replace(frozen.config, attention="none"))
    baseline.backbone = frozen.backbone
    found = fitted("grad-cam", baseline.eval())(baseline, frames, output(1))
    cam = torch.einsum("c,bchw->bhw", baseline.head.classify.weight[1], baseline.backbone(frames)) / 4
    expected = to_frame_grid(cam.relu(), frames, Cells(0, 32)).detach()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("attention", ["none", "bla-t"])
def test_a_checkpoint_gives_the_model_back(tmp_path, attention, frames):
    network = model(attention).float()
    checkpoint.save(tmp_path, network, {"kind": "bounded-logit", "model": asdict(network.config)}, {})
    loaded = checkpoint.load(tmp_path, kind="bounded-logit").model
    assert loaded.config == network.config
    torch.testing.assert_close(loaded(frames.float()), network(frames.float()), rtol=0, atol=0)
