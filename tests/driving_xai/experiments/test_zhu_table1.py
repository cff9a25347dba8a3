"""Table 1: what is in the table is what score measures."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError, DataError, OptionError
from driving_xai.evaluation.results import Results
from driving_xai.experiments.zhu_table1 import MASKS, METHODS, PAPER, ZhuTable1, run
from driving_xai.metrics.aupc import aupc, log_odds


def test_the_papers_numbers_agree_with_its_own_definitions():
    """AUPC and log-odds of one curve move together: the better method has the lower of both, but for rounding."""
    for cells in PAPER.values():
        assert len(cells) == len(METHODS)
        by_area = sorted(range(6), key=lambda at: cells[at][0])
        by_odds = sorted(range(6), key=lambda at: cells[at][1])
        assert sum(a != b for a, b in zip(by_area, by_odds, strict=True)) <= 2
        assert all(600 < area < 746 for area, _ in cells)


def test_the_table_holds_what_score_found(actions, streets, tmp_path: Path):
    model = str(actions().path)
    how = ZhuTable1(
        checkpoint=model,
        methods=("raw-attention", "snna"),
        masks=("pixel", "attention"),
        split="all",
        every=4,
    )
    results = run(streets, tmp_path / "out", how)
    scores = Results.load(tmp_path / "out" / "scores").summary["scores"]
    found = {(each["measure"], each["method"]): each["value"] for each in scores}
    assert len(results["rows"]) == 2 * 4
    for row in results["rows"]:
        for name in ("aupc", "log-odds"):
            assert row[name] == found[f"{name}{MASKS[row['mask']]}", row["method"]]
        assert (row["paper"] is None) == (row["method"] in ("random", "centre-prior"))
    curves = Results.load(tmp_path / "out" / "scores").per_frame
    for each in results["differences"]:
        assert (each["method"], each["other"]) == ("raw-attention", "snna")
        for name, of in (("aupc", aupc), ("log-odds", log_odds)):
            rows = curves[curves["measure"] == f"{name}{MASKS[each['mask']]}"]
            first, second = (
                of(np.stack(rows[rows["method"] == method]["curve"]).mean(0, dtype=np.float64))
                for method in ("raw-attention", "snna")
            )
            assert each[name]["mean"] == pytest.approx(first - second, rel=1e-5)
    assert len(results["differences"]) == 2
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| attention | raw-attention | snna |" in table
    assert "| attention | snna |" in table
    assert "649.7" in table
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))


def test_what_is_masked_and_how_is_what_was_asked_for(actions, streets, tmp_path: Path):
    model = str(actions().path)

    def curves(name: str, **settings: str) -> dict[str, np.ndarray]:
        how = ZhuTable1(checkpoint=model, methods=("raw-attention",), split="all", every=8, **settings)
        results = run(streets, tmp_path / name, how)
        found = Results.load(tmp_path / name / "scores")
        assert results["measures"] == found.summary["measures"]
        assert results["measures"]["aupc"]["fill"] == results["config"]["fill"]
        assert "fill" not in results["measures"]["aupc-token"]
        return {
            measure: np.stack(found.per_frame.query(f"measure == '{measure}'")["curve"])
            for measure in ("aupc", "aupc-token", "aupc-attention")
        }

    plain, black = curves("plain"), curves("black", fill="black")
    assert not np.array_equal(black["aupc"], plain["aupc"])
    assert np.array_equal(black["aupc-token"], plain["aupc-token"]), "zero is no pixel's fill"
    assert "masked pixels are black" in (tmp_path / "black" / "table.md").read_text()
    assert "masked pixels are mean" in (tmp_path / "plain" / "table.md").read_text()

    least = curves("least", order="least-first", rule="logit", attention_blocks="all")
    assert all(not np.array_equal(least[measure], plain[measure]) for measure in plain)
    table = (tmp_path / "least" / "table.md").read_text()
    assert "least salient parts first: higher is more faithful" in table
    assert "attention is masked in all blocks; an output is predicted where the logit is over 1/2" in table
    assert all(
        row["paper"] is None for row in json.loads((tmp_path / "least" / "results.json").read_text())["rows"]
    )
    with pytest.raises(DataError, match="scored with another masking"):
        curves("plain", rule="softmax")


def test_a_method_runs_under_labels_with_options_of_their_own(actions, streets, tmp_path: Path):
    model = str(actions().path)
    how = ZhuTable1(
        checkpoint=model,
        methods=("snna", "snna@few"),
        options={"snna@few": {"samples": 1, "noise": 0.5}},
        masks=("token",),
        split="all",
        every=8,
    )
    results = run(streets, tmp_path / "out", how)
    assert results["config"]["options"] == {"snna@few": {"samples": 1, "noise": 0.5}}
    rows = {row["method"]: row for row in results["rows"]}
    assert rows["snna@few"]["paper"] is None
    assert rows["snna"]["paper"] is not None
    found = Results.load(tmp_path / "out" / "scores").per_frame.query("measure == 'aupc-token'")
    plain, few = (np.stack(found[found["method"] == name]["curve"]) for name in ("snna", "snna@few"))
    assert not np.array_equal(plain, few)


def test_what_cannot_be_is_refused(streets, tmp_path: Path):
    with pytest.raises(ValueError, match="expected some of: pixel, token, attention"):
        ZhuTable1(checkpoint="model", masks=("pixels",))
    with pytest.raises(ValueError, match="got fill 'black' for masks, which no measure of this run follows"):
        ZhuTable1(checkpoint="model", masks=("token",), fill="black")
    with pytest.raises(ValueError, match="got method 'nope'"):
        ZhuTable1(checkpoint="model", methods=("nope",))
    with pytest.raises(OptionError, match=r"options\.rise is of no method of this run"):
        ZhuTable1(checkpoint="model", options={"rise": {"masks": 5}})

    path = tmp_path / "other"
    path.mkdir()
    config = {"schema": checkpoint.SCHEMA, "kind": "steering", "model": {}}
    (path / checkpoint.CONFIG).write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="kind 'steering', expected 'actions'"):
        run(streets, tmp_path / "out", ZhuTable1(checkpoint=str(path)))
