"""Feeds damaged recordings to every reader: each must be read, or refused with one line.

Every second case is prepared into shards, which must agree with themselves: `verify` finds nothing, each
frame that was read is kept or counted, times rise, and no control is one that no car has.

Run as `python tests/robustness/fuzz_readers.py --cases 2000 --seed 0`. Every case is a pure
function of (seed, number), so a finding is repeated with `--only NUMBER`. Exit code 1 where
anything but `DataError` came out, a message had more than one line, or a case took too long.
"""

from __future__ import annotations

import argparse
import faulthandler
import json
import re
import shutil
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_prep.errors import DataError
from data_prep.geometry import read_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import read, recognise
from data_prep.schema import Drive, ImageSet
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import read_index
from data_prep.shards.verify import verify
from data_prep.signals import MOST_SPEED_MPS, MOST_STEERING_RAD
from tests.data_prep.readers import test_donkeycar as donkeycar
from tests.data_prep.readers import test_lerobot as lerobot
from tests.data_prep.readers import test_ros2_bag as ros2
from tests.data_prep.readers.bag_writer import COMPRESSIONS, generated_jpegs, short_drive, write_bag

MOST_SECONDS = 10.0
MOST_CHARACTERS = 600
START_NS = 1_479_425_440_000_000_000
MOST = {
    "steering_wheel_rad": MOST_STEERING_RAD,
    "steering_wheel_rad_smoothed": MOST_STEERING_RAD,
    "speed_mps": MOST_SPEED_MPS,
    "speed_mps_smoothed": MOST_SPEED_MPS,
    "inverse_turning_radius": MOST_STEERING_RAD,
}


class Seed(NamedTuple):
    """A whole recording, and which of its files is damaged how."""

    reader: str
    write: Callable[[Path], None]
    """Writes the recording into an empty folder."""
    damaged: str
    """The file, below that folder."""
    is_text: bool
    options: dict


def write_files(folder: Path, names: list[str]) -> None:
    for name, jpeg in zip(names, generated_jpegs(len(names), height=16, width=16), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(jpeg)


def write_interpolated(folder: Path) -> None:
    stamps = [START_NS + 50_000_000 * k for k in range(12)]
    write_files(folder, [f"center/{stamp}.jpg" for stamp in stamps])
    rows = [
        f"{k},{stamp},640,480,center_camera,center/{stamp}.jpg,{0.01 * k:.6f},0.1,{10 + k:.3f},37.4,-122.1,9.0"
        for k, stamp in enumerate(stamps)
    ]
    header = "index,timestamp,width,height,frame_id,filename,angle,torque,speed,lat,long,alt"
    (folder / "interpolated.csv").write_text("\n".join([header, *rows]) + "\n")


def write_challenge(folder: Path) -> None:
    stamps = [START_NS + 50_000_000 * k for k in range(12)]
    write_files(folder, [f"center/{stamp}.jpg" for stamp in stamps])
    rows = [f"{stamp},{0.01 * k:.8f},Public" for k, stamp in enumerate(stamps)]
    (folder / "evaluation.csv").write_text("\n".join(["frame_id,steering_angle,public", *rows]) + "\n")


def write_simulator(folder: Path) -> None:
    names = [f"2018_07_19_21_36_37_{100 + 60 * k:03d}.jpg" for k in range(12)]
    write_files(folder, [f"IMG/{side}_{name}" for side in ("center", "left", "right") for name in names])
    rows = [
        ", ".join(f"C:\\log\\IMG\\{side}_{name}" for side in ("center", "left", "right"))
        + f", {0.05 * k:.3f}, 0.5, 0, {20 + k:.2f}"
        for k, name in enumerate(names)
    ]
    (folder / "driving_log.csv").write_text("\n".join(rows) + "\n")


def write_official(folder: Path) -> None:
    names = [f"video{k}_{k}.jpg" for k in range(6)]
    write_files(folder / "data", names)
    content = {
        "images": [{"id": k, "file_name": name} for k, name in enumerate(names)],
        "annotations": [{"id": k, "category": [1, 0, k % 2, 0, 0]} for k in range(len(names))],
    }
    (folder / "train_25k_images_actions.json").write_text(json.dumps(content))
    reasons = [{"file_name": name, "reason": [0] * 21} for name in names]
    (folder / "train_25k_images_reasons.json").write_text(json.dumps(reasons))


def write_snna(folder: Path) -> None:
    names = [f"video{k}_{k}.jpg" for k in range(6)]
    write_files(folder / "data", names)
    (folder / "train.json").write_text(json.dumps({name: [1, 0, 0, k % 2] for k, name in enumerate(names)}))


def write_classes(folder: Path) -> None:
    write_files(folder, ["cat/0.jpg", "cat/1.jpg", "dog/0.jpg", "dog/1.jpg"])


def encode_video(path: Path, codec: str, kind: str) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    with av.open(str(path), "w", format=kind) as container:
        stream = container.add_stream(codec, rate=20, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in range(8):
            image = np.full((48, 64, 3), 30 * level, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())


def write_comma(folder: Path) -> None:
    segment = folder / "route" / "0"
    times, samples = 100 + np.arange(8) / 20, 100 + np.arange(-10, 60) / 100
    arrays = {
        "global_pose/frame_times": times,
        "processed_log/CAN/steering_angle/t": samples,
        "processed_log/CAN/steering_angle/value": np.sin(samples),
        "processed_log/CAN/speed/t": samples,
        "processed_log/CAN/speed/value": 20 + np.cos(samples)[:, None],
    }
    for name, array in arrays.items():
        (segment / name).parent.mkdir(parents=True, exist_ok=True)
        with (segment / name).open("wb") as file:
            np.save(file, array)
    encode_video(segment / "video.hevc", "libx265", "hevc")


def write_video(folder: Path) -> None:
    encode_video(folder / "drive.mp4", "libx264", "mp4")


def bag_writer(compression: str) -> Callable[[Path], None]:
    jpegs = generated_jpegs(6, height=16, width=16)
    return lambda folder: void(
        write_bag(folder / "a.bag", short_drive(jpegs), compression=compression, chunk_bytes=3000)
    )


def ros2_writer(plugin: str) -> Callable[[Path], None]:
    return lambda folder: void(ros2.bag(folder / "bag", frames=6, plugin=plugin))


def tub_writer(write: Callable[..., object]) -> Callable[[Path], None]:
    return lambda folder: void(write(folder / "tub", [0.1 * number for number in range(8)]))


def void(_: object) -> None:
    """For a lambda that must give nothing."""


NAMED = {"time": "timestamp", "steering": "angle", "speed": "speed"}
WHEEL = {"steering": "observation.state:wheel"}
SEEDS = [
    Seed("udacity-csv", write_interpolated, "interpolated.csv", True, {}),
    Seed("udacity-csv", write_challenge, "evaluation.csv", True, {}),
    Seed("udacity-sim", write_simulator, "driving_log.csv", True, {}),
    Seed("bdd-oia", write_official, "train_25k_images_actions.json", True, {}),
    Seed("bdd-oia", write_official, "train_25k_images_reasons.json", True, {"labels": "actions-and-reasons"}),
    Seed("bdd-oia", write_snna, "train.json", True, {"layout": "snna"}),
    *(Seed("udacity-bag", bag_writer(kind), "a.bag", False, {}) for kind in COMPRESSIONS),
    Seed("comma2k19", write_comma, "route/0/global_pose/frame_times", False, {}),
    Seed("comma2k19", write_comma, "route/0/processed_log/CAN/speed/value", False, {}),
    Seed("comma2k19", write_comma, "route/0/video.hevc", False, {}),
    Seed("image-folder", write_classes, "cat/0.jpg", False, {}),
    Seed("video", write_video, "drive.mp4", False, {}),
    Seed("csv", write_interpolated, "interpolated.csv", True, NAMED),
    *(
        Seed("donkeycar", tub_writer(donkeycar.tub_v2), f"tub/{file}", True, {})
        for file in ("catalog_0.catalog", "manifest.json")
    ),
    Seed("donkeycar", tub_writer(donkeycar.tub_v1), "tub/record_3.json", True, {}),
    *(
        Seed("lerobot", lerobot.v2, file, is_text, WHEEL)
        for file, is_text in (
            ("meta/info.json", True),
            ("meta/episodes.jsonl", True),
            ("data/chunk-000/episode_000001.parquet", False),
        )
    ),
    *(
        Seed("lerobot", lerobot.v3, file, False, WHEEL)
        for file in ("meta/episodes/chunk-000/file-000.parquet", "data/chunk-000/file-000.parquet")
    ),
    *(
        Seed("ros2-bag", ros2_writer(plugin), file, is_text, ros2.OPTIONS)
        for plugin, file, is_text in (
            ("mcap", "bag/bag.mcap", False),
            ("mcap", "bag/metadata.yaml", True),
            ("sqlite", "bag/bag.db3", False),
        )
    ),
]

WORDS = [
    "nan", "inf", "-inf", "1e400", "-0", "9" * 400, "99999999999999999999", "1479425440000000000.0", "1.4794e18",
    "", " ", "\0", "\ufeff", '"', "'", ",", ",,,,", "\r", "\n\n", ";", "\t", "null", "true", "[]", "{}", "[[[[", "]]}",
    "../../etc/passwd", "/etc/passwd", "C:\\x.jpg", "..", ".", "a" * 5000, "\u202e", "\\ud800", "-1", "2", "0x10",
    "1_000", "center_camera", "1970", "\x1a", "é",
]  # fmt: skip


def damaged_text(data: bytes, generator: np.random.Generator) -> bytes:
    """Up to four cells, lines or pieces replaced, doubled, dropped or swapped."""
    text = data.decode()
    for _ in range(int(generator.integers(1, 5))):
        pieces = re.split(r"([,\n:\[\]{}]+)", text)
        at, other = (int(k) for k in generator.integers(0, len(pieces), 2))
        match int(generator.integers(6)):
            case 0:
                pieces[at] = WORDS[int(generator.integers(len(WORDS)))]
            case 1:
                pieces[at] += WORDS[int(generator.integers(len(WORDS)))]
            case 2:
                pieces[at], pieces[other] = pieces[other], pieces[at]
            case 3:
                pieces[at : at + int(generator.integers(1, 30))] = []
            case 4:
                start, stop = sorted((at, other))
                pieces[start:start] = pieces[start : min(stop, start + 40)]
            case _:
                return damaged_bytes("".join(pieces).encode("utf-8", "surrogatepass"), generator)
        text = "".join(pieces)
    return text.encode("utf-8", "surrogatepass")


def damaged_bytes(data: bytes, generator: np.random.Generator) -> bytes:
    """Up to four cuts, flips, lengths, or doubled or dropped pieces."""
    for _ in range(int(generator.integers(1, 5))):
        at = int(generator.integers(0, max(len(data), 1)))
        length = int(generator.integers(1, 64))
        match int(generator.integers(6)):
            case 0:
                data = data[:at]
            case 1:
                flipped = bytes(b ^ (1 << int(generator.integers(8))) for b in data[at : at + 1])
                data = data[:at] + flipped + data[at + 1 :]
            case 2:
                number = int(generator.choice([0, 1, 127, 255, 2**16, 2**31 - 1, 2**31, 2**32 - 1]))
                data = data[:at] + number.to_bytes(4, "little") + data[at + 4 :]
            case 3:
                data = data[:at] + generator.bytes(length) + data[at + length :]
            case 4:
                data = data[:at] + data[at : at + length] * 3 + data[at + length :]
            case _:
                data = data[:at] + data[at + length :]
    return data


class TooLongError(BaseException):
    """Raised into a case by the clock; no reader may catch it."""


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TooLongError

    previous = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    # C code does not see the alarm: this one ends the process and says where it was.
    faulthandler.dump_traceback_later(6 * seconds, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        signal.signal(signal.SIGALRM, previous)


def run(seed: Seed, source: Path, out: Path, *, whole: bool) -> str:
    """Reads the recording, all its images, and with `whole` prepares it; says what came out."""
    try:
        void(recognise(source))
    except DataError as fault:
        one_line(fault)
    try:
        if whole:
            split = None if seed.reader in ("bdd-oia", "image-folder") else "test"
            config = PrepConfig(reader=seed.reader, source=source, reader_options=seed.options, split=split)
            agree(out, prepare(config, out))
            return "prepared"
        found = read(seed.reader, source, seed.options)
    except DataError as fault:
        one_line(fault)
        return "refused"
    outcome = "read"
    for image in images_of(found):
        try:
            image()
        except DataError as fault:
            one_line(fault)
            outcome = "read in part"
    return outcome


def images_of(found: ImageSet | list[Drive]) -> Iterator[Callable[[], object]]:
    """Reads one image each."""
    if isinstance(found, ImageSet):
        yield from (partial(read_image, item.path) for item in found.items)
        return
    for drive in found:
        for row in range(len(drive)):
            yield lambda drive=drive, row=row: next(drive.images.read(row, row + 1))


def agree(out: Path, manifest: Manifest) -> None:
    """Raises AssertionError where an output contradicts itself or holds what cannot be."""
    found = verify(out)
    assert found.ok, found.problems
    for report in manifest.quality.values():
        assert report["read"] == report["kept"] + sum(report["dropped"].values()), report
    index = read_index(out)
    assert len(index) == manifest.rows == sum(report["kept"] for report in manifest.quality.values())
    if manifest.kind == "images":
        return
    for _, rows in index.groupby("drive"):
        assert (np.diff(rows["time_ns"]) > 0).all()
    for column, most in MOST.items():
        values = index[column].to_numpy()
        assert (np.isnan(values) | (np.abs(values) <= most)).all(), column


def one_line(fault: DataError) -> None:
    message = str(fault)
    if "\n" in message or len(message) > MOST_CHARACTERS:
        raise AssertionError(
            f"an error is {len(message)} characters long or more than a line: {message[:300]!r}"
        )


@dataclass
class Report:
    """What came out of many cases."""

    outcomes: Counter[str] = field(default_factory=Counter)
    findings: dict[str, list[int]] = field(default_factory=dict)
    """What went wrong, to the numbers of the cases in which it did."""
    slowest_s: float = 0.0
    slowest_case: int = -1

    def print(self) -> None:
        for outcome, count in sorted(self.outcomes.items()):
            print(f"{count:6d}  {outcome}")
        print(f"slowest: case {self.slowest_case}, {self.slowest_s:.2f} s")
        for finding, cases in sorted(self.findings.items()):
            print(f"FOUND {finding!r} in {len(cases)} cases, first {cases[:5]}")


def fuzz(numbers: Iterable[int], *, base: int, readers: Sequence[str] = ()) -> Report:
    """Runs the cases by number.

    Args:
        numbers: of the cases.
        base: the seed of them all.
        readers: the readers to try; none means all.
    """
    seeds = [seed for seed in SEEDS if not readers or seed.reader in readers]
    report = Report()
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("error")
        originals = [Path(name) / f"original{position}" for position in range(len(seeds))]
        for seed, folder in zip(seeds, originals, strict=True):
            folder.mkdir()
            seed.write(folder)
        for number in numbers:
            which = number % len(seeds)
            start = time.perf_counter()
            try:
                whole = number // len(seeds) % 2 == 0
                outcome = check(number, base, seeds[which], originals[which], Path(name), whole=whole)
                report.outcomes[f"{seeds[which].reader}: {outcome}"] += 1
            except (Exception, TooLongError) as error:
                report.findings.setdefault(f"{seeds[which].reader} {described(error)}", []).append(number)
            took = time.perf_counter() - start
            if took > report.slowest_s:
                report.slowest_s, report.slowest_case = took, number
    return report


def check(number: int, base: int, seed: Seed, original: Path, scratch: Path, *, whole: bool) -> str:
    """One case: a copy of a whole recording, one file of it damaged."""
    generator = np.random.default_rng([base, number])
    source, out = scratch / "source", scratch / "out"
    for folder in (source, out):
        shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(original, source)
    path = source / seed.damaged
    damage = damaged_text if seed.is_text else damaged_bytes
    path.write_bytes(damage(path.read_bytes(), generator))
    with time_limit(MOST_SECONDS):
        return run(seed, source, out, whole=whole)


def described(error: BaseException) -> str:
    where = traceback.extract_tb(error.__traceback__)[-1]
    return f"{type(error).__name__} at {Path(where.filename).name}:{where.lineno}: {str(error)[:160]}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--reader", action="append", default=[], help="repeatable; all unless given")
    parser.add_argument("--only", type=int, help="run one case again, with the same --seed and --reader")
    arguments = parser.parse_args()
    numbers = range(arguments.cases) if arguments.only is None else [arguments.only]
    report = fuzz(numbers, base=arguments.seed, readers=arguments.reader)
    report.print()
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
