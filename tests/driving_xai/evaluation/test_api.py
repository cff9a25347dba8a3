"""`evaluate` from Python: the numbers of `score`, objects, and frames in memory."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from driving_xai import metrics
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.evaluation.api import evaluate
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.results import PER_FRAME, SUMMARY, Results
from driving_xai.evaluation.run import score
from driving_xai.explain.gradient import Gradient
from driving_xai.explain.perturbation import Occlusion
from driving_xai.targets import outputs_at
from driving_xai.types import Outputs


class Net(nn.Module):
    outputs = Outputs(kind="multiclass", names=("a", "b", "c"))

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.Tanh(), nn.Flatten(), nn.Linear(80, 3))

    def forward(self, frames):
        return self.layers(frames)


@pytest.fixture
def frames() -> torch.Tensor:
    return torch.rand(10, 3, 12, 10, generator=torch.Generator().manual_seed(0))


def test_shards_give_what_score_gives_saved_or_not(steering, shards, tmp_path):
    """And objects give the numbers of their names."""
    checkpoint, names = steering(), ["deletion", "auroc"]
    config = ScoreConfig(methods=("grad-cam", "gradient"), measures=tuple(names), every=2)
    expected = score(checkpoint, shards, tmp_path / "score", config)
    options = {"methods": ["grad-cam", "gradient"], "metrics": names, "every": 2}
    saved = evaluate(checkpoint, shards, **options, out=tmp_path / "evaluate")
    for name in (PER_FRAME, SUMMARY):
        ours, theirs = (tmp_path / folder / name for folder in ("evaluate", "score"))
        assert ours.read_bytes() == theirs.read_bytes()
    kept = evaluate(checkpoint, str(shards), **options)
    pd.testing.assert_frame_equal(kept.per_frame, saved.per_frame, check_dtype=False, check_column_type=False)
    assert kept.summary["scores"] == expected.summary["scores"]

    objects = evaluate(
        checkpoint,
        shards,
        methods={"grad-cam": Gradient(), "gradient": Gradient()},
        metrics=[metrics.Deletion(), metrics.AUROC()],
        every=2,
    )
    ours, theirs = (
        found.per_frame[found.per_frame["method"] == "gradient"]["value"] for found in (objects, kept)
    )
    np.testing.assert_array_equal(ours, theirs)
    assert objects.summary["plan"]["objects"]["deletion"] == "driving_xai.metrics.faithfulness:Deletion"
    table = objects.table()
    assert table.columns.tolist()[:6] == ["measure", "reference", "method", "mean", "low", "high"]
    assert table[table["control"]]["method"].unique().tolist() == ["random", "centre-prior"]
    assert set(table["unit"]) == {"deg x percent of pixels", "share"}


def test_frames_in_memory_are_scored_as_a_metric_scores_them(frames):
    model = Net().eval()
    mask = torch.zeros(10, 12, 10, dtype=torch.bool)
    mask[:, 3:6] = True
    found = evaluate(
        model,
        frames,
        methods=[Gradient(), "smoothgrad"],
        options={"smoothgrad": {"samples": 2}},
        metrics=["deletion", metrics.PID(patch_px=4), "pointing-game"],
        masks=mask,
        batch_size=4,
    )
    with torch.no_grad():
        target = outputs_at(model(frames).argmax(1))
    maps = Gradient()(model, frames, target)
    for metric in (metrics.Deletion(), metrics.PID(patch_px=4), metrics.PointingGame()):
        alone = metric(model, frames, maps, target, ground_truth_mask=mask)
        chosen = (found.per_frame["method"] == "Gradient") & (found.per_frame["measure"] == metric.label)
        np.testing.assert_allclose(found.per_frame[chosen]["value"], alone.value, rtol=1e-5)
    assert found.summary["intervals"]["block"] == 1, "unrelated images"
    deletion = next(each for each in found.summary["scores"] if each["measure"] == "deletion")
    assert deletion["value"]["low"] < deletion["value"]["mean"] < deletion["value"]["high"]


def test_frames_in_memory_are_saved_as_results_that_load(frames, tmp_path):
    found = evaluate(Net().eval(), frames, methods=[Gradient()], out=tmp_path / "out")
    assert Results.load(tmp_path / "out").summary["scores"] == found.summary["scores"]
    with pytest.raises(DataError, match="already holds results; give another folder"):
        evaluate(Net().eval(), frames, methods=[Gradient()], out=tmp_path / "out")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": []}, ValueError, "got no method; expected names or explainers"),
        ({"methods": "gradient"}, ValueError, r"expected a sequence of names: \['gradient'\]"),
        ({"methods": ["gradcam"]}, ValueError, "got method 'gradcam', expected some of: "),
        (
            {"methods": [Occlusion(), Occlusion()]},
            ValueError,
            "got method 'Occlusion' twice, .* mapping of labels",
        ),
        ({"metrics": ["delation"]}, ValueError, "got measure 'delation', expected some of: deletion"),
        ({"metrics": []}, ValueError, "got measure none"),
        ({"metrics": ["auroc"]}, DataError, "auroc needs ground_truth_mask"),
        ({"masks": "folder"}, ValueError, "got a path of masks for frames in memory"),
        ({"masks": torch.zeros(10, 4, 4) > 0}, ValueError, r"got masks of shape \(10, 4, 4\)"),
        ({"labels": torch.zeros(9, 3)}, ValueError, "got labels of 9 frames; expected 10"),
        ({"target": "z"}, DataError, "target 'z' is unknown; this model has predicted, a, b, c"),
        ({"every": 0}, ValueError, "every is 0; expected 1 or more"),
    ],
)
def test_bad_input_is_one_line(frames, options, error, message):
    with pytest.raises(error, match=message):
        evaluate(Net().eval(), frames, **{"methods": ["gradient"], **options})


def test_a_network_that_works_in_place_on_its_frames_is_scored_as_one_that_does_not(frames):
    def table(*, inplace: bool) -> pd.DataFrame:
        # Cuts what is darker than the threshold: a frame that was written on once gives other maps.
        net = nn.Sequential(nn.Threshold(0.5, 1.0, inplace=inplace), nn.AvgPool2d(10), nn.Flatten()).eval()
        net.outputs = Outputs(kind="multiclass", names=tuple("abc"))
        given = frames.clone()
        found = evaluate(
            net, given, methods={"mine": Gradient()}, metrics=["deletion", "average-drop"], batch_size=4
        )
        assert torch.equal(given, frames)
        return found.table()

    pd.testing.assert_frame_equal(table(inplace=True), table(inplace=False))


def test_a_network_without_outputs_says_what_to_do(frames):
    with pytest.raises(
        UnsupportedModelError,
        match=r"Sequential says nothing of its outputs; wrap it: driving_xai\.wrap",
    ):
        evaluate(nn.Sequential(), frames, methods=["gradient"])
