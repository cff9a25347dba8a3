"""Metrics as objects: what a notebook gets equals what evaluation computes, and what the equations say."""

from __future__ import annotations

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from driving_xai import metrics
from driving_xai.errors import DataError, FrameSizeError, NonFiniteError, OptionError
from driving_xai.explain.gradient import Gradient
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import deletion, rank
from driving_xai.metrics.perturbation_curves import Stretch, scores_of_stretches
from driving_xai.metrics.randomisation import randomised
from driving_xai.metrics.registry import METRICS, build
from driving_xai.targets import magnitude, output
from driving_xai.types import Outputs

HEIGHT, WIDTH = 12, 10


class Net(nn.Module):
    """A small classifier or regressor."""

    def __init__(self, kind: str = "multiclass") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.outputs = Outputs(
            kind=kind, names=("a", "b", "c") if kind != "regression" else ("u",), unit=None
        )
        columns = len(self.outputs.names)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(80, columns))

    def forward(self, frames):
        return self.layers(frames)


@pytest.fixture
def case() -> SimpleNamespace:
    drawn = torch.Generator().manual_seed(1)
    frames = torch.rand(4, 3, HEIGHT, WIDTH, generator=drawn)
    maps = torch.rand(4, HEIGHT, WIDTH, generator=drawn)
    return SimpleNamespace(model=Net().eval(), frames=frames, maps=maps, target=output(1))


def test_deletion_is_the_probability_of_the_target_one_frame_at_a_time(case):
    result = metrics.Deletion(fill="mean")(case.model, case.frames, case.maps, case.target)
    order = rank(case.maps, torch.Generator().manual_seed(0)).view(4, HEIGHT, WIDTH)
    for t in range(4):
        curve = []
        for fraction in metrics.Deletion().fractions:
            gone = order[t] < round(fraction * HEIGHT * WIDTH)
            edited = torch.where(gone, case.frames[t].mean((1, 2), keepdim=True), case.frames[t])
            with torch.no_grad():
                curve.append(case.model(edited[None]).softmax(-1)[0, 1].item())
        np.testing.assert_allclose(result.curve[t], curve, rtol=1e-5)
        height = np.trapezoid(curve, result.fractions) / result.fractions[-1]
        assert result.area[t].item() == pytest.approx(height, rel=1e-5)
    assert result.mean == pytest.approx(result.value.mean().item(), rel=1e-6)
    assert (result.higher_is_better, result.unit) == (False, "probability")


def test_a_regressor_is_scored_by_how_far_its_output_moves(case):
    """In the output's own unit, times percent; that an error rises without evidence is good."""
    model = Net("regression").eval()
    result = metrics.Deletion()(model, case.frames, case.maps, magnitude)
    ranks = rank(case.maps, torch.Generator().manual_seed(0))
    scores = deletion(model, case.frames, ranks, metrics.Deletion().fractions)[..., 0]
    expected = (scores.abs() - scores[:, :1].abs()).abs()
    torch.testing.assert_close(result.curve, expected)
    torch.testing.assert_close(result.area, 100 * torch.trapezoid(expected, torch.tensor(result.fractions)))
    assert result.higher_is_better
    with pytest.raises(DataError, match="measure average-drop needs a probability"):
        metrics.AverageDrop()(model, case.frames, case.maps, magnitude)


@pytest.mark.parametrize(
    "name",
    [name for name in METRICS if "token" not in name and "attention" not in name and "window" not in name],
)
def test_a_notebook_gets_the_numbers_of_an_evaluation(case, name):
    """Several methods and references at once are the same code."""
    metric = build(name) if name != "lime-rank-correlation" else build(name, patterns=80)
    case.model.outputs = Outputs(kind="multilabel", names=("a", "b", "c"))
    known = {
        "ground_truth_mask": torch.rand(4, HEIGHT, WIDTH) < 0.2,
        "labels": torch.tensor([[1.0, 0, 1]] * 4),
    }
    maps = torch.stack([case.maps, 1 - case.maps], 1)
    batch = EvalBatch.of(case.model, case.frames, case.target, **known)
    ((_, columns),) = metric.measure(batch, RankedMaps.of(maps))
    for method in range(2):
        result = metric(case.model, case.frames, maps[:, method], case.target, **known)
        for column, values in columns.items():
            if column == "fractions":
                assert result.fractions == tuple(values.tolist())
            else:
                torch.testing.assert_close(getattr(result, column), values[:, method], equal_nan=True)
    assert isinstance(result.mean, float)
    assert result.higher_is_better == (metric.describe(batch.quantity)["faithful"] == "high")


def test_log_odds_are_of_all_frames_together(case):
    case.model.outputs = Outputs(kind="multilabel", names=("a", "b", "c"))
    labels = torch.ones(4, 3)
    result = metrics.LogOdds()(case.model, case.frames, case.maps, case.target, labels=labels)
    mean = result.curve.double().mean(0).tolist()
    assert result.value.isnan().all()
    assert result.mean == pytest.approx(sum(math.log(each / mean[0]) for each in mean[1:]))


def test_bad_input_is_one_line(case):
    metric = metrics.Deletion()
    with pytest.raises(ValueError, match=r"got maps of shape \(4, 3, 3\); expected \(4, 12, 10\)"):
        metric(case.model, case.frames, case.maps[:, :3, :3], case.target)
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        metric(case.model, case.frames, case.maps / 0, case.target)
    with pytest.raises(DataError, match="measure auroc needs ground_truth_mask"):
        metrics.AUROC()(case.model, case.frames, case.maps, case.target)
    with pytest.raises(DataError, match="need a label for each output"):
        metrics.AUPC()(case.model, case.frames, case.maps, case.target)
    with pytest.raises(ValueError, match="got fill 'white', expected one of: black, mean, blur"):
        metrics.Deletion(fill="white")
    with pytest.raises(ValueError, match="got patch_px 0"):
        metrics.PID(patch_px=0)


def test_several_references_do_not_touch_the_frames_or_the_model(case):
    frames, weights = case.frames.clone(), [each.clone() for each in case.model.parameters()]
    for name in ("deletion", "insertion-deletion", "average-drop", "percentage-in"):
        build(name)(case.model, case.frames, case.maps, case.target)
    assert torch.equal(frames, case.frames)
    assert all(map(torch.equal, weights, case.model.parameters()))


class Mine(metrics.Metric):
    """A metric of somebody else."""

    name, category, higher_is_better = "mine", "faithfulness", True

    def measure(self, batch, ranked):
        yield "map", {"value": ranked.saliency.amax((2, 3))}


def test_names_of_ones_own_are_found_and_what_is_wrong_is_said():
    assert isinstance(build(f"{__name__}:Mine"), Mine)
    for text, message in (
        ("delation", "got measure 'delation', expected some of: deletion, deletion-window, insertion"),
        ("no_such_package:Mine", "no_such_package:Mine: no module no_such_package in"),
        (f"{__name__}:Yours", "has no Yours; "),
        (f"{__name__}:Net", "is a class Net; expected a subclass of driving_xai.metrics.Metric"),
    ):
        with pytest.raises(ValueError, match=message):
            build(text)
    with pytest.raises(OptionError, match="measure 'deletion' has no option 'patch_px'; it has "):
        build("deletion", patch_px=3)
    with pytest.raises(OptionError, match="measure 'pid-8': got fill 'white'"):
        build("pid-8", fill="white")


def test_an_entry_point_names_a_metric(monkeypatch):
    from driving_xai.metrics import registry

    offered = [SimpleNamespace(name="mine", value=f"{__name__}:Mine")]
    monkeypatch.setattr(
        registry, "entry_points", lambda *, group, name="mine": offered if name == "mine" else []
    )
    assert isinstance(build("mine"), Mine)


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_one_loop_serves_any_edit_and_any_chunking(batch_size):
    """A slow twin: one point of one ranking at a time."""
    ranks = torch.stack([torch.randperm(7) for _ in range(6)]).view(2, 3, 7)
    counts, weights = torch.tensor([0, 2, 3, 7]), torch.rand(2, 7)
    sizes = []

    def judged(gone):
        sizes.append(len(gone))
        return (weights[:, None] * gone.unflatten(0, (2, -1))).sum(-1).flatten()[:, None]

    stretches = [
        Stretch(4, lambda start, stop, order=order: order[:, None] < counts[start:stop, None])
        for order in ranks.unbind(1)
    ]
    found = scores_of_stretches(judged, stretches, frames=2, batch_size=batch_size)
    points = max(1, batch_size // 2)
    assert sizes == [2 * points] * (12 // points) + [2 * (12 % points)] * (12 % points > 0)
    for b, m, v in np.ndindex(2, 3, 4):
        slow = weights[b][ranks[b, m] < counts[v]].sum()
        assert found[m][b, v, 0].item() == pytest.approx(slow.item())


class TestRandomisation:
    def test_weights_come_back_also_after_a_failure(self, case):
        before = {name: each.clone() for name, each in case.model.state_dict().items()}
        changed = []

        def fail() -> None:
            with randomised(case.model, ["layers.0", "layers.3"], 3):
                now = case.model.state_dict()
                changed.extend(name for name in now if not torch.equal(now[name], before[name]))
                raise RuntimeError("stop")

        with pytest.raises(RuntimeError, match="stop"):
            fail()
        assert changed == list(before)
        assert all(torch.equal(each, before[name]) for name, each in case.model.state_dict().items())

    def test_maps_of_weights_drawn_anew_are_other_maps(self, case):
        explainer = Gradient()
        result = metrics.ModelRandomisation(seed=2)(case.model, case.frames, explainer, case.target)
        assert result.curve.shape == (4, 2)
        assert result.value.abs().max() < 0.9
        edges = metrics.ModelRandomisation(order="independent")
        blind = edges(case.model, case.frames, lambda model, frames, target: frames.mean(1), case.target)
        torch.testing.assert_close(blind.value, torch.ones(4, dtype=torch.float64))

    def test_sensitivity_is_that_of_a_known_map(self, case):
        """The map is the frame itself: its change is the noise, at most radius a pixel."""
        metric = metrics.MaxSensitivity(radius=0.1, draws=3)
        frames = case.frames * 0.5 + 0.25
        found = metric(case.model, frames, lambda model, frames, target: frames[:, 0], case.target)
        length = frames[:, 0].flatten(1).double().norm(dim=1)
        most = 0.1 * math.sqrt(HEIGHT * WIDTH) / length
        assert ((found.value > 0.4 * most) & (found.value < most)).all()
        with pytest.raises(ValueError, match="got radius 0"):
            metrics.MaxSensitivity(radius=0)


def test_frames_of_another_size_and_no_frames_are_one_line() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 2)).eval()
    net.outputs = Outputs(kind="multiclass", names=("go", "stop"))
    with pytest.raises(FrameSizeError, match="does not take frames of 16 x 16 px"):
        build("deletion")(net, torch.zeros(1, 3, 16, 16), torch.rand(1, 16, 16), output(0))
    with pytest.raises(ValueError, match="got no frames"):
        build("deletion")(net, torch.zeros(0, 3, 8, 8), torch.rand(0, 8, 8), output(0))
