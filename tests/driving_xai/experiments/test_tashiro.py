"""The experiments end to end on a few seconds of a synthetic drive: shared, resumed, refused."""

import itertools
import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, prepare
from driving_xai.data.splits import HoldOut
from driving_xai.errors import CheckpointError
from driving_xai.experiments.tashiro import Tashiro, run
from driving_xai.models.steering import SteeringConfig
from driving_xai.training import steering
from driving_xai.training.steering import SteeringTraining

HOW = Tashiro(
    runs=2,
    sweep_runs=1,
    blocks=(1, 2),
    bits=(2, 10, None),
    temperatures=(0.1, 1.0),
    roles=("gate",),
    methods=("grad-cam",),
    score_every=3,
    methods_every=3,
    training=SteeringTraining(
        model=SteeringConfig(hidden_size=4, output="linear", height=32, width=64),
        held_out=HoldOut(gap_s=0.1, val_fraction=0.0),
        epochs=1,
        window=4,
        batch_size=8,
        patience=None,
    ),
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six seconds at 10 frames a second, in three blocks."""
    out = tmp_path_factory.mktemp("shards") / "route"
    options = {"seconds": 6.0, "rate_hz": 10.0, "height": 64, "width": 128}
    config = PrepConfig(
        reader="synthetic",
        source=Path("-"),
        reader_options=options,
        geometry=Geometry(height=32, width=64),
        blocks=3,
        gap_s=0.1,
        smoothing=0.99,
    )
    prepare(config, out)
    return out


@pytest.fixture(scope="module")
def out(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the networks of Table 2."""
    folder = tmp_path_factory.mktemp("tashiro")
    run("tashiro-table2", shards, folder, HOW, device="cpu")
    return folder


def test_table_2_has_ours_and_theirs(out) -> None:
    results = json.loads((out / "tashiro-table2" / "results.json").read_text())
    rows = {row["network"]: row for row in results["rows"]}
    assert {name: row["paper"] for name, row in rows.items()} == {"none": 4.77, "soft": 4.94, "sign": 4.67}
    for name, row in rows.items():
        metrics = [
            json.loads((out / "networks" / name / f"run-{i}" / "metrics.json").read_text())["test"]
            for i in range(2)
        ]
        assert row["by_run"] == [each["mae_deg"] for each in metrics]
        assert row["mae_deg"] == pytest.approx(sum(row["by_run"]) / 2)
    table = (out / "tashiro-table2" / "table.md").read_text()
    assert f"| sign | 4.67 | {rows['sign']['mae_deg']:.2f} |" in table
    assert "| difference, deg, runs alike |" in table
    for each in results["comparisons"]:
        ours, theirs = (rows[each[name]]["by_run"] for name in ("ours", "theirs"))
        assert each["difference_deg"] == pytest.approx(sum(ours) / 2 - sum(theirs) / 2)
    assert (out / "tashiro-table2" / "table2.svg").exists()


def test_runs_hold_out_blocks_in_turn_with_seeds_of_their_own(out) -> None:
    configs = [
        json.loads((out / "networks" / "sign" / f"run-{i}" / "config.json").read_text()) for i in range(2)
    ]
    assert [config["data"]["held_out"]["block"] for config in configs] == [1, 2]
    assert [config["training"]["seed"] for config in configs] == [0, 1]


@pytest.mark.slow
def test_the_other_figures_train_only_what_is_missing(shards, out, monkeypatch) -> None:
    trained = []
    original = steering.train

    def counted(shards, folder, *arguments, **keywords):
        trained.append(folder.relative_to(out / "networks").as_posix())
        return original(shards, folder, *arguments, **keywords)

    monkeypatch.setattr(steering, "train", counted)
    fig6 = run("tashiro-fig6", shards, out, HOW, device="cpu")
    fig7 = run("tashiro-fig7", shards, out, HOW, device="cpu")
    fig9 = run("tashiro-fig9", shards, out, HOW, device="cpu")
    assert trained == ["sign-uniform/run-0", "sign-gate/run-0", "sign-2-bits/run-0", "sign-only/run-0",
                       "soft-t0.1/run-0"]  # fmt: skip
    again = run("tashiro-fig6", shards, out, HOW, device="cpu")
    assert len(trained) == 5
    assert again == fig6

    areas = {(row["network"], row["method"]): row for row in fig6["areas"]}
    assert {("sign", "grad-cam"), ("soft", "soft-attention"), ("none", "random")} <= set(areas)
    curve, area = (areas["sign", "sign-attention"][name] for name in ("curve_deg", "area"))
    steps = [a + b for a, b in itertools.pairwise(curve)]
    assert area["mean"] == pytest.approx(sum(steps) / 2, rel=0.01)
    assert [row["bits"] for row in fig7["rows"]] == ["2", "10", "none"]
    assert fig7["rows"][1]["area"] == fig9["sign"]["area"]
    pairs = [(each["ours"][0], each["theirs"][0]) for each in fig9["comparisons"][::2]]
    assert pairs == [("soft-t0.1", "soft"), ("sign", "soft-t0.1"), ("sign", "soft")]
    assert all(math.isfinite(each["difference"]["mean"]) for each in fig9["comparisons"])


def test_networks_that_were_trained_otherwise_are_refused(shards, out) -> None:
    other = replace(HOW, training=replace(HOW.training, learning_rate=1e-3))
    with pytest.raises(CheckpointError, match="another training"):
        run("tashiro-table2", shards, out, other, device="cpu")


def test_settings_that_cannot_be_compared_are_refused() -> None:
    with pytest.raises(ValueError, match="a multiple of score_every"):
        Tashiro(score_every=10, methods_every=15)
    with pytest.raises(ValueError, match="expected some of none, soft, sign"):
        Tashiro(measured_on=("gate",))


def test_a_method_runs_under_a_label_with_its_options(shards, out, tmp_path) -> None:
    shutil.copytree(out / "networks", tmp_path / "networks", ignore=shutil.ignore_patterns("scores"))
    options = {"occlusion@coarse": {"window_px": [16, 16], "stride_px": [16, 16]}}
    how = replace(
        HOW, runs=1, roles=(), measured_on=("sign",), methods=("occlusion@coarse",), options=options
    )
    results = run("tashiro-fig6", shards, tmp_path, how, device="cpu")
    assert results["config"]["options"] == options
    assert ("sign", "occlusion@coarse") in {(row["network"], row["method"]) for row in results["areas"]}
    plan = json.loads((tmp_path / "networks/sign/run-0/scores/methods/results.json").read_text())["plan"]
    assert plan["config"]["options"] == options
    assert "| sign | occlusion@coarse |" in (tmp_path / "tashiro-fig6" / "table.md").read_text()
