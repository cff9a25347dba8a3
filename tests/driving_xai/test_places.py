"""Commands on object stores: by URL they write the bytes that they write by local paths, killed in the middle or not."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest
from typer.testing import CliRunner

import driving_xai as dx
from data_prep import places
from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, read_job
from data_prep.publish import publish
from driving_xai.cli import app
from tests.data_prep import buckets
from tests.robustness.fuzz_commands import OTHERS, SCORE, write_originals

TRAIN = (
    *("--epochs", "12", "--frame-epochs", "1", "--hidden-size", "8", "--set", "batch_size=8"),
    *("--set", "model.height=32", "--set", "model.width=64", "--set", "window=5"),
)


@pytest.fixture
def root(tmp_path, monkeypatch) -> Iterator[Path]:
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    write_originals(tmp_path / "local")
    yield tmp_path / "local"
    buckets.let_go()


def contents(folder: Path) -> dict[str, bytes]:
    """Without logs, which hold times, and the locks of what is fetched."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not {"logs", "resume"} & set(name.split("/"))
    }


def invoke(*words: str | Path) -> str:
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, (words, done.output, done.exception)
    return done.stdout


def test_every_command_that_reads_takes_urls(root, tmp_path):
    with buckets.memory():
        files = fsspec.filesystem("memory", use_listings_cache=False)
        publish(root / "shards", "memory://bucket/shards")
        for name in ("model", "scores", "sanity"):
            files.put(str(root / name), f"/bucket/{name}", recursive=True)
        files.put(str(root / "frame.png"), "/bucket/frame.png")
        for at, out in ((str(root), tmp_path / "here"), ("memory://bucket", tmp_path / "there")):
            model, shards = f"{at}/model", f"{at}/shards"
            score = ("score", model, shards, *SCORE, "--save-maps")
            invoke(*score, "-o", out / "scores")
            check = ("--check", "noise", "--split", "all", "--every", "12")
            invoke("sanity", model, shards, "--method", "sign-attention", *check, "-o", out / "sanity")
            invoke("report", f"{at}/scores", f"{at}/sanity", "-o", out / "page.html")
            invoke("explain", model, f"{at}/frame.png", "--method", "sign-attention", "-o", out / "maps")
            invoke("replay", model, shards, "--end", "0.3", "-o", out / "drive.mp4")
            (out / "verify").write_text(invoke("verify", shards).replace(at, ""))
            for name in ("model", "shards", "scores", "sanity"):
                (out / f"info-{name}").write_text(invoke("info", f"{at}/{name}").replace(at, ""))
        here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
        assert here.keys() == there.keys()
        # x264 may give other bytes for the same pictures; the scores of the replay are compared.
        films = {"drive.mp4", "drive.scores/results.json"}
        assert {name for name in here if here[name] != there[name]} <= films


def test_what_is_brought_along_and_python_take_urls(root, tmp_path):
    """Maps, masks, weights and a network to compare with; dx.load, dx.evaluate and dx.report.write."""
    with buckets.memory():
        files = fsspec.filesystem("memory", use_listings_cache=False)
        publish(root / "shards", "memory://bucket/shards")
        files.put(str(root / "model"), "/bucket/model", recursive=True)
        for name in ("given.h5", "masks.npz", "weights.safetensors"):
            files.put(str(root / name), f"/bucket/{name}")
        for at, out in ((str(root), tmp_path / "here"), ("memory://bucket", tmp_path / "there")):
            brought = ("--maps", f"{at}/given.h5", "--masks", f"{at}/masks.npz")
            invoke("score", f"{at}/model", f"{at}/shards", *SCORE, *brought, "-o", out / "scores")
            kinds = ("methods", OTHERS, "--weights", f"{at}/weights.safetensors", "--json")
            (out / "methods").write_text(invoke(*kinds))
            model = dx.load(f"{at}/model")
            found = dx.evaluate(
                model,
                f"{at}/shards",
                methods=["sign-attention"],
                metrics=["pointing-game"],
                masks=f"{at}/masks.npz",
                split="all",
                every=12,
                out=out / "evaluated",
            )
            assert len(found.per_frame)
            weighed = dx.load(OTHERS, weights=f"{at}/weights.safetensors")
            (out / "sha256").write_text(weighed.sha256)
        here, there = contents(tmp_path / "here"), contents(tmp_path / "there")
        assert here == there
        files.put(str(tmp_path / "here" / "scores"), "/bucket/scores", recursive=True)
        pages = [
            dx.report.write(scores, tmp_path / f"{number}.html")[0].read_bytes()
            for number, scores in enumerate((tmp_path / "here" / "scores", "memory://bucket/scores"))
        ]
        assert pages[0] == pages[1]
        for refused in (
            lambda: dx.report.write("memory://bucket/scores", "memory://bucket/page.html"),
            lambda: dx.evaluate(model, "memory://bucket/shards", methods=["lime"], out="memory://bucket/x"),
        ):
            with pytest.raises(DataError, match="results are written to this machine"):
                refused()


def test_prep_reads_a_recording_from_a_store_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
    for number in range(6):
        picture = tmp_path / "set" / ("cat" if number % 2 else "dog") / f"{number}.png"
        picture.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(picture), np.full((8, 8, 3), 40 * number, np.uint8))
    with buckets.memory():
        files = fsspec.filesystem("memory", use_listings_cache=False)
        files.put(str(tmp_path / "set"), "/bucket/set", recursive=True)
        for source, out in ((tmp_path / "set", "here"), ("memory://bucket/set", "there")):
            invoke("prep", "image-folder", source, tmp_path / out)
        assert contents(tmp_path / "there") == contents(tmp_path / "here")
        # Elsewhere its copies are as old, so that a run can be resumed there.
        states = []
        for place in ("cache", "another"):
            monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / place))
            how = PrepConfig(reader="image-folder", source=places.local("memory://bucket/set"))
            states.append(read_job(how).source)
        assert states[0] == states[1]
    buckets.let_go()


def killed_and_resumed(words: tuple[str, ...], met: Callable[[], bool], resume: tuple[str, ...]) -> None:
    """Runs a command, kills it once `met` holds, and runs it again."""
    command = [sys.executable, "-m", "driving_xai", *words]
    due = time.monotonic() + 180
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        while not met() and first.poll() is None:
            assert time.monotonic() < due
            time.sleep(0.02)
        first.send_signal(signal.SIGKILL)
    assert first.returncode == -signal.SIGKILL
    again = subprocess.run([*command, *resume], capture_output=True, text=True)
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_a_round_trip_over_s3_with_a_kill_in_each_command_equals_local_paths(tmp_path, monkeypatch):
    """prep, train, score and report; each is killed once it has begun to write."""
    here, there = tmp_path / "here", tmp_path / "there"
    prep = ("prep", "synthetic", "-", "{}", "--option", "seconds=8", "--set", "frames_per_shard=16")
    prep += (
        "--set",
        "geometry.height=32",
        "--set",
        "geometry.width=64",
        "--set",
        "gap_s=0.5",
        "--smoothing",
        "0.5",
    )
    score = (*SCORE, "--batch-size", "1", "--every", "2", "--save-maps")

    def local(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "driving_xai", *words], check=True, capture_output=True)

    shards, model, scores = str(here / "shards"), str(here / "model"), str(here / "scores")
    local(*(word.format(shards) for word in prep))
    local("train", "steering", shards, model, *TRAIN)
    local("score", model, shards, *score, "-o", scores)
    local("report", scores, "-o", str(here / "page.html"))

    with buckets.s3() as bucket:
        monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "cache"))
        url, results = bucket.url, there / "scores"
        killed_and_resumed(
            tuple(word.format(url) for word in prep),
            lambda: sum(name.startswith("shards/") for name in bucket.names()) >= 2,
            ("--resume",),
        )
        assert bucket.objects() == contents(here / "shards")

        model = str(there / "model")
        killed_and_resumed(
            ("train", "steering", url, model, *TRAIN), lambda: any(Path(model).rglob("*.ckpt")), ("--resume",)
        )
        killed_and_resumed(
            ("score", model, url, *score, "-o", str(results)),
            lambda: any(results.rglob("part-*.parquet")),
            ("--resume",),
        )
        for path, data in contents(results).items():
            bucket.write(f"scores/{path}", data)
        killed_and_resumed(
            ("report", f"{url}/scores", "-o", str(there / "page.html")),
            lambda: any((tmp_path / "cache").rglob("results.json")),
            (),
        )
        assert (
            contents(there).items()
            == {name: data for name, data in contents(here).items() if not name.startswith("shards/")}.items()
        )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["processes", "dask"])
def test_workers_score_shards_and_a_checkpoint_from_s3_to_the_bytes_of_local_paths(
    engine, root, tmp_path, monkeypatch
):
    """The cache lies behind a link, as scratch disks do."""
    score = (*SCORE[:-1], "3", "--batch-size", "1")
    invoke("score", root / "model", root / "shards", *score, "-o", tmp_path / "here")
    with buckets.s3() as bucket:
        (tmp_path / "disk").mkdir()
        (tmp_path / "scratch").symlink_to(tmp_path / "disk")
        monkeypatch.setenv("DRIVING_XAI_CACHE", str(tmp_path / "scratch"))
        publish(root / "shards", f"{bucket.url}/shards")
        for file in (root / "model").iterdir():
            bucket.write(f"model/{file.name}", file.read_bytes())
        words = ("score", f"{bucket.url}/model", f"{bucket.url}/shards", *score, "-o", tmp_path / "there")
        command = [
            sys.executable,
            "-m",
            "driving_xai",
            *map(str, words),
            "--engine",
            engine,
            "--workers",
            "2",
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert contents(tmp_path / "there") == contents(tmp_path / "here")


def test_an_argument_in_a_store_that_is_not_known_is_data_that_cannot_be_used():
    for words in (
        ("info", "nowhere://bucket/scores"),
        ("explain", "nowhere://bucket/model", "a.png", *SCORE[:2]),
    ):
        done = CliRunner().invoke(app, [*words, *(() if words[0] == "info" else ("-o", "maps"))])
        assert done.exit_code == 3
        assert done.stderr.splitlines()[-1].startswith("driving-xai: nowhere://bucket/"), done.stderr
