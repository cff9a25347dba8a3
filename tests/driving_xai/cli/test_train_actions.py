"""train actions, train dino and their experiment from the command line: what they print, write and refuse."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

RECIPE = """
epochs = 1
batch_size = 8
short_side_px = 24
[model]
backbone = "vit_tiny_patch16_224"
patch_px = 8
embed_dim = 24
depth = 2
heads = 3
blocks = 2
image_size = [24, 40]
"""
DINO = """
epochs = 1
warmup_epochs = 0
batch_size = 8
output_dim = 64
hidden_dim = 32
bottleneck_dim = 16
[crops]
global_px = 24
local_px = 16
local_crops = 1
[model]
backbone = "vit_tiny_patch16_224"
patch_px = 8
embed_dim = 24
depth = 2
heads = 3
image_size = [24, 40]
"""


@pytest.fixture(scope="module")
def scenes(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `shards` and two recipes."""
    folder = tmp_path_factory.mktemp("recipes")
    (folder / "shards").symlink_to(streets)
    (folder / "recipe.toml").write_text(RECIPE)
    (folder / "dino.toml").write_text(DINO)
    return folder


def test_prep_renders_scenes_by_their_file_or_an_option(run, tmp_path) -> None:
    options = tmp_path / "scenes.toml"
    options.write_text("images = 1\nheight = 48\nwidth = 80\n")
    result = run("prep", "synthetic", options, tmp_path / "s", "--task", "actions", "--json")
    told = json.loads(result.stdout)
    assert (told["kind"], told["rows"]) == ("images", 1)
    line = [
        "prep",
        "synthetic",
        "-",
        tmp_path / "o",
        "--task",
        "actions",
        "--option",
        "images=3",
        "--dry-run",
        "--json",
    ]
    assert json.loads(run(*line).stdout)["config"]["reader"] == "synthetic-actions"


def test_from_pixels_to_a_backbone_to_actions(run, scenes, tmp_path) -> None:
    backbone, model = tmp_path / "backbone", tmp_path / "model"
    line = ["train", "dino", scenes / "shards", backbone, "--config", scenes / "dino.toml", "--device", "cpu"]
    found = json.loads(run(*line, "--json").stdout)
    assert set(found["metrics"]) == {"epochs", "train_loss", "teacher_entropy", "teacher_spread"}
    line = ["train", "actions", scenes / "shards", model, "--backbone", backbone, "--set", "model.blocks=2"]
    line += ["--short-side", 24, "--epochs", 1, "--device", "cpu"]
    result = run(*line)
    assert result.exit_code == 0, result.output
    assert "majority" in result.stdout
    assert "features of 40 of 40 images" in result.stderr
    assert "kind dino" in run("info", backbone).stdout
    told = json.loads(run("info", model, "--json").stdout)
    assert (told["kind"], told["config"]["model"]["embed_dim"]) == ("actions", 24)
    assert "backbone" not in told["config"]["training"]["start"]["sha256"]


def test_a_dry_run_writes_nothing(run, scenes, tmp_path) -> None:
    out = tmp_path / "out"
    for recipe, option, name in (("actions", "--fold", "held_out"), ("dino", "--devices", "devices")):
        file = scenes / ("recipe.toml" if recipe == "actions" else "dino.toml")
        line = ["train", recipe, scenes / "shards", out, option, 2, "--config", file, "--device", "cpu"]
        told = json.loads(run(*line, "--dry-run", "--json").stdout)
        assert told["recipe"] == recipe
        assert 2 in (told["config"][name], dict(told["config"].get("held_out", {})).get("fold"))
        assert not out.exists()


def test_a_dry_run_says_which_features_are_kept_already(run, scenes, tmp_path) -> None:
    line = ["train", "actions", scenes / "shards", tmp_path / "m", "--config", scenes / "recipe.toml"]
    first = run(*line, "--dry-run", "--device", "cpu")
    assert "First the features of all images are computed" in first.stdout
    assert run(*line, "--device", "cpu").exit_code == 0
    again = run(*line, "--dry-run", "--device", "cpu")
    assert "The features of all images are kept already" in again.stdout


def test_one_augmentation_needs_no_word_of_the_others(run, scenes, tmp_path) -> None:
    line = ["train", "actions", scenes / "shards", tmp_path / "out", "--tune", "all", "--dry-run", "--json"]
    line += ["--config", scenes / "recipe.toml", "--device", "cpu"]
    told = json.loads(run(*line, "--set", "augmentation.brightness=0.2").stdout)["config"]["augmentation"]
    assert (told["brightness"], told["flip"], told["contrast"]) == (0.2, False, 0.0)


def test_fetched_weights_are_named_and_recorded(run, scenes, tmp_path, monkeypatch) -> None:
    tiny = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3, "img_size": (24, 40)}
    theirs = timm.create_model("vit_tiny_patch16_224", num_classes=0, **tiny).state_dict()
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", lambda *_, **__: dict(theirs))
    # Nothing is fetched here, so nothing has to be reachable.
    monkeypatch.setattr("driving_xai.models.pretrained.require_reachable", lambda *_: None)
    line = ["--backbone", "timm", "--device", "cpu"]
    for recipe, file, out in (("actions", "recipe", "model"), ("dino", "dino", "teacher")):
        config = ["--config", scenes / f"{file}.toml"]
        result = run("train", recipe, scenes / "shards", tmp_path / out, *config, *line)
        assert result.exit_code == 0, result.output
        named = result.stderr.splitlines()[0]
        assert named.startswith("weights: timm's vit_tiny_patch16_224.augreg_in21k_ft_in1k; there are also ")
        told = json.loads((tmp_path / out / "config.json").read_text())["training"]["start"]
        assert told == {"timm": "vit_tiny_patch16_224.augreg_in21k_ft_in1k"}
    kept = load_file(tmp_path / "model" / "model.safetensors")
    torch.testing.assert_close(kept["vit.blocks.1.mlp.fc1.weight"], theirs["blocks.1.mlp.fc1.weight"])


def test_the_experiment_writes_its_table(run, scenes, tmp_path) -> None:
    file = tmp_path / "e.toml"
    body = RECIPE.replace("[model]", "[training.model]")
    file.write_text("folds = 2\n[training]\n" + body)
    result = run("experiment", "zhu-accuracy", scenes / "shards", "-o", tmp_path / "out", "--config", file)
    assert result.exit_code == 0, result.output
    assert "40 tested images of synthetic-actions-0" in result.stdout
    assert (tmp_path / "out" / "table.md").read_text().strip() == result.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--model", "vit_tyni_patch16_224"], 3, "did you mean vit_tiny_patch16_224?"),
        (["--backbone", "missing.pth"], 3, "no such file"),
        (["--set", "model.actions=['forward', 'slow']", "--set", "flip=none"], 3, "no label 'slow'"),
        (["--short-side", 7], 3, "a patch of vit_tiny_patch16_224 is 8 px"),
        (["--set", "tune=everything"], 2, "one of head, all"),
        (["--set", "epoch=1"], 2, "did you mean epochs?"),
    ],
)
def test_bad_input_is_one_line_with_its_exit_code(run, scenes, tmp_path, arguments, code, message) -> None:
    line = ["train", "actions", scenes / "shards", tmp_path / "out", "--config", scenes / "recipe.toml"]
    result = run(*line, "--device", "cpu", *arguments)
    assert result.exit_code == code, result.output
    (said,) = result.stderr.strip().splitlines()
    assert message in said


def test_drives_are_no_images_and_a_task_needs_the_synthetic_reader(run, made, tmp_path) -> None:
    result = run("train", "dino", made.shards, tmp_path / "out")
    assert (result.exit_code, "expected labelled images" in result.stderr) == (3, True)
    result = run("prep", "video", made.video, tmp_path / "out", "--task", "actions")
    assert (result.exit_code, "--task actions is for reader synthetic" in result.stderr) == (2, True)
