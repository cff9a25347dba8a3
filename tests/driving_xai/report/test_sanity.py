"""Sanity checks in a report: read whole, refused when changed, drawn beside the results."""

from __future__ import annotations

import base64
import json
import re
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from data_prep.shards.atomic import sha256_of
from driving_xai.cli import app
from driving_xai.errors import DataError
from driving_xai.evaluation.maps_file import Part, join_parts, save_part
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.sanity import PER_FRAME, SCHEMA, SUMMARY
from driving_xai.report.drawing import Scale, curves
from driving_xai.report.page import write_page
from driving_xai.report.sanity import Sanity, holds_sanity, load_sanity
from driving_xai.report.sources import load_sources


def _mean(check: str, method: str, beside: str, quantity: str, mean: float | None) -> dict:
    value = {"mean": mean, "low": None, "high": None, "reason": "few"}
    return {
        "check": check,
        "method": method,
        "beside": beside,
        "quantity": quantity,
        "frames": 3,
        "value": value,
    }


@pytest.fixture
def checks(tmp_path: Path) -> Path:
    root = tmp_path / "sanity"
    root.mkdir()
    pd.DataFrame({"value": [1.0]}).to_parquet(root / PER_FRAME)
    means = [
        *(_mean("cascading", "grad-cam", layer, "spearman", v) for layer, v in (("out", 0.5), ("in", -0.1))),
        *(_mean("cascading", "centre-prior", layer, "spearman", 1.0) for layer in ("out", "in")),
        _mean("cascading", "grad-cam", "out", "top-overlap", 0.3),
        _mean("noise", "grad-cam", "", "max-sensitivity", 0.25),
        _mean("degenerate", "grad-cam", "", "share", 0.125),
        _mean("agreement", "grad-cam", "centre-prior", "spearman", 0.4),
    ]
    summary = {
        "schema": SCHEMA,
        "plan": {"checkpoint_sha256": "c" * 64},
        "data": {"frames": 99},
        "means": means,
        "files": {PER_FRAME: sha256_of(root / PER_FRAME)},
    }
    (root / SUMMARY).write_text(json.dumps(summary))
    return root


def test_it_reads_what_was_found(checks: Path) -> None:
    assert holds_sanity(checks)
    assert not holds_sanity(checks.parent)
    (found,) = load_sanity([checks])
    assert found.layers == ["out", "in"]
    assert found.cascade("grad-cam", "spearman") == [1.0, 0.5, -0.1]
    assert found.cascade("absent", "spearman") == []
    assert found.value("noise", "grad-cam")["mean"] == 0.25
    assert found.value("noise", "centre-prior") is None
    assert found.agreement("centre-prior", "grad-cam") == found.agreement("grad-cam", "centre-prior") == 0.4


def test_two_folders_of_one_name_are_told_apart(checks: Path, tmp_path: Path) -> None:
    twins = [shutil.copytree(checks, tmp_path / name / "sanity") for name in ("a", "b")]
    assert [each.label for each in load_sanity(twins)] == ["a/sanity", "b/sanity"]


def test_an_unknown_likeness_is_a_gap() -> None:
    """A constant map has no rank correlation, which is not one of zero."""
    means = [
        _mean("cascading", "rise", str(at), "spearman", v) for at, v in enumerate((0.5, None, 0.25, 0.0))
    ]
    line = Sanity(label="s", summary={"means": means}).cascade("rise", "spearman")
    assert line == [1.0, 0.5, None, 0.25, 0.0]
    drawn = curves(range(5), line, {}, Scale(low=0.0, high=1.0), ends=("first", "last"))
    assert [len(points.split()) for points in re.findall(r'own" points="([^"]*)"', drawn)] == [2, 2]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda root: (root / PER_FRAME).write_bytes(b""), "differs from the hash"),
        (lambda root: (root / PER_FRAME).unlink(), "has no sanity.parquet"),
        (lambda root: (root / SUMMARY).write_text("{"), "cannot be read"),
        (lambda root: (root / SUMMARY).write_text('{"schema": "other"}'), "schema 'other'"),
        (lambda root: (root / SUMMARY).write_text(json.dumps({"schema": SCHEMA})), "lacks plan"),
    ],
)
def test_damaged_checks_are_refused_in_one_line(checks: Path, spoil, message: str) -> None:
    spoil(checks)
    with pytest.raises(DataError, match=message) as caught:
        load_sanity([checks])
    assert "\n" not in str(caught.value)


def test_the_page_shows_them_beside_results(checks: Path, write_results, tmp_path: Path) -> None:
    folder = write_results(root=tmp_path, frames=20)
    page = tmp_path / "page.html"
    done = CliRunner().invoke(app, ["report", str(folder), str(checks), "-o", str(page)])
    assert done.exit_code == 0, done.output
    text = page.read_text()
    section = text[text.index('id="sanity"') : text.index('id="frames"')]
    assert section.count('class="curve own"') == 2
    assert ">all random<" in section
    assert ">0.25<" in section
    assert ">12.5 %<" in section
    assert "Random weights" in text
    told = CliRunner().invoke(app, ["info", str(checks)])
    assert "agreement    grad-cam" in told.output
    alone = CliRunner().invoke(app, ["report", str(checks), "-o", str(page)])
    assert (alone.exit_code, "sanity checks alone make no report" in alone.stderr) == (2, True)


def test_saved_maps_stand_on_the_cards(write_results, tmp_path: Path) -> None:
    """The brightest spot of the picture is where the map is highest."""
    folder = write_results(root=tmp_path, frames=20)
    maps = np.zeros((20, 1, 8, 16), np.float32)
    maps[:, 0, 6, 13] = 1
    places = pd.DataFrame(
        {"drive": "road", "camera": "front", "frame": np.arange(20) + 1, "target": "magnitude"}
    )
    save_part(tmp_path / "part.npz", Part(places, maps))
    join_parts(folder / "maps.h5", [tmp_path / "part.npz"], ["grad-cam"])
    Results.load(folder).save(folder, beside=["maps.h5"])
    (page,) = write_page(load_sources([folder]), tmp_path / "page.html")
    text = page.read_text()
    data = json.loads(text.split('id="data">')[1].split("</script>")[0])
    picks = data["results"][0]["picks"]["deletion/truth"]
    assert {pick["map"] for pick in picks["lime"]} == {None}
    packed = base64.b64decode(data["maps"][picks["grad-cam"][0]["map"]])
    picture = cv2.imdecode(np.frombuffer(packed, np.uint8), cv2.IMREAD_GRAYSCALE)
    row, column = np.unravel_index(cv2.GaussianBlur(picture, (9, 9), 0).argmax(), picture.shape)
    assert (row / picture.shape[0] * 8, column / picture.shape[1] * 16) == pytest.approx((6.5, 13.5), abs=0.6)
