"""How fast recordings become shards, beside what decoding alone reaches on the same machine in the same run.

    python tests/benchmarks/bench_prep.py [--frames 2000] [--rounds 5]

Real 640x480 JPEG frames of Udacity's CH2_001 in ../shared/data, repeated under new times, to 80x160 HDF5 of the
lower two thirds. Rounds are interleaved, and every ratio is taken within a round. Time is that of the clock and,
because other work may run beside, processor time of all threads and worker processes together.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import cv2
import h5py
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from data_prep.geometry import Geometry, decode_jpeg  # noqa: E402
from data_prep.prepare import PrepConfig, prepare  # noqa: E402
from data_prep.shards.hdf5 import read_frames  # noqa: E402
from data_prep.shards.manifest import Manifest  # noqa: E402
from tests.data_prep.readers.bag_writer import START_NS, camera, steering, write_bag  # noqa: E402

DRIVE = ROOT.parent / "shared" / "data" / "udacity_ch2_001_640x480"
GEOMETRY = Geometry(crop_top=1 / 3)
PERIOD_NS = 50_000_001
CORES = len(os.sched_getaffinity(0))


class Spent(NamedTuple):
    """What one run took."""

    wall_s: float
    processor_s: float


@dataclass(frozen=True, kw_only=True)
class Work:
    """Something to time, and how many frames it makes."""

    run: Callable[[], object]
    frames: int


def jpegs(count: int, folder: Path = DRIVE) -> list[bytes]:
    """So many frames of a drive, repeated where it has fewer."""
    real = [path.read_bytes() for path in sorted((folder / "center").glob("*.jpg"))]
    return [real[k % len(real)] for k in range(count)]


def write_challenge(folder: Path, frames: list[bytes]) -> Path:
    (folder / "center").mkdir(parents=True)
    stamps = [START_NS + k * PERIOD_NS for k in range(len(frames))]
    for stamp, data in zip(stamps, frames, strict=True):
        (folder / "center" / f"{stamp}.jpg").write_bytes(data)
    rows = [f"{stamp},{float(0.1 * np.sin(k / 50))!r},0" for k, stamp in enumerate(stamps)]
    (folder / "evaluation.csv").write_text("\n".join(["frame_id,steering_angle,public", *rows]) + "\n")
    return folder


def write_camera_bag(path: Path, frames: list[bytes], compression: str) -> Path:
    messages = [camera(START_NS + k * PERIOD_NS, data) for k, data in enumerate(frames)]
    messages += [steering(START_NS + k * 20_000_000, 0.01) for k in range(-2, len(frames) * 5 // 2 + 4)]
    return write_bag(path, sorted(messages, key=lambda m: m.receive_ns), compression=compression)


def decode(frames: list[bytes], threads: int) -> None:
    """Nothing but `cv2.imdecode`, of bytes that lie in memory; 0 threads is the main thread."""

    def some(part: list[bytes]) -> None:
        for data in part:
            cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)

    if threads == 0:
        some(frames)
        return
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(some, [frames[k : k + 20] for k in range(0, len(frames), 20)]))


def prepared(
    reader: str, source: Path, out: Path, *, engine: str, workers: int, reduced: int = 1
) -> Manifest:
    config = PrepConfig(
        reader=reader,
        source=source,
        geometry=GEOMETRY,
        reader_options={"reduced": reduced},
        split="train",
        frames_per_shard=500,
    )
    return prepare(config, out, engine=engine, workers=workers)  # type: ignore[arg-type]


def spent(work: Work, out: Path) -> Spent:
    def processor_s() -> float:
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(each.ru_utime + each.ru_stime for each in used)

    shutil.rmtree(out, ignore_errors=True)
    wall, processor = time.perf_counter(), processor_s()
    work.run()
    return Spent(time.perf_counter() - wall, processor_s() - processor)


def works(folder: Path, frames: list[bytes]) -> dict[str, Work]:
    """Every case, on these frames."""
    count = len(frames)
    drive = write_challenge(folder / "drive", frames)
    fewer = frames[: max(count // 4, 1)]
    bags = {kind: write_camera_bag(folder / f"{kind}.bag", fewer, kind) for kind in ("none", "lz4", "bz2")}
    out = folder / "out"

    def csv(engine: str, workers: int, reduced: int = 1) -> Work:
        run = partial(prepared, "udacity-csv", drive, out, engine=engine, workers=workers, reduced=reduced)
        return Work(run=run, frames=count)

    def bag(kind: str) -> Work:
        run = partial(prepared, "udacity-bag", bags[kind], out, engine="serial", workers=CORES)
        return Work(run=run, frames=len(fewer))

    return {
        "imdecode, main thread": Work(run=partial(decode, frames, 0), frames=count),
        "imdecode, one thread": Work(run=partial(decode, frames, 1), frames=count),
        f"imdecode, {CORES} threads": Work(run=partial(decode, frames, CORES), frames=count),
        "prep, 1 thread": csv("serial", 1),
        f"prep, {CORES} threads": csv("serial", CORES),
        "prep, 1 process": csv("processes", 1),
        f"prep, {CORES} processes": csv("processes", CORES),
        f"prep, {CORES} threads, reduced": csv("serial", CORES, 2),
        **{f"prep of a bag, {kind}": bag(kind) for kind in bags},
    }


RATIOS: Mapping[str, tuple[str, str]] = {
    "prep to decoding, all cores": (f"prep, {CORES} threads", f"imdecode, {CORES} threads"),
    "prep to decoding in the main thread": ("prep, 1 thread", "imdecode, main thread"),
    "bag to decoding, all cores": ("prep of a bag, none", f"imdecode, {CORES} threads"),
    "lz4 bag to decoding, all cores": ("prep of a bag, lz4", f"imdecode, {CORES} threads"),
    "two threads to one": (f"prep, {CORES} threads", "prep, 1 thread"),
    "two processes to one": (f"prep, {CORES} processes", "prep, 1 process"),
    "decoding, two threads to one": (f"imdecode, {CORES} threads", "imdecode, one thread"),
    "reduced to exact": (f"prep, {CORES} threads, reduced", f"prep, {CORES} threads"),
}


def measure(folder: Path, frames: list[bytes], *, rounds: int) -> dict[str, float]:
    """Prints everything; returns the ratios by the clock."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    names = [line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")]
    print(
        f"{names[0] if names else platform.machine()}, {CORES} cores, OpenCV {cv2.__version__}, "
        f"h5py {h5py.__version__}, load {os.getloadavg()[0]:.1f} before"
    )
    chosen = works(folder, frames)
    found: dict[str, list[Spent]] = {name: [] for name in chosen}
    for _ in range(rounds):
        for name, work in chosen.items():
            found[name].append(spent(work, folder / "out"))
    for name, work in chosen.items():
        rates = sorted(work.frames / each.wall_s for each in found[name])
        processor = statistics.median(each.processor_s / work.frames for each in found[name])
        print(
            f"{name:32} {statistics.median(rates):7.0f} frames/s ({rates[0]:.0f} to {rates[-1]:.0f}), "
            f"{1e6 * processor:6.0f} us of processor a frame"
        )
    ratios = {}
    for title, (one, other) in RATIOS.items():
        per_round = [
            (chosen[one].frames / a.wall_s) / (chosen[other].frames / b.wall_s)
            for a, b in zip(found[one], found[other], strict=True)
        ]
        by_processor = [
            (b.processor_s / chosen[other].frames) / (a.processor_s / chosen[one].frames)
            for a, b in zip(found[one], found[other], strict=True)
        ]
        ratios[title] = statistics.median(per_round)
        print(
            f"{title:36} {ratios[title]:5.2f} by the clock ({min(per_round):.2f} to {max(per_round):.2f}), "
            f"{statistics.median(by_processor):5.2f} by processor time"
        )
    print(f"load {os.getloadavg()[0]:.1f} behind")
    return ratios


def check_pixels(folder: Path, frames: list[bytes]) -> None:
    """Every pixel is that of `cv2.imdecode` and `cv2.resize` by area; of `reduced` the error is stated."""
    source = write_challenge(folder / "exact", frames)
    errors = []
    for reduced in (1, 2):
        shutil.rmtree(folder / "out", ignore_errors=True)
        manifest = prepared(
            "udacity-csv", source, folder / "out", engine="serial", workers=CORES, reduced=reduced
        )
        stored = np.concatenate([read_frames(folder / "out" / s.path, 0, s.rows) for s in manifest.shards])
        expected = np.stack(
            [cv2.resize(decode_jpeg(data)[160:], (160, 80), interpolation=cv2.INTER_AREA) for data in frames]
        )
        difference = np.abs(stored.astype(int) - expected)
        errors.append(int(difference.max()))
        print(f"reduced={reduced}: {difference.mean():.3f} levels off on average, {difference.max()} at most")
    assert errors[0] == 0


def resident_mib(folder: Path, frames: list[bytes]) -> float:
    """The most memory that a preparation in a process of its own holds."""
    source = write_challenge(folder / f"long{len(frames)}", frames)
    shutil.rmtree(folder / "out", ignore_errors=True)
    command = [sys.executable, __file__, "--once", str(source), str(folder / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    shutil.rmtree(source)
    return float(done.stdout)


def once(source: Path, out: Path) -> None:
    prepared("udacity-csv", source, out, engine="serial", workers=CORES)
    # Not ru_maxrss, which begins with what the parent held.
    status = Path("/proc/self/status").read_text()
    print(next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")))


@pytest.fixture
def drawn(tmp_path: Path) -> list[bytes]:
    """A few frames of the real size, smooth as photographs are."""
    draw = np.random.default_rng(0)
    (tmp_path / "source" / "center").mkdir(parents=True)
    for number in range(8):
        picture = cv2.resize(draw.integers(0, 256, (12, 16, 3)).astype(np.uint8), (640, 480))
        cv2.imwrite(str(tmp_path / "source" / "center" / f"{number}.jpg"), picture)
    return jpegs(12, tmp_path / "source")


def test_every_case_runs_on_a_few_frames(tmp_path: Path, drawn: list[bytes]) -> None:
    check_pixels(tmp_path, drawn)
    assert measure(tmp_path, drawn, rounds=1).keys() == RATIOS.keys()
    assert resident_mib(tmp_path, drawn) > 1


@pytest.mark.bench
def test_prep_keeps_up_with_decoding(tmp_path: Path) -> None:
    if not DRIVE.is_dir():
        pytest.skip("needs the real driving data in ../shared/data")
    check_pixels(tmp_path, jpegs(400))
    ratios = measure(tmp_path, jpegs(1000), rounds=3)
    assert ratios["prep to decoding, all cores"] > 0.6, "0.85 is the goal on a quiet machine"
    short, long = (resident_mib(tmp_path, jpegs(count)) for count in (1000, 10_000))
    print(f"resident: {short:.0f} MiB for 1,000 frames, {long:.0f} MiB for 10,000")
    assert long < 1.2 * short


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--frames", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", nargs=2, type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.once:
        once(*given.once)
        return
    if not DRIVE.is_dir():
        raise SystemExit(f"{DRIVE} is absent; nothing to measure")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        check_pixels(folder, jpegs(400))
        measure(folder, jpegs(given.frames), rounds=given.rounds)
        for frames in (given.frames, 10 * given.frames):
            print(f"resident with {frames:,} frames: {resident_mib(folder, jpegs(frames)):.0f} MiB")


if __name__ == "__main__":
    main()
