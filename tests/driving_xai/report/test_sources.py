"""Folders of results as boards: order, verdicts, labels, and what is refused."""

from __future__ import annotations

import json

import pytest

from driving_xai.errors import DataError
from driving_xai.evaluation.results import SUMMARY
from driving_xai.report import words
from driving_xai.report.sources import load_sources


def _edit(folder, **changes):
    path = folder / SUMMARY
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_most_faithful_stands_first_and_what_is_shown_is_told_apart(write_results):
    (source,) = load_sources([write_results(measures=("deletion", "insertion"))])
    deletion = {board.reference: board for board in source.boards if board.measure == "deletion"}["truth"]
    order = [each.method for each in deletion.standings]
    assert (order[0], order[-1]) == ("grad-cam", "centre-prior")
    by_name = {each.method: each for each in deletion.standings}
    assert by_name["grad-cam"].beside == {"random": "better", "centre-prior": "better"}
    assert by_name["lime"].beside["random"] == "not shown"
    assert by_name["random"].is_control
    assert by_name["random"].beside == {}
    assert [board.reference for board in source.boards] == ["clean", "clean", "truth", "truth"]
    assert [board.is_headline for board in source.boards] == [True, True, False, False]
    insertion = next(board for board in source.boards if board.measure == "insertion")
    assert [each.method for each in insertion.standings][-1] == "grad-cam", "there, low is faithful"
    assert {each.method: each for each in insertion.standings}["grad-cam"].beside["random"] == "worse"


def test_an_interval_alone_does_not_make_a_verdict(write_results):
    folder = write_results()
    summary = json.loads((folder / SUMMARY).read_text())
    doubtful = [{**pair, "p_holm": 0.2} for pair in summary["comparisons"]]
    _edit(folder, comparisons=doubtful)
    (source,) = load_sources([folder])
    assert {each.beside.get("random") for each in source.boards[0].standings} == {"not shown", None}
    _edit(folder, comparisons=[{**pair, "p_holm": None} for pair in doubtful])
    (source,) = load_sources([folder])
    assert {each.beside.get("random") for each in source.boards[0].standings} == {"unknown", None}


def test_a_value_of_all_frames_is_judged_by_its_interval(write_results):
    """Log-odds have differences with intervals and no comparisons: a single frame has no value to test."""
    gains = {"grad-cam": 4.0, "lime": 0.0, "random": 0.0, "centre-prior": -4.0}
    folder = write_results(gains=gains, measures=("deletion", "log-odds"))
    (source,) = load_sources([folder])
    board = next(board for board in source.boards if board.measure == "log-odds")
    by_name = {each.method: each for each in board.standings}
    assert by_name["grad-cam"].beside == {
        "random": "better by interval",
        "centre-prior": "better by interval",
    }
    assert by_name["lime"].beside == {"random": "not shown", "centre-prior": "better by interval"}
    expected = [
        each["value"]
        for each in source.summary["differences"]
        if (each["measure"], each["method"]) == ("log-odds", "grad-cam")
        and each["reference"] == board.reference
    ]
    shown = [by_name["grad-cam"].comparisons[control] for control in ("random", "centre-prior")]
    assert [pair["value"] for pair in shown] == expected
    assert {pair["p_holm"] for pair in shown} == {None}
    said = dict(words.findings(board))
    assert said["grad-cam"].startswith(
        "The highlighted pixels carry the correct labels more than random ones (score"
    )
    assert said["grad-cam"].count("by the interval, untested") == 2
    tested = next(board for board in source.boards if board.measure == "deletion")
    assert (bool(board.untested), bool(tested.untested)) == (True, False)


@pytest.mark.parametrize("section", ["comparisons", "ranks"])
def test_nothing_is_worked_out_that_results_lack(write_results, section):
    folder = write_results(frames=20)
    summary = json.loads((folder / SUMMARY).read_text())
    del summary[section]
    (folder / SUMMARY).write_text(json.dumps(summary))
    with pytest.raises(DataError, match=rf"lacks {section}; score again"):
        load_sources([folder])


def test_a_pair_saved_the_other_way_round_is_turned(write_results):
    folder = write_results()
    (straight,) = load_sources([folder])
    summary = json.loads((folder / SUMMARY).read_text())
    turned = []
    for pair in summary["comparisons"]:
        low, mean, high = (-pair["value"][end] for end in ("high", "mean", "low"))
        turned.append(
            {
                **pair,
                "method": pair["other"],
                "other": pair["method"],
                "value": {"low": low, "mean": mean, "high": high},
                "rank_biserial": -pair["rank_biserial"],
            }
        )
    _edit(folder, comparisons=turned)
    (source,) = load_sources([folder])
    ours, theirs = (
        {each.method: each for each in found.boards[0].standings}["grad-cam"] for found in (source, straight)
    )
    assert ours.beside == theirs.beside
    assert ours.comparisons["random"]["value"]["low"] == theirs.comparisons["random"]["value"]["low"]
    assert ours.comparisons["random"]["rank_biserial"] == theirs.comparisons["random"]["rank_biserial"]


def test_labels_are_as_short_as_they_may_be(write_results, tmp_path):
    one, two = write_results(root=tmp_path / "a", frames=20), write_results(root=tmp_path / "b", frames=20)
    other = write_results("others", root=tmp_path / "b", frames=20)
    assert [source.label for source in load_sources([one, two])] == ["a/scores", "b/scores"]
    assert [source.label for source in load_sources([one, other])] == ["scores", "others"]
    with pytest.raises(DataError, match="given twice; give each once"):
        load_sources([one, tmp_path / "a" / "." / "scores"])


@pytest.mark.parametrize(
    "changes",
    [
        {"scores": [{"method": "x"}]},
        {"scores": 3},
        {"intervals": {}},
        {"measures": []},
        {"comparisons": [{}]},
        {"controls": None},
    ],
)
def test_an_edited_summary_is_refused_in_one_line(write_results, changes):
    folder = write_results(frames=20)
    _edit(folder, **changes)
    with pytest.raises(DataError, match="; score again") as caught:
        load_sources([folder])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a"], "got 1 labels for 2 folders of results; give --label once for each"),
        (["a", "b", "c"], "got 3 labels for 2"),
        (["a", " a "], "expected different names"),
        (["a", "  "], "expected different names"),
    ],
)
def test_labels_are_one_for_each_and_different(write_results, tmp_path, labels, message):
    folders = [write_results(name, root=tmp_path, frames=20) for name in ("one", "two")]
    assert [source.label for source in load_sources(folders, ["old", "the  new"])] == ["old", "the new"]
    with pytest.raises(DataError, match=message):
        load_sources(folders, labels)
