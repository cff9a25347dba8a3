"""The demo at a tiny scale, through its command: what it leaves, and that it goes on where it stopped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from driving_xai import demo
from driving_xai.cli import app

TINY = demo.Scale(drives=3, seconds=1.2, hidden_size=4, frame_epochs=1, epochs=1, score_every=8)


def test_the_demo_leaves_a_video_and_scores_and_can_be_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo, "Scale", lambda: TINY)
    torch.set_num_threads(1)
    line = ["demo", "--out", str(tmp_path / "demo"), "--json"]
    first = CliRunner().invoke(app, line)
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert Path(made["video"]).stat().st_size > 10_000
    assert {score["method"] for score in made["scores"]} == {
        "sign-attention",
        "grad-cam",
        "integrated-gradients",
        "random",
        "centre-prior",
    }
    assert made["metrics"]["test"]["mae_deg_zero"] > 0

    weights = Path(made["model"]) / "model.safetensors"
    trained = weights.stat().st_mtime_ns
    Path(made["video"]).unlink()
    again = CliRunner().invoke(app, line)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout) == made
    assert Path(made["video"]).exists()
    assert weights.stat().st_mtime_ns == trained

    said = CliRunner().invoke(app, line[:-1])
    assert "integrated-gradients: Too little was scored to tell whether the highlighted" in said.stdout

    text = CliRunner().invoke(app, [*line[:-1], "--seed", "1"])
    assert text.exit_code == 3
    assert "another source, configuration or library version" in text.stderr
