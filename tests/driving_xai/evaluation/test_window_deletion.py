"""Deletion over whole windows: against one window, one fraction and one frame after the other."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep.shards.hdf5 import read_columns, read_frames
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.run import score
from driving_xai.explain.registry import fitted
from driving_xai.metrics import WindowDeletion
from driving_xai.metrics.curves import rank
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.perturb import blank
from driving_xai.targets import magnitude

METHODS = ("soft-attention", "gradient")
WINDOW = 3
TEST_SHARDS = {1: 7, 2: 12}


def config_of(**more) -> ScoreConfig:
    usual = {"methods": METHODS, "measures": ("deletion-window", "deletion"), "window_frames": WINDOW}
    return ScoreConfig(**{**usual, "split": "test", "block_s": 0.1, "resamples": 20, **more})


def remember(model) -> None:
    """Makes the last state count: random weights hardly read it."""
    model.lstm.weight_ih.mul_(30)
    model.readout.gate.weight.mul_(100)


@pytest.fixture(scope="module")
def remembering(steering):
    return steering(edit=remember)


@pytest.fixture(scope="module")
def scored(remembering, shards, tmp_path_factory):
    return score(remembering, shards, tmp_path_factory.mktemp("windows") / "out", config_of())


def slow_errors(model, path, t: int, method: str, fill: str) -> np.ndarray:
    """The error in degrees for each fraction, from the shard's file."""
    frames = torch.from_numpy(read_frames(path, 0, t + 1)).permute(0, 3, 1, 2).float() / 255
    columns = read_columns(path)
    slip = 1 if np.isnan(columns["speed_mps"][t]) else 1 + 0.0014 * columns["speed_mps"][t] ** 2
    truth = np.degrees(columns["steering_wheel_rad_smoothed"][t])
    explain, states, orders = fitted(method, model), [None], []
    for now in range(t + 1):
        saliency = explain(model.at(states[-1]), frames[now : now + 1], magnitude)
        orders.append(rank(saliency, torch.Generator().manual_seed(0))[0].view(32, 48))
        with torch.no_grad():
            states.append(model.step(frames[now : now + 1], states[-1])[2])
    errors = []
    for fraction in WindowDeletion().fractions:
        state = states[t - WINDOW + 1]
        for now in range(t - WINDOW + 1, t + 1):
            frame = frames[now : now + 1]
            gone = orders[now] < round(fraction * 32 * 48)
            edited = torch.where(gone, blank(frame, fill), frame)
            with torch.no_grad():
                scores, _, state = model.step(edited, state)
        errors.append(abs(np.degrees(scores.item() * 2.85 * 14.8 * slip) - truth))
    return np.array(errors)


@pytest.mark.parametrize("method", METHODS)
def test_each_frame_of_a_window_loses_its_own_pixels(scored, remembering, shards, method) -> None:
    model = remembering.model
    rows = scored.select(method=method, measure="deletion-window", reference="truth")
    assert len(rows) == sum(count - WINDOW for count in TEST_SHARDS.values())
    for shard, t in ((1, WINDOW), (2, 11)):
        row = rows[(rows["segment"] == shard) & (rows["frame"] == 100 * shard + t)].iloc[0]
        expected = slow_errors(model, shards / f"shard-{shard}.h5", t, method, "black")
        np.testing.assert_allclose(row["curve"], expected, atol=2e-3)
        counts = np.array([round(f * 32 * 48) for f in WindowDeletion().fractions])
        assert row["value"] == pytest.approx(np.trapezoid(expected, 100 * counts / (32 * 48)), abs=0.02)


def test_a_window_starts_where_deletion_does_and_moves_the_state(scored) -> None:
    for method in METHODS:
        both = [
            scored.select(method=method, measure=name, reference="truth").reset_index()
            for name in ("deletion", "deletion-window")
        ]
        curves = [np.stack(each["curve"]) for each in both]
        np.testing.assert_allclose(curves[0][:, 0], curves[1][:, 0], atol=1e-5)
        assert np.abs(curves[0][:, -1] - curves[1][:, -1]).max() > 0.01
    about = scored.summary["measures"]["deletion-window"]
    assert about["edited"] == "every frame of the window, each by its own map"
    assert scored.summary["plan"]["config"]["window_frames"] == WINDOW


def test_batches_and_fills_change_nothing_else(scored, remembering, shards, tmp_path) -> None:
    how = config_of(
        measures=("deletion-window",), batch_size=2, fills=("black", "mean"), every=6, methods=("gradient",)
    )
    other = score(remembering, shards, tmp_path / "out", how)
    ours, theirs = (
        each.select(method="gradient", measure=name, reference="truth").set_index(["segment", "frame"])[
            "value"
        ]
        for each, name in ((scored, "deletion-window"), (other, "deletion-window@black"))
    )
    assert 0 < len(theirs) < len(ours)
    np.testing.assert_allclose(ours[theirs.index], theirs, rtol=1e-4, atol=1e-3)
    expected = slow_errors(remembering.model, shards / "shard-2.h5", 6, "gradient", "mean")
    rows = other.select(method="gradient", measure="deletion-window@mean", reference="truth")
    np.testing.assert_allclose(rows[rows["frame"] == 206].iloc[0]["curve"], expected, atol=2e-3)


def test_what_has_no_windows_is_refused(remembering, shards, scored, tmp_path) -> None:
    with pytest.raises(ValueError, match="got window_frames 4, which no measure of this run follows"):
        ScoreConfig(methods=METHODS, window_frames=4)
    with pytest.raises(ValueError, match="window_frames"):
        ScoreConfig(methods=METHODS, measures=("deletion-window",), window_frames=1)
    with pytest.raises(DataError, match="edits windows of a drive, and these are images"):
        WindowDeletion().require(PROBABILITY)
    with pytest.raises(ValueError, match="got fill 'bias-image'"):
        WindowDeletion(fill="bias-image")
    model = remembering.model
    with pytest.raises(DataError, match="needs the frames before"):
        WindowDeletion()(model.at(None), torch.rand(1, 3, 32, 48), torch.rand(1, 32, 48), magnitude)
    whole = ScoreConfig(methods=METHODS, measures=("deletion-window",), split="test", window_frames=12)
    with pytest.raises(DataError, match="none to score"):
        score(remembering, shards, tmp_path / "none", whole)


def test_maps_from_a_file_are_of_scored_frames_only(remembering, shards, tmp_path) -> None:
    plain = ScoreConfig(methods=("gradient",), split="test", save_maps=True, every=6, resamples=20)
    score(remembering, shards, tmp_path / "named", plain)
    how = ScoreConfig(
        maps=str(tmp_path / "named" / "maps.h5"), measures=("deletion-window",), split="test", every=6
    )
    how = replace(how, window_frames=WINDOW)
    with pytest.raises(DataError, match="a window needs those of every frame in it"):
        score(remembering, shards, tmp_path / "given", how)
    assert (
        json.loads((tmp_path / "named" / "results.json").read_text())["plan"]["config"].get("window_frames")
        is None
    )
