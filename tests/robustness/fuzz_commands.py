"""Feeds damaged files to the commands that read them: checkpoints, weights, results, sanity checks, maps, settings.

Run as `python tests/robustness/fuzz_commands.py --cases 100 --seed 0`: so many of each kind of damage for each
file. A case ends well where the command succeeds, or is refused in one line with a documented exit code; a file
that a hash vouches for must be refused. A traceback, a case of over `MOST_SECONDS`, or a changed file that passes
unseen is a finding. A case is a pure function of (seed, target, kind, number).
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

import driving_xai as dx
from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.atomic import sha256_of
from data_prep.shards.manifest import Manifest
from driving_xai import checkpoint
from driving_xai.cli import app
from driving_xai.cli.console import FAILED, INVALID_DATA, USAGE
from driving_xai.data.splits import HoldOut
from driving_xai.evaluation.parts import FOLDER
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.models.wrap import WrappedModel
from driving_xai.training.steering import SteeringTraining, describe

MOST_SECONDS = 60.0
SCORE = ("--method", "sign-attention", "--measure", "pointing-game", "--split", "all", "--every", "12")


class Target(NamedTuple):
    """A file, and the commands that read it; paths below a folder of their own."""

    file: str
    commands: tuple[tuple[str, ...], ...]
    vouched: str = ""
    """The file with its hash; empty where nothing vouches for it."""


def _scoring(out: str, *options: str) -> tuple[str, ...]:
    return ("score", "{root}/model", "{root}/shards", *options, "-o", f"{{root}}/{out}")


REPORT = ("report", "{root}/scores", "{root}/sanity", "-o", "{root}/page.html", "--csv", "{root}/page.csv")
INFO = ("info", "{root}/scores")
EXPLAIN = ("explain", "{root}/model", "{root}/frame.png", "--method", "sign-attention", "-o", "{root}/maps")
OTHERS = "tests.robustness.fuzz_commands:network"
FOREIGN = ("explain", OTHERS, "{root}/frame.png", "--method", "gradient", "-o", "{root}/maps", "--weights")
TARGETS = (
    Target("weights.pth", ((*FOREIGN, "{root}/weights.pth"),)),
    Target("weights.safetensors", ((*FOREIGN, "{root}/weights.safetensors"),)),
    Target("model/config.json", (("info", "{root}/model"), EXPLAIN)),
    Target("model/metrics.json", (("info", "{root}/model"),)),
    Target("model/model.safetensors", (EXPLAIN,)),
    Target("scores/results.json", (INFO, REPORT)),
    Target("scores/per_frame.parquet", (INFO, REPORT), "scores/results.json"),
    Target("scores/maps.h5", (INFO, REPORT), "scores/results.json"),
    Target("sanity/sanity.json", (("info", "{root}/sanity"), REPORT)),
    Target("sanity/sanity.parquet", (("info", "{root}/sanity"), REPORT), "sanity/sanity.json"),
    Target("given.h5", (_scoring("out", "--maps", "{root}/given.h5", *SCORE[2:]),)),
    Target("masks.npz", (_scoring("out", "--masks", "{root}/masks.npz", *SCORE),)),
    Target("how.toml", (_scoring("out", "--config", "{root}/how.toml"),)),
    *(
        Target(f"begun/parts/{name}", (_scoring("begun", *SCORE, "--save-maps", "--resume"),))
        for name in ("plan.json", "part-000000.parquet", "part-000000.npz")
    ),
)


def network() -> WrappedModel:
    """Somebody's network, whose weights come from a file."""
    layers = (
        nn.Conv2d(3, 4, 3, 2),
        nn.BatchNorm2d(4),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    )
    return dx.wrap(nn.Sequential(*layers).eval(), outputs="multiclass", names=["go", "stop"], size=(32, 64))


def write_originals(root: Path) -> None:
    """One of every file, small."""
    root.mkdir(parents=True, exist_ok=True)
    weights = network().network.state_dict()
    save_file(weights, root / "weights.safetensors")
    kept = {"epoch": 3, "state_dict": {f"module.{name}": value for name, value in weights.items()}}
    torch.save(kept, root / "weights.pth")
    prepare(
        PrepConfig(
            reader="synthetic",
            source=Path("-"),
            reader_options={"seconds": 1.2},
            geometry=Geometry(height=32, width=64),
            split="test",
        ),
        root / "shards",
    )
    manifest = Manifest.load(root / "shards")
    how = SteeringTraining(
        model=SteeringConfig(hidden_size=4, height=32, width=64), held_out=HoldOut(), workers=0
    )
    torch.manual_seed(0)
    error = {"mae_deg": 1.0, "frames": 3, "mae_deg_zero": 2.0}
    checkpoint.save(root / "model", SteeringModel(how.model), describe(how, manifest), {"test": error})
    cv2.imwrite(str(root / "frame.png"), np.full((64, 128, 3), 90, np.uint8))
    score = ["score", str(root / "model"), str(root / "shards"), *SCORE]
    _must([*score, "--save-maps", "-o", str(root / "scores")])
    sanity = ["sanity", str(root / "model"), str(root / "shards"), "--method", "sign-attention"]
    _must([*sanity, "--check", "noise", "--split", "all", "--every", "12", "-o", str(root / "sanity")])
    shutil.copyfile(root / "scores" / "maps.h5", root / "given.h5")
    _rename_method(root / "given.h5")
    with (root / "masks.npz").open("wb") as file:
        np.savez(file, **{str(number): np.eye(32, 64, dtype=np.uint8) for number in range(24)})
    (root / "how.toml").write_text(
        'methods = ["sign-attention"]\nmeasures = ["pointing-game"]\nsplit = "all"\nevery = 12\nseed = 3\n'
    )
    _begin(root)


def _begin(root: Path) -> None:
    """A scoring run that was killed after its last part."""
    kept: dict[str, bytes] = {}

    def keep(path: Path) -> None:
        kept.update({file.name: file.read_bytes() for file in path.iterdir()})

    from driving_xai.evaluation import job

    original = job.Run.join
    job.Run.join = lambda self, out: (keep(out / FOLDER), original(self, out))[1]  # type: ignore[method-assign]
    try:
        _must(
            [
                "score",
                str(root / "model"),
                str(root / "shards"),
                *SCORE,
                "--save-maps",
                "-o",
                str(root / "whole"),
            ]
        )
    finally:
        job.Run.join = original  # type: ignore[method-assign]
    (root / "begun" / FOLDER).mkdir(parents=True)
    for name, data in kept.items():
        (root / "begun" / FOLDER / name).write_bytes(data)


def _rename_method(path: Path) -> None:
    import h5py

    with h5py.File(path, "r+") as file:
        file.move("maps/sign-attention", "maps/brought")


def _must(words: list[str]) -> None:
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, (words, done.output, done.exception)


Harm = Callable[[bytes, np.random.Generator, Mapping[str, bytes]], bytes]


def truncated(data: bytes, draw: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    return data[: int(draw.integers(len(data)))]


def flipped(data: bytes, draw: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    changed = bytearray(data)
    for at in draw.integers(len(data), size=int(draw.integers(1, 5))):
        changed[at] ^= 1 << int(draw.integers(8))
    return bytes(changed)


def swapped(data: bytes, draw: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    return others[sorted(others)[int(draw.integers(len(others)))]]


STRANGE: tuple[Any, ...] = (
    *(None, True, "", "x", "\ud800", -1, 0, 1, 2**31, 2**70, 1e308, -0.5, [], {}, [[]], {"a": 1}, ["x"], "3"),
    *("<b>", "../../etc/passwd", "1e300000000", [1, 2, 3], "nan"),
)


def revalued(data: bytes, draw: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """One value of a JSON file is another, is gone, or stands twice."""
    content = json.loads(data)
    place = _places(content)
    holder, key = place[int(draw.integers(len(place)))]
    what = int(draw.integers(4))
    if what == 0:
        del holder[key]
    elif what == 1 and isinstance(holder, list):
        holder.append(holder[key])
    else:
        holder[key] = STRANGE[int(draw.integers(len(STRANGE)))]
    return json.dumps(content).encode()


def _places(content: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    for key in list(content) if isinstance(content, dict) else range(len(content)):
        found.append((content, key))
        if isinstance(content[key], dict | list):
            found += _places(content[key])
    return found


def deep(data: bytes, draw: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """A value is nested so deeply, or so long a number, that readers give up."""
    text = data.decode()
    at = [place for place, sign in enumerate(text) if sign in ":="]
    start = at[int(draw.integers(len(at)))] + 1
    many = int(draw.choice([40, 60, 900, 100_000]))
    value = ("[" * many + "]" * many, "9" * 5000, "1e999", "NaN", "-Infinity", '{"a":' * many)[
        int(draw.integers(6))
    ]
    end = min(found for sign in ",}\n" if (found := text.find(sign, start)) >= 0)
    return (text[:start] + value + text[end:]).encode()


def repickled(data: bytes, draw: np.random.Generator, others: Mapping[str, bytes]) -> bytes:
    """A value of a torch file is another, of another type, shape or depth, or an object that must not be built."""
    content = torch.load(io.BytesIO(data), weights_only=True)
    strange = (
        *STRANGE,
        *(torch.zeros(0), torch.zeros(2, 3, dtype=torch.complex64), torch.full((4, 3, 3, 3), torch.nan)),
        *(torch.eye(4).to_sparse(), torch.zeros(4, dtype=torch.bool), nn.Parameter(torch.zeros(4))),
        *({1, 2}, Path("a"), np.zeros(4), np.float64(3), nn.ReLU(), print, {"state_dict": {"model": {}}}),
    )
    holder, key = (place := _places(content))[int(draw.integers(len(place)))]
    value = strange[int(draw.integers(len(strange)))]
    what = int(draw.integers(4))
    if what == 0:
        content = value
    elif what == 1:
        del holder[key]
    elif what == 2:
        holder[("model", 3, "", "ema", b"x")[int(draw.integers(5))]] = value
    else:
        holder[key] = value
    torch.save(content, written := io.BytesIO())
    return written.getvalue()


BYTES: Mapping[str, Harm] = {"truncated": truncated, "flipped": flipped, "swapped": swapped}
TEXT: Mapping[str, Harm] = {**BYTES, "revalued": revalued, "deep": deep}


def kinds_of(target: Target) -> Mapping[str, Harm]:
    """The kinds of damage that a file can take."""
    if target.file.endswith(".json"):
        return TEXT
    if target.file.endswith(".pth"):
        return {**BYTES, "repickled": repickled}
    return {**BYTES, "deep": deep} if target.file.endswith(".toml") else BYTES


@dataclass
class Report:
    """What cases came to."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[str]] = field(default_factory=dict)
    slowest_s: float = 0.0


def fuzz(originals: Path, scratch: Path, cases: int, *, seed: int, only: str = "") -> Report:
    """Runs so many cases of each kind for each target."""
    report = Report()
    others = {target.file: (originals / target.file).read_bytes() for target in TARGETS}
    for target in TARGETS:
        for kind, harm in kinds_of(target).items():
            for number in range(cases):
                case = f"{target.file} {kind} {number}"
                if only in case:
                    _one(originals, scratch, target, harm, others, case, seed, report)
    return report


def _one(
    originals: Path,
    scratch: Path,
    target: Target,
    harm: Harm,
    others: Mapping[str, bytes],
    case: str,
    seed: int,
    report: Report,
) -> None:
    draw = np.random.default_rng([seed, zlib.crc32(case.encode())])
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(originals, scratch)
    before = others[target.file]
    (scratch / target.file).write_bytes(after := harm(before, draw, others))
    rehashed = bool(target.vouched) and draw.random() < 0.5
    if rehashed:
        _rehash(scratch, target)
    for words in target.commands:
        started = time.perf_counter()
        done = CliRunner().invoke(app, [word.format(root=scratch) for word in words])
        took = time.perf_counter() - started
        report.slowest_s = max(report.slowest_s, took)
        wrong = _wrong(done, took, unseen=bool(target.vouched) and not rehashed and after != before)
        if wrong:
            report.findings.setdefault(wrong, []).append(f"{case}: {words[0]}")
        report.outcomes[f"{words[0]} exits {done.exit_code}"] += 1


def _wrong(done: Any, took: float, *, unseen: bool) -> str:
    """What must not come out; empty where all is well."""
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        trace = done.exc_info[2]
        while trace.tb_next is not None:
            trace = trace.tb_next
        where = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        return f"{type(done.exception).__name__} at {where}: {str(done.exception)[:120]}"
    if took > MOST_SECONDS:
        return "took too long"
    if done.exit_code not in (0, FAILED, USAGE, INVALID_DATA):
        return f"exit code {done.exit_code}"
    if done.exit_code and not done.stderr.splitlines()[-1].startswith("driving-xai: "):
        return f"no line: {done.stderr[-200:]}"
    return "a changed file passed unseen" if unseen and done.exit_code == 0 else ""


def _rehash(root: Path, target: Target) -> None:
    file = root / target.vouched
    content = json.loads(file.read_text())
    content["files"][Path(target.file).name] = sha256_of(root / target.file)
    file.write_text(json.dumps(content))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="cases whose name has this in it")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        (Path(name) / "originals").mkdir()
        write_originals(Path(name) / "originals")
        report = fuzz(
            Path(name) / "originals", Path(name) / "scratch", given.cases, seed=given.seed, only=given.only
        )
    print(dict(report.outcomes), f"slowest {report.slowest_s:.1f} s")
    for what, where in report.findings.items():
        print(f"{len(where):>4} {what}\n     {where[0]}")
    return 1 if report.findings else 0


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    sys.exit(main())
