"""The commands of docs/examples/pilotnet, run in its folder as its README says, on a shorter route."""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

import driving_xai as dx
from driving_xai.cli import app
from driving_xai.evaluation.results import Results

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "examples" / "pilotnet"
ROUTE = "drives = 1\nseconds = 28.0\nrate_hz = 10.0\nheight = 96\nwidth = 160\n"
# Fewer epochs and frames than the README's.
SHORTER = {" 10": " 1", "--every 5": "--every 20", "--end 5": "--end 0.5"}
SHORTER_OPTIONS = re.compile("|".join(SHORTER))
SHORTER_IN_PYTHON = {"every=5": "every=20", "end_s=5": "end_s=0.5"}
MODULES = ("pilotnet", "cnn_lstm", "ours", "train", "in_python")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the example, as the working directory of somebody who starts the console script."""
    here = tmp_path / "docs" / "examples" / "pilotnet"
    shutil.copytree(FOLDER, here)
    shutil.copytree(ROOT / "docs" / "images", tmp_path / "docs" / "images")
    (here / "route.toml").write_text(ROUTE)
    script = here / "in_python.py"
    for long, short in SHORTER_IN_PYTHON.items():
        assert long in script.read_text()
        script.write_text(script.read_text().replace(long, short))
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each])
    yield here
    for name in MODULES:
        sys.modules.pop(name, None)


def commands() -> list[list[str]]:
    """Every line of the README's blocks."""
    blocks = (FOLDER / "README.md").read_text().split("```sh\n")[1:]
    lines = [line for block in blocks for line in block.partition("```")[0].splitlines()]
    return [shlex.split(SHORTER_OPTIONS.sub(lambda found: SHORTER[found[0]], line)) for line in lines]


def run(words: list[str], monkeypatch: pytest.MonkeyPatch) -> str:
    if words[0] == "driving-xai":
        result = CliRunner().invoke(app, words[1:], prog_name="driving-xai")
        assert result.exit_code == 0, f"{shlex.join(words)}\n{result.output}"
        return result.output
    assert words[0] == "python"
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", words[1:])
        # Python puts a script's folder there.
        patch.syspath_prepend(str(Path.cwd()))
        runpy.run_path(words[1], run_name="__main__")
    return ""


@pytest.mark.slow
def test_each_command_of_the_readme_runs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    said = [run(words, monkeypatch) for words in commands()]
    assert "yes  visual-backprop" in said[2]
    assert len(list((folder / "maps").glob("*.png"))) == 6
    results = Results.load(folder / "scores")
    means = {each["method"]: each["value"]["mean"] for each in results.summary["scores"]}
    assert {"captum:DeepLift", "zennit:EpsilonPlus", "ours:Darkness", "random"} <= set(means)
    assert (folder / "drive.mp4").stat().st_size > 1000
    assert "captum:DeepLift" in (folder / "report.html").read_text()
    # From Python the same frames have the same scores.
    for method in ("grad-cam", "captum:DeepLift"):
        once, again = (
            Results.load(folder / each).select(method=method, measure="deletion", reference="truth")
            for each in ("scores", "from_python/scores")
        )
        pd.testing.assert_series_equal(once["value"], again["value"], check_index=False)
    lstm = Results.load(folder / "lstm")
    tested = dx.data.open("shards", split="test").index["time_ns"]
    for method in ("grad-cam", "gradient", "rise", "random", "centre-prior"):
        for reference in ("clean", "truth"):
            scored = lstm.select(method=method, measure="deletion", reference=reference)
            # The first frame of a run has no past, and so no memory to explain with.
            assert scored["time_ns"].tolist() == tested.iloc[20::20].tolist()
            assert scored["value"].notna().all()
    assert (folder / "lstm.mp4").is_file()
