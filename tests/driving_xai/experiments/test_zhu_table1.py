"""Table 1 beside the paper's: what is in the table is what score measures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from driving_xai.errors import CheckpointError
from driving_xai.experiments.zhu_table1 import MASKS, METHODS, PAPER, ZhuTable1, run
from driving_xai.faithfulness.results import Results


def test_the_papers_numbers_agree_with_its_own_definitions():
    """AUPC and log-odds of one curve move together: the better method has the lower of both, but for rounding."""
    for cells in PAPER.values():
        assert len(cells) == len(METHODS)
        by_area = sorted(range(6), key=lambda at: cells[at][0])
        by_odds = sorted(range(6), key=lambda at: cells[at][1])
        assert sum(a != b for a, b in zip(by_area, by_odds, strict=True)) <= 2
        assert all(600 < area < 746 for area, _ in cells)


def test_the_table_holds_what_score_found(actions, streets, tmp_path: Path):
    how = ZhuTable1(methods=("raw-attention", "snna"), masks=("pixel", "attention"), split="all", every=4)
    results = run(actions(), streets, tmp_path / "out", how)
    scores = Results.load(tmp_path / "out" / "scores").summary["scores"]
    found = {(each["measure"], each["method"]): each["value"] for each in scores}
    assert len(results["rows"]) == 2 * 4
    for row in results["rows"]:
        for name in ("aupc", "log-odds"):
            assert row[name] == found[f"{name}{MASKS[row['mask']]}", row["method"]]
        assert (row["paper"] is None) == (row["method"] in ("random", "centre-prior"))
    table = (tmp_path / "out" / "table.md").read_text()
    assert "| attention | snna |" in table
    assert "649.7" in table
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == json.loads(json.dumps(results))


def test_what_cannot_be_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="expected some of: pixel, token, attention"):
        ZhuTable1(masks=("pixels",))

    class Other:
        path, kind = tmp_path, "steering"

    with pytest.raises(CheckpointError, match="holds kind 'steering'; expected 'actions'"):
        run(Other(), tmp_path, tmp_path / "out", ZhuTable1())  # type: ignore[arg-type]
