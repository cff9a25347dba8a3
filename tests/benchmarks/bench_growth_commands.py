"""How processor time and memory of commands grow with frames and images.

    python tests/benchmarks/bench_growth_commands.py [--smallest 250]

Each command runs at three sizes, each four times the one before, in a process of its own. Pictures are tiny, so that
what grows is the command's own work; drives are one recording of so many frames, images lie in two classes.
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.data_prep.recordings import PERIOD_NS, START_NS, jpeg  # noqa: E402

_SMALL = ("--set", "geometry.height=32", "--set", "geometry.width=64")
_TRAIN = (
    *("--epochs", "1", "--frame-epochs", "1", "--hidden-size", "8", "--set", "batch_size=32"),
    *("--set", "model.height=32", "--set", "model.width=64", "--set", "window=5"),
)
_SCORE = ("--method", "sign-attention", "--split", "all", "--every", "4")


class Spent(NamedTuple):
    """What a process used."""

    seconds: float
    """Of all processors."""
    mib: float
    """The most resident."""


class Growth(NamedTuple):
    """A command at several sizes."""

    command: str
    sizes: list[int]
    spent: list[Spent]

    def row(self) -> str:
        """Of a Markdown table."""
        seconds = [each.seconds for each in self.spent]
        cells = (
            " / ".join(f"{size:,}" for size in self.sizes),
            " / ".join(f"{each:.1f}" for each in seconds),
            " / ".join(f"{each.mib:,.0f}" for each in self.spent),
            f"{math.log(seconds[-1] / seconds[-2]) / math.log(self.sizes[-1] / self.sizes[-2]):.2f}",
        )
        return f"| {self.command} | {' | '.join(cells)} |"


def write_images(folder: Path, images: int) -> None:
    """Two classes of one picture under many names."""
    data = jpeg(1, 16, 16)
    for number in range(images):
        file = folder / ("cat", "dog")[number % 2] / f"{number:07d}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)


def write_drive(folder: Path, frames: int) -> None:
    """One recording of Udacity's challenge, in which every frame shows the same."""
    data, times = jpeg(1), [START_NS + number * PERIOD_NS for number in range(frames)]
    (folder / "center").mkdir(parents=True)
    for stamp in times:
        (folder / "center" / f"{stamp}.jpg").write_bytes(data)
    rows = [f"{stamp},{0.1 * (number % 40 - 20) / 20!r},0" for number, stamp in enumerate(times)]
    (folder / "CH2_final_evaluation.csv").write_text("\n".join(["frame_id,steering_angle,public", *rows, ""]))


def run(*words: object) -> Spent:
    """Runs a command, and measures the process and those that it waits for.

    This process stays small: the most memory of one that starts another counts for that, too.
    """
    command = [sys.executable, "-m", "driving_xai", *map(str, words)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)}: {said.decode().strip()}")
    return Spent(used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)


def of_images(folder: Path, sizes: list[int]) -> Iterator[Growth]:
    """Commands that read labelled images."""
    for size in sizes:
        write_images(folder / f"raw-{size}", size)
    yield _grown(
        "prep image-folder", sizes, lambda n: ("prep", "image-folder", folder / f"raw-{n}", folder / f"{n}")
    )
    for command in ("verify", "info"):
        yield _grown(f"{command}, images", sizes, lambda n, command=command: (command, folder / f"{n}"))


def of_drives(folder: Path, sizes: list[int], trained: list[int]) -> Iterator[Growth]:
    """Commands that read drives; those that run a network on `trained` frames."""
    for size in {*sizes, *trained}:
        write_drive(folder / f"raw-{size}", size)
    prep = ("--split", "block", "--set", "gap_s=0.2", "--smoothing", "1", *_SMALL)
    yield _grown(
        "prep udacity-csv",
        sizes,
        lambda n: ("prep", "udacity-csv", folder / f"raw-{n}", folder / f"{n}", *prep),
    )
    for command in ("verify", "info"):
        yield _grown(f"{command}, drives", sizes, lambda n, command=command: (command, folder / f"{n}"))
    for size in {*trained} - {*sizes}:
        run("prep", "udacity-csv", folder / f"raw-{size}", folder / f"{size}", *prep)
    model = folder / f"model-{trained[0]}"
    yield _grown(
        "train steering",
        trained,
        lambda n: ("train", "steering", folder / f"{n}", folder / f"model-{n}", *_TRAIN),
    )
    yield _grown(
        "score", trained, lambda n: ("score", model, folder / f"{n}", *_SCORE, "-o", folder / f"scores-{n}")
    )
    yield _grown("report", trained, lambda n: ("report", folder / f"scores-{n}", "-o", folder / f"{n}.html"))
    yield _grown(
        "replay --no-score",
        trained,
        lambda n: (
            "replay",
            model,
            folder / f"{n}",
            "--no-score",
            "--split",
            "all",
            "-o",
            folder / f"{n}.mp4",
        ),
    )


def _grown(command: str, sizes: list[int], words: Callable[[int], tuple[object, ...]]) -> Growth:
    return Growth(command, sizes, [run(*words(size)) for size in sizes])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--smallest", type=int, default=250, help="frames that a network sees")
    parser.add_argument("--only", choices=("images", "drives"), help="of these only")
    given = parser.parse_args()
    few = [given.smallest * 4**step for step in range(3)]
    print(
        "| command | sizes | processor, s | most resident, MiB | exponent of the last step |\n|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as scratch:
        if given.only != "drives":
            for growth in of_images(Path(scratch) / "images", [10 * size for size in few]):
                print(growth.row(), flush=True)
        if given.only != "images":
            for growth in of_drives(Path(scratch) / "drives", [4 * size for size in few], few):
                print(growth.row(), flush=True)


if __name__ == "__main__":
    main()
