"""A local path with a colon in it is a path: no library takes it for an address."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from driving_xai import checkpoint
from driving_xai.cli import app
from driving_xai.replay.sink import Encoding, open_sink
from driving_xai.report.pictures import stills
from tests.driving_xai.training.test_loop import HOW, trained
from tests.robustness.fuzz_commands import SCORE, write_originals


def test_every_command_takes_relative_paths_with_a_colon(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    root = Path("run:1")
    root.mkdir()
    write_originals(root)  # score and sanity
    (root / "route.toml").write_text("seconds = 1.2\n")
    for words in (
        ("prep", "synthetic", "run:1/route.toml", "run::2/shards", "--split", "test"),
        ("info", "run:1/scores"),
        ("verify", "run:1/shards"),
        ("report", "run:1/scores", "run:1/sanity", "-o", "run:2/page.html", "--csv", "run:2/page.csv"),
        ("explain", "run:1/model", "run:1/frame.png", "--method", "sign-attention", "-o", "run:2/maps"),
        ("score", "run:1/model", "run:1/shards", *SCORE, "--save-maps", "--resume", "-o", "run:1/begun"),
    ):
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, (words, done.output, done.exception)


@pytest.mark.parametrize("name", ["run:1", "run::1"])
def test_a_training_is_written_and_continued_in_one(name, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    out = Path(name) / "model"
    trained(out)
    trained(out, replace(HOW, epochs=4), resume=True)
    assert checkpoint.load(out).config["training"]["epochs"] == 4


def test_videos_too(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    film = Path("run:1") / "film.mp4"
    with open_sink(film, height=48, width=64, frame_rate=Fraction(20), encoding=Encoding()) as sink:
        sink.write(np.full((48, 64, 3), 99, np.uint8))
    assert set(stills(film, [0], width=32)) == {0}
