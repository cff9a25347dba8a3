"""Ctrl-C in the middle of work: one line, exit 130, and nothing half-written that looks whole."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from typer.testing import Result

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def heeds_ctrl_c() -> Iterator[None]:
    """A shell's background job ignores SIGINT and hands that on, which would hide what is tested.

    Ctrl-C may come while `torch.no_grad` is entered or left. The command line then ends; this process goes on to
    other tests, which must not run without gradients.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
    torch.set_grad_enabled(True)


@pytest.fixture
def interrupted(run) -> Callable[..., Result]:
    """Runs a command line and sends this process Ctrl-C once `when` holds."""

    def invoke(*words: object, when: Callable[[], bool]) -> Result:
        ended = threading.Event()

        def watch() -> None:
            while not when():
                if ended.wait(0.01):
                    return
            os.kill(os.getpid(), signal.SIGINT)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            return run(*words)
        finally:
            ended.set()
            watcher.join()

    return invoke


def assert_told_once(code: int, out: str, err: str) -> None:
    assert code == 130, err
    assert out == ""
    assert err.splitlines()[-1].startswith("driving-xai: interrupted")
    assert "Traceback" not in err or LOST in err


LOST = "Exception ignored in"
"""Python's words for a Ctrl-C that came while it ran a weak reference's callback: it is lost."""


def interrupt_until_it_ends(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Sends Ctrl-C, and again where Python lost the first; what the process said."""
    while True:
        os.killpg(process.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=20)


@pytest.fixture
def long_route(tmp_path: Path) -> Path:
    route = tmp_path / "long.toml"
    route.write_text("seconds = 600.0\nrate_hz = 10.0\nheight = 48\nwidth = 64\n")
    return route


@pytest.mark.parametrize("engine", ["serial", "processes"])
def test_prep_keeps_whole_shards_and_no_manifest(run, tmp_path: Path, long_route: Path, engine: str) -> None:
    """In a session of its own, so that the workers get Ctrl-C too, as from a terminal."""
    out = tmp_path / "out"
    words = ["prep", "synthetic", long_route, out, "--set", "frames_per_shard=10", "--engine", engine]
    process = subprocess.Popen(
        [sys.executable, "-m", "driving_xai", *map(str, words), "--workers", "2"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    while not any(out.glob("shards/*.h5")):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    told = interrupt_until_it_ends(process)
    assert_told_once(process.returncode, *told)
    assert not (out / "manifest.json").exists()
    found = json.loads(run("info", out, "--json").stdout)
    assert found["what"] == "unfinished preparation"
    assert "goes on with --resume" in run("info", out).stdout
    assert run("verify", out).exit_code == 3
    assert run("train", "steering", out, tmp_path / "model").exit_code == 3


def test_train_can_be_resumed_and_is_no_checkpoint_until_then(run, interrupted, made, tmp_path: Path) -> None:
    out, recipe = tmp_path / "model", made.route.with_name("recipe.toml")
    line = ["train", "steering", made.shards, out, "--config", recipe, "--device", "cpu", "--epochs", 10_000]
    done = interrupted(*line, when=(out / "resume" / "last.ckpt").exists)
    assert_told_once(done.exit_code, done.stdout, done.stderr)
    assert not (out / "config.json").exists()
    assert "--resume goes on with epoch" in done.stderr.splitlines()[-1]
    found = json.loads(run("info", out, "--json").stdout)
    assert (found["what"], found["kind"]) == ("unfinished training", "steering")
    assert found["epoch"] >= found["best_epoch"] >= 1
    assert Path(found["best"]).is_file()
    assert "goes on with --resume" in run("info", out).stdout
    again = run(*line)
    assert (again.exit_code, "--resume" in again.stderr) == (3, True)


def test_replay_leaves_no_video_and_no_scores(interrupted, made, tmp_path: Path, long_route: Path) -> None:
    out = tmp_path / "videos" / "drive.mp4"
    line = ["replay", made.model, long_route, "-o", out, "--device", "cpu"]
    done = interrupted(*line, when=lambda: any(out.parent.glob("*.tmp")))
    assert_told_once(done.exit_code, done.stdout, done.stderr)
    assert not [path for path in out.parent.rglob("*") if path.is_file()]


def test_score_leaves_no_results_and_continues(run, interrupted, made, tmp_path: Path) -> None:
    out = tmp_path / "scores"
    line = [
        "score",
        made.model,
        made.shards,
        "--method",
        "random",
        "--split",
        "all",
        "-o",
        out,
        "--batch-size",
        1,
    ]
    done = interrupted(*line, when=lambda: any(out.rglob("*.parquet")))
    assert_told_once(done.exit_code, done.stdout, done.stderr)
    assert not (out / "results.json").exists()
    found = json.loads(run("info", out, "--json").stdout)
    assert (found["what"], found["batches"] >= 1) == ("unfinished scores", True)
    assert found["methods"] == ["random", "centre-prior"]
    assert "goes on with --resume" in run("info", out).stdout
    assert run(*line, "--resume").exit_code == 0
