"""The fenced blocks of the documents, and the changes that make their commands short."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted((ROOT / "docs" / "guides").glob("*.md")),
]

NOT_RUN = {
    "export ": "sets the environment of a store",
    "driving-xai prep udacity-csv CH2_001 s3://": "needs a store; tests/driving_xai/test_places.py",
    "driving-xai train steering s3://": "needs a store; tests/driving_xai/test_places.py",
    "driving-xai score model s3://": "needs a store; tests/driving_xai/test_places.py",
    "'first=": "a script for Slurm",
    "srun ": "a script for Slurm",
    "pip ": "changes the environment",
    "python3 -m venv new": "minutes and gigabytes; docs/development.md says how long it took",
    "new/bin/": "of that environment; the ten lines themselves run",
    "dask ": "serves until it is stopped; tests/data_prep/test_cluster.py starts these lines",
    "driving-xai prep udacity-bag /data": "needs that scheduler; tests/data_prep/test_cluster.py",
    "driving-xai demo": "minutes; tests/driving_xai/test_demo.py runs it small",
    "driving-xai replay model CH2_001 --serve": "serves until it is stopped; tests/driving_xai/replay/live",
    "driving-xai train steering shards model --devices": "two processes; tests/driving_xai/training/test_processes.py",
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 ": "several processes; tests/driving_xai/training/test_processes.py",
    "OMP_NUM_THREADS=1 python tests/robustness": "minutes; tests/robustness runs a part of it",
    "driving-xai prep lerobot my_drives shards": "needs such a data set; tests/data_prep/readers/test_lerobot.py",
}
"""Beginnings of commands that no test of documents runs, with the reason."""

_SMALL = "--set geometry.height=32 --set geometry.width=48"
MORE = {
    "prep udacity-csv": f"{_SMALL} --overwrite",
    "prep udacity-sim": _SMALL,
    "prep udacity-bag": f"{_SMALL} --smoothing 0.5 --set gap_s=0.5 --overwrite",
    "prep ros2-bag": f"{_SMALL} --smoothing 0.5 --set gap_s=0.5 --overwrite",
    "prep lerobot": f"{_SMALL} --split test --overwrite",
    "prep video": _SMALL,
    "prep csv": f"{_SMALL} --smoothing 0.5 --set gap_s=0.5 --overwrite",
    "prep synthetic": "--overwrite",
    "prep synthetic demo": "--set lead_s=0.4",
    "train steering": "--set model.height=32 --set model.width=48 --frame-epochs 1 --set window=5 --set batch_size=8 --hidden-size 8",
    "train actions": "--set epochs=1",
}
"""Options behind the first words of a command, so that it takes little data and time."""
FEWER = {
    "--epochs": "1",
    "--frame-epochs": "1",
    "--start": "9",
    "--end": "9.4",
    "--every": "90",
    "--workers": "1",
    "--engine": "serial",
    "--crop-top": "0.33",
}
"""Smaller values of options, and one crop, since one model serves all documents."""
_STREETS = "--option images=12 --option height=48 --option width=64"
_ROUTE = f"--option seconds=1 --option height=48 --option width=64 --split test {_SMALL}"


class Block(NamedTuple):
    """A fenced block."""

    language: str
    line: int
    text: str


def blocks(document: Path) -> Iterator[Block]:
    """Every fenced block of a document."""
    text = document.read_text()
    for found in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(found[1], text[: found.start()].count("\n") + 2, found[2])


def commands(block: Block) -> Iterator[str]:
    """The command lines of a block, continued lines joined, spaces single, comments gone."""
    for line in block.text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield shlex.join(words)


def reason_not_to_run(command: str) -> str | None:
    """Why a command is not run; None where it is."""
    return next((reason for start, reason in NOT_RUN.items() if command.startswith(start)), None)


def shortened(command: str) -> list[str]:
    """The words behind `driving-xai`, with less to do."""
    words = shlex.split(command)[1:]
    for place, word in enumerate(words[:-1]):
        words[place + 1] = FEWER.get(word, words[place + 1])
    joined = " ".join(words)
    for start, more in MORE.items():
        if joined.startswith(start):
            words += more.split()
    if words[:2] == ["prep", "synthetic"]:
        words += (_STREETS if "--task" in words else _ROUTE).split()
    if words[0] == "replay" and "--start" not in words and "--split" not in words:
        words += ["--start", FEWER["--start"], "--end", FEWER["--end"]]
    return [word.replace("samples=8000", "samples=20") for word in words]


def made_by(words: list[str]) -> list[Path]:
    """What a command writes and would not replace."""
    out = [words[place + 1] for place, word in enumerate(words) if word in ("-o", "--out")]
    if words[0] in ("prep", "train", "export"):
        out.append(words[3])
    return [Path(each) for each in out]
