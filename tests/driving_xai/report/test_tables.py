"""Markdown and CSV: the numbers come back, and text stays text."""

from __future__ import annotations

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from driving_xai.cli import app
from driving_xai.evaluation.results import PER_FRAME, SCHEMA, SUMMARY
from driving_xai.report.sources import load_sources
from driving_xai.report.tables import write_csv, write_markdown


def test_the_csv_says_what_the_results_say(write_results, tmp_path):
    folder = write_results(root=tmp_path, measures=("deletion", "pointing-game"))
    write_csv(load_sources([folder]), tmp_path / "scores.csv")
    table = pd.read_csv(tmp_path / "scores.csv")
    summary = json.loads((folder / SUMMARY).read_text())
    assert len(table) == len(summary["scores"])
    row = table[(table.method == "grad-cam") & (table.measure == "deletion") & (table.reference == "truth")]
    (score,) = [s for s in summary["scores"] if (s["method"], s["reference"]) == ("grad-cam", "truth")]
    assert row["mean"].item() == score["value"]["mean"]
    assert row["normalised"].item() == score["normalised"]["mean"]
    (pair,) = [
        p
        for p in summary["comparisons"]
        if (p["method"], p["other"], p["reference"]) == ("grad-cam", "random", "truth")
    ]
    assert row["difference beside random"].item() == pair["value"]["mean"]
    assert row["p_holm beside random"].item() == pytest.approx(pair["p_holm"])
    assert row["verdict beside centre-prior"].item() == "better"
    assert table[table.method == "random"]["difference beside random"].isna().all()


def test_a_name_is_no_formula_and_no_markup(write_results, tmp_path):
    folder = write_results("=1+1|<b>", root=tmp_path, frames=20)
    sources = load_sources([folder])
    write_csv(sources, tmp_path / "scores.csv")
    assert pd.read_csv(tmp_path / "scores.csv")["result"].unique().tolist() == ["'=1+1|<b>"]
    write_markdown(sources, tmp_path / "scores.md")
    assert "## =1+1\\|\\<b\\>" in (tmp_path / "scores.md").read_text()


def test_the_markdown_has_a_row_for_each_method(write_results, tmp_path):
    folder = write_results(root=tmp_path)
    write_markdown(load_sources([folder]), tmp_path / "scores.md")
    lines = (tmp_path / "scores.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ") and not line.startswith("| method")]
    assert len(rows) == 2 * 4
    assert all(line.count("|") == 7 for line in rows)
    assert rows[0].startswith("| grad-cam | ")
    assert "better than random and centre-prior" in rows[0]


def _run(*arguments: object):
    return CliRunner().invoke(app, ["report", *map(str, arguments)], prog_name="driving-xai")


def test_the_command_writes_what_is_asked_for(write_results, tmp_path):
    folder = write_results(root=tmp_path, frames=20)
    files = [tmp_path / name for name in ("a.html", "a.md", "a.csv")]
    done = _run(folder, "-o", files[0], "--markdown", files[1], "--csv", files[2], "--json")
    assert done.exit_code == 0, done.output
    assert [each["bytes"] for each in json.loads(done.stdout)["files"]] == [f.stat().st_size for f in files]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "nothing to write; give --out"),
        (("-o", "page.pdf"), 2, "expected a name that ends in .html"),
        (("--rrd", "page.html"), 2, "expected a name that ends in .rrd"),
    ],
)
def test_wrong_usage(write_results, arguments, code, message):
    done = _run(write_results(frames=20), *arguments)
    assert (done.exit_code, message in done.stderr) == (code, True), done.output


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / SUMMARY).unlink(), "no results.json"),
        (lambda root: (root / PER_FRAME).write_bytes(b"PAR1"), "differs from the hash"),
        (lambda root: (root / SUMMARY).write_text(json.dumps({"schema": SCHEMA})), "lacks"),
    ],
)
def test_damaged_results_are_one_line_and_exit_3(write_results, tmp_path, spoil, message):
    folder = write_results(root=tmp_path, frames=20)
    spoil(folder)
    done = _run(folder, "-o", tmp_path / "page.html")
    assert done.exit_code == 3
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "page.html").exists()


def test_a_recording_without_rerun_says_what_to_install(write_results, tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "rerun", None)
    done = _run(write_results(root=tmp_path, frames=20), "--rrd", tmp_path / "a.rrd")
    assert done.exit_code == 3
    assert "pip install '.[rerun]'" in done.stderr
    assert not (tmp_path / "a.rrd").exists()


def test_a_recording_holds_the_numbers_and_the_video(write_replay, tmp_path):
    pytest.importorskip("rerun")
    folder = write_replay(root=tmp_path, frames=20)
    assert _run(folder, "--rrd", tmp_path / "a.rrd").exit_code == 0
    assert (tmp_path / "a.rrd").stat().st_size > (tmp_path / "drive.mp4").stat().st_size
