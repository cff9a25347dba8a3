"""The checks along a route: what depends on weights falls, what does not stays, the checkpoint is untouched."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from data_prep.shards.atomic import sha256_of
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import DataError
from driving_xai.evaluation.maps_file import Masks
from driving_xai.evaluation.sanity import PER_FRAME, SUMMARY, SanityConfig, check

METHODS = ("grad-cam", "gradient", "centre-prior")


def _means(summary: dict, **chosen: str) -> dict[tuple[str, str], float]:
    """By method and what it is beside."""
    return {
        (each["method"], each["beside"]): each["value"]["mean"]
        for each in summary["means"]
        if all(each[name] == value for name, value in chosen.items())
    }


@pytest.fixture(scope="module")
def checked(
    steering: Callable[..., Checkpoint], shards: Path, tmp_path_factory
) -> tuple[dict, Path, Checkpoint]:
    torch.set_num_threads(1)
    out, loaded = tmp_path_factory.mktemp("sanity"), steering()
    config = SanityConfig(methods=METHODS, split="test", every=4, noise_draws=2, block_s=0.2)
    root = tmp_path_factory.mktemp("masks")
    np.savez(root / "m.npz", **{"a/204": np.pad(np.ones((8, 8)), ((10, 14), (20, 20)))})
    return check(loaded, shards, out, config, masks=Masks(root / "m.npz")), out, loaded


def test_a_map_of_the_weights_changes_and_one_of_the_frame_alone_does_not(checked) -> None:
    summary, _, _ = checked
    for kind in ("cascading", "independent"):
        likeness = _means(summary, check=kind, quantity="spearman")
        prior = [value for (method, _), value in likeness.items() if method == "centre-prior"]
        assert prior == pytest.approx([1.0] * len(prior))
        assert len(prior) > 4, "a stage for each layer"
    last = list(_means(summary, check="cascading", quantity="spearman").items())[-3:]
    assert abs(dict(last)[("gradient", last[0][0][1])]) < 0.5
    overlap = _means(summary, check="cascading", quantity="top-overlap")
    assert overlap[("centre-prior", last[0][0][1])] == 1


def test_the_first_stage_is_the_same_in_both_orders(checked) -> None:
    """One layer alone is a cascade of one."""
    summary, _, _ = checked
    cascading, independent = (
        _means(summary, check=kind, quantity="spearman") for kind in ("cascading", "independent")
    )
    first = next(iter(cascading))[1]
    for method in METHODS:
        assert cascading[method, first] == independent[method, first]


def test_the_checkpoint_keeps_its_weights(checked, steering: Callable[..., Checkpoint]) -> None:
    _, _, used = checked
    for name, value in steering().model.state_dict().items():
        assert torch.equal(used.model.state_dict()[name], value), name


def test_noise_agreement_masks_and_degenerate_maps_are_there(checked) -> None:
    summary, _, _ = checked
    assert _means(summary, check="noise")["centre-prior", ""] == 0
    assert _means(summary, check="noise")["gradient", ""] > 0
    pairs = set(_means(summary, check="agreement", quantity="spearman"))
    assert pairs == {("grad-cam", "gradient"), ("grad-cam", "centre-prior"), ("gradient", "centre-prior")}
    assert set(_means(summary, check="degenerate")) == {(method, "") for method in METHODS}
    located = [each for each in summary["means"] if each["quantity"] == "mass-inside by chance"]
    assert {each["frames"] for each in located} == {1}
    assert located[0]["value"]["mean"] == pytest.approx(64 / (32 * 48))


def test_what_is_saved_is_what_is_returned_and_vouches_for_its_table(checked) -> None:
    summary, out, _ = checked
    assert json.loads((out / SUMMARY).read_text()) == summary
    assert summary["files"][PER_FRAME] == sha256_of(out / PER_FRAME)
    table = pd.read_parquet(out / PER_FRAME)
    rows = table[(table["check"] == "noise") & (table["method"] == "gradient")]
    mean = next(e for e in summary["means"] if (e["check"], e["method"]) == ("noise", "gradient"))
    assert rows["value"].mean() == pytest.approx(mean["value"]["mean"])
    assert len(rows) == mean["frames"]


def test_masks_of_no_checked_frame_are_refused(checked, shards: Path, tmp_path: Path) -> None:
    _, _, loaded = checked
    np.savez(tmp_path / "m.npz", **{"elsewhere/1": np.ones((32, 48))})
    config = SanityConfig(methods=("centre-prior",), checks=("agreement",), split="test", every=4)
    with pytest.raises(DataError, match="no mask is of a frame that is checked, whose first is a/"):
        check(loaded, shards, tmp_path / "out", config, masks=Masks(tmp_path / "m.npz"))
    assert not (tmp_path / "out").exists()


def test_results_in_the_way_and_wrong_options_are_refused(checked, shards: Path) -> None:
    _, out, loaded = checked
    with pytest.raises(DataError, match="already holds sanity checks"):
        check(loaded, shards, out, SanityConfig(methods=("grad-cam",)))
    for wrong in (
        {"methods": ()},
        {"methods": ("x",)},
        {"methods": ("gradient", "gradient")},
        {"checks": ("x",)},
        {"checks": ("noise", "noise")},
        {"every": 0},
        {"top_share": 1.0},
        {"seed": -1},
        {"level": 1.0},
        {"resamples": 0},
        {"block_s": 0.0},
    ):
        with pytest.raises(ValueError, match="expected"):
            SanityConfig(**{"methods": ("grad-cam",), **wrong})
