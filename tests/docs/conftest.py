"""One folder in which the commands and snippets of every document find what they name."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from driving_xai.cli import app
from tests.data_prep.readers.bag_writer import generated_jpegs, short_drive, write_bag
from tests.data_prep.readers.test_ros2_bag import bag
from tests.data_prep.recordings import PERIOD_NS, START_NS, challenge, interpolated, jpeg, scene, simulator
from tests.data_prep.videos import KINDS, write
from tests.docs.documents import ROOT, made_by, shortened

SECONDS = 24
MADE_FIRST = (
    "driving-xai prep udacity-csv CH2_001 shards --crop-top 0.33 --set lead_s=0.4",
    "driving-xai train steering shards model --hold-out 2 --config docs/examples/steering-cpu.toml",
    "driving-xai score model shards --method sign-attention,grad-cam --every 10 -o scores",
    "driving-xai prep synthetic - streets --task actions",
)
"""What documents take for granted: README's shards, model, scores and streets. They run once for all."""


def run(command: str) -> str:
    """Runs a command line in this process, on less data; it has to succeed."""
    words = shortened(command)
    for out in made_by(words):
        shutil.rmtree(out, ignore_errors=True)
    done = CliRunner().invoke(app, words, prog_name="driving-xai")
    assert done.exit_code == 0, f"{command}\n{' '.join(words)}\n{done.output}"
    return done.output


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recordings, and what the commands above make of them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("documents")
    (folder / "docs").symlink_to(ROOT / "docs")
    _recordings(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in MADE_FIRST:
            run(command)
    for name in ("before", "after", "drive.scores"):
        shutil.copytree(folder / "scores", folder / name)
    shutil.copytree(folder / "model", folder / "demo" / "model")
    shutil.copytree(folder / "model", folder / "retrained")
    (folder / "demo" / "unseen.toml").write_text("seconds = 24.0\nrate_hz = 5.0\nheight = 48\nwidth = 64\n")
    return folder


@pytest.fixture
def folder(prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the test runs."""
    work = tmp_path / "work"
    shutil.copytree(prepared, work, symlinks=True)
    monkeypatch.chdir(work)
    return work


def _recordings(folder: Path) -> None:
    challenge(folder / "CH2_001", 20 * SECONDS)
    for number in range(5):
        interpolated(folder / "Ch2_002" / f"HMB_{number}", 30, start_ns=START_NS + number * 10**12)
    simulator(folder / "sim", [0.1 * (number % 5) for number in range(300)])
    write(folder / "dashcam.mp4", KINDS["h264"], 40)
    cv2.imwrite(str(folder / "frame.jpg"), scene(3, 96, 160)[..., ::-1])
    (folder / "bags").mkdir()
    write_bag(folder / "bags" / "drive.bag", short_drive(generated_jpegs(240)))
    (folder / "route.toml").write_text("seconds = 2.0\n")
    (folder / "scenes.toml").write_text("images = 8\n")
    bag(folder / "drive_bag", 240)
    _log(folder)


def _log(folder: Path) -> None:
    """A CSV with the columns of both examples."""
    rows = ["stamp,t,image,wheel_angle,steer,v"]
    (folder / "images").mkdir()
    for number in range(240):
        name = f"images/{number:04d}.jpg"
        (folder / name).write_bytes(jpeg(number))
        ns = START_NS + number * PERIOD_NS
        rows.append(
            f"{ns},{number * 0.05:.2f},{name},{10 * np.sin(number / 20):.4f},{np.sin(number / 20) / 9:.4f},36"
        )
    (folder / "log.csv").write_text("\n".join([*rows, ""]))
