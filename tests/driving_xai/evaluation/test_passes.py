"""How often scoring runs the model: the least that the frames and the batch size allow."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import driving_xai as dx
from driving_xai.data.drives import Run
from driving_xai.evaluation import drive_data
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.job import opened
from driving_xai.explain.base import Explainer
from driving_xai.explain.gradient import Gradient
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import deletion
from driving_xai.metrics.faithfulness import Deletion, Insertion, measured
from driving_xai.metrics.perturbation_curves import patch_count
from driving_xai.metrics.registry import build
from driving_xai.targets import output
from driving_xai.types import Outputs

from ..passes import counted

STEPS = 20
FRACTIONS = tuple(step / STEPS for step in range(STEPS + 1))
BETWEEN = STEPS - 1
"""Edited frames of a curve besides its two ends."""


def _curves(batch_size: int = 64) -> list[Deletion | Insertion]:
    return [
        Deletion(fractions=FRACTIONS, batch_size=batch_size),
        Insertion(fractions=FRACTIONS, batch_size=batch_size),
    ]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    net.outputs = Outputs(kind="multiclass", names=("red", "green", "blue"))
    return net


@pytest.mark.parametrize("curve", _curves())
def test_a_curve_of_one_image_takes_the_clean_pass_and_one_more(net, curve):
    frames = torch.rand(1, 3, 16, 20)
    with counted(net) as passes:
        curve(net, frames, torch.rand(1, 16, 20), output(0))
    assert passes == [1, BETWEEN + 1]


def test_both_curves_of_one_image_take_two_passes_and_share_their_end(net):
    with counted(net) as passes:
        batch = EvalBatch.of(net, torch.rand(1, 3, 16, 20), output(0))
        ranked = RankedMaps.of(torch.rand(1, 1, 16, 20))
        assert len(dict(measured({each.label: each for each in _curves()}, batch, ranked))) == 2
    assert passes == [1, 1 + 2 * BETWEEN]


def test_evaluate_adds_the_least_passes_to_the_explainers_own(net):
    """A method and the two controls: both curves of three maps, the fill once, and the clean frame."""
    frames, explain = torch.rand(1, 3, 16, 20), Gradient()
    with counted(net) as passes:
        dx.evaluate(net, frames, methods=[explain], metrics=_curves(), batch_size=64)
    with counted(net) as own:
        explain(net, frames, output(0))
    edited = 1 + 3 * 2 * BETWEEN
    assert passes == [1, *own, 64, edited - 64]
    assert len(passes) - len(own) == 1 + math.ceil(edited / 64)


def test_scores_do_not_depend_on_which_curves_run_together(net):
    net, frames = net.double(), torch.rand(3, 3, 16, 20, dtype=torch.float64)
    batch, ranked = EvalBatch.of(net, frames, output(0)), RankedMaps.of(torch.rand(3, 2, 16, 20))
    for batch_size in (1, 7, 64):
        metrics = {each.label: each for each in _curves(batch_size)}
        for name, ((_, together),) in measured(metrics, batch, ranked):
            ((_, alone),) = metrics[name].measure(batch, ranked)
            for key, values in together.items():
                torch.testing.assert_close(values, alone[key], rtol=1e-12, atol=1e-14)


def test_metrics_of_other_fills_or_batch_sizes_run_apart(net):
    """So that scores under a fill, and passes of a size, are those of a run of their own."""
    batch, ranked = (
        EvalBatch.of(net, torch.rand(2, 3, 16, 20), output(0)),
        RankedMaps.of(torch.rand(2, 3, 16, 20)),
    )
    metrics = {
        "a": Deletion(batch_size=9),
        "b": Insertion(batch_size=30),
        "c": Deletion(batch_size=9, fill="mean"),
        "d": Insertion(batch_size=9, fill="mean"),
    }
    with counted(net) as passes:
        together = {name: list(found) for name, found in measured(metrics, batch, ranked)}
    assert passes == [*_filled(3 * 25, 4), *_filled(1 + 3 * 24, 15), *_filled(1 + 3 * (25 + 24), 4)]
    for names in (("a",), ("b",), ("c", "d")):
        own = dict(measured({name: metrics[name] for name in names}, batch, ranked))
        for name in names:
            ((_, alone),), ((_, found),) = own[name], together[name]
            assert all(torch.equal(found[key], alone[key]) for key in alone)


def _filled(points: int, most: int) -> list[int]:
    """Frames of each pass over the points of two frames."""
    return [2 * most] * (points // most) + [2 * (points % most)] * (points % most > 0)


@pytest.mark.parametrize(
    "names", [("insertion-deletion", "pid-1", "pid-8"), ("deletion", "insertion", "pid-4")]
)
def test_curves_of_pixels_and_patches_share_the_frame_the_fill_and_the_passes(net, names):
    """An insertion and a deletion of pixels that are the same curve for two metrics are run once."""
    frames = torch.rand(1, 3, 16, 20)
    metrics = {name: build(name, batch_size=1000) for name in names}
    batch, ranked = EvalBatch.of(net, frames, output(0)), RankedMaps.of(torch.rand(1, 2, 16, 20))
    with counted(net) as passes:
        dict(measured(metrics, batch, ranked))
    curves = {curve for metric in metrics.values() for curve in metric.curves(batch)}
    inner = sum(len(curve.mixed(places=patch_count((16, 20), curve.patch_px))) for curve in curves)
    fills = {curve.fill for curve in curves}
    assert passes == [len(fills) + 2 * inner]
    assert len(curves) == sum(len(metric.curves(batch)) for metric in metrics.values()) - ("pid-1" in names)


def test_a_curve_of_known_ends_runs_nothing(net):
    batch, ranked = (
        EvalBatch.of(net, torch.rand(2, 3, 16, 20), output(0)),
        RankedMaps.of(torch.rand(2, 1, 16, 20)),
    )
    with counted(net) as passes:
        scores = deletion(net, batch.frames, ranked.ranks, [0.0], clean=batch.clean)
    assert passes == []
    assert torch.equal(scores[:, 0, 0], batch.clean)


def test_a_drive_is_scored_in_as_few_passes_as_whole_points_allow(shards, steering):
    """Two methods that need no pass, and two controls."""
    checkpoint = steering()
    config = ScoreConfig(methods=("gradient",), split="test")
    with opened(checkpoint, shards, config) as run, counted(checkpoint.model) as driven:
        batches = [len(rows) for rows, _ in run.data.batches(64)]
    with counted(checkpoint.model) as passes:
        dx.evaluate(
            checkpoint,
            shards,
            methods={"one": _Ramp(), "two": _Ramp()},
            metrics=["deletion", "insertion"],
            batch_size=64,
            split="test",
        )
    points = 1 + 4 * (25 + 24)
    least = sum(math.ceil(points / (64 // frames)) for frames in batches)
    assert batches
    assert len(passes) - len(driven) == least
    assert sum(passes) - sum(driven) == points * sum(batches)


def test_many_short_runs_fill_the_passes_of_a_drive(shards, steering, monkeypatch):
    """Six runs abreast and passes of 16: the edited frames take the fewest passes that hold them."""
    checkpoint, cut = steering(), drive_data.runs
    monkeypatch.setattr(drive_data, "runs", lambda *given: _in_pieces(cut(*given), frames=5)[:6])
    config = ScoreConfig(methods=("gradient",), split="all")
    with opened(checkpoint, shards, config) as run, counted(checkpoint.model) as driven:
        batches = [len(rows) for rows, _ in run.data.batches(16)]
    with counted(checkpoint.model) as passes:
        dx.evaluate(
            checkpoint, shards, methods={"one": _Ramp()}, metrics=["deletion"], batch_size=16, split="all"
        )
    assert batches == [16, 8]
    edited = sum(batches) * 3 * 25  # by the method and the two controls
    assert sum(passes) - sum(driven) == edited
    assert len(passes) - len(driven) == math.ceil(edited / 16)


def _in_pieces(runs, *, frames):
    """Runs of so many frames, with the frames that follow one another."""
    pieces = [Run(rows=run.rows[at : at + frames]) for run in runs for at in range(0, len(run), frames)]
    return [piece for piece in pieces if len(piece) == frames]


class _Ramp(Explainer):
    """A map that takes no pass."""

    def _explain(self, model, frames, target):
        return frames.mean(1)
