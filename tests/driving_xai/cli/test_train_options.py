"""Options of the train commands that would have no effect are refused."""

from __future__ import annotations

from dataclasses import replace

import pytest

from driving_xai.training.classify import train
from tests.driving_xai.training import together
from tests.driving_xai.training.pictures import Pictures


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("steering", ("--heat", "grad-cam", "--logger", "none"), "--heat grad-cam with --logger none"),
        ("steering", ("--heat", "grad-cam", "--heat-every", "0"), "--heat grad-cam with --heat-every 0"),
        ("steering", ("--heat", "grad-camm", "--logger", "none"), "grad-camm"),
        ("classifier", ("--model", "bla", "--heat-every", "2"), "--heat-every: bla trains on kept features"),
    ],
)
def test_heat_that_nothing_would_show_is_refused(run, tmp_path, kind, options, message) -> None:
    (tmp_path / "shards").mkdir()
    result = run("train", kind, tmp_path / "shards", tmp_path / "out", *options, "--device", "cpu")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("dry_run", [("--dry-run",), ("--dry-run", "--json"), ()])
def test_a_dry_run_of_attention_refuses_what_the_training_refuses(run, streets, tmp_path, dry_run) -> None:
    model, block = tmp_path / "model", tmp_path / "block.safetensors"
    train(Pictures(), model, replace(together.CLASSIFIER, epochs=1), data={}, device="cpu")
    result = run("train", "attention", streets, model, block, *dry_run, "--device", "cpu")
    assert result.exit_code == 3
    assert "is none of the model's 2 outputs" in result.output
    assert not block.exists()
