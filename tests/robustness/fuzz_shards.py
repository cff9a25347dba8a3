"""Feeds damaged outputs to `verify` and to everything that reads shards.

Run as `python tests/robustness/fuzz_shards.py --cases 2000 --seed 0`. Every case damages one file of a
whole output: an HDF5 shard, a Parquet shard of images, an index, or the manifest. In every second case
the manifest is given the damaged file's hash, so that `verify` cannot stop at the hash. Then

- `verify` and the readers give a result or one line of `DataError`;
- a changed file that the manifest's hash does not fit is named by `verify`;
- what a reader gives has the rows, shapes and types that were asked for;
- no case takes over `MOST_SECONDS`, or over `MOST_BYTES` more memory than the process had.

Cases run in a process of their own, because C libraries may end or stop theirs; that is a finding
too. A case is a pure function of (seed, number): `--only NUMBER` repeats it.
"""

from __future__ import annotations

import argparse
import json
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data_prep.errors import DataError
from data_prep.geometry import Geometry
from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.hdf5 import COLUMNS, read_attributes, read_causes, read_columns, read_frames
from data_prep.shards.manifest import FILE_NAME, Manifest, ShardEntry
from data_prep.shards.parquet import INDEX_NAME, SEQUENCE_INDEX, read_images, read_index
from data_prep.shards.verify import verify
from tests.robustness.fuzz_readers import (
    Report,
    damaged_bytes,
    damaged_text,
    described,
    one_line,
    write_classes,
    write_interpolated,
)

MOST_SECONDS = 10.0
STARTING_S = 60.0
"""More, for the first case of a process, which imports first."""
MOST_BYTES = 256 * 2**20
ROWS = 12


class Target(NamedTuple):
    """One file of a whole output."""

    output: str
    damaged: str
    """Its path below the output."""


# HDF5 has the most to get wrong, and its shard with causes the most objects.
TARGETS = [
    Target("plain", "shards/source-00000.h5"),
    Target("causes", "shards/synthetic-0-0-00000.h5"),
    Target("classes", "shards/source-00000.parquet"),
    Target("causes", "shards/synthetic-0-0-00000.h5"),
    Target("plain", INDEX_NAME),
    Target("classes", INDEX_NAME),
    Target("plain", FILE_NAME),
    Target("classes", FILE_NAME),
]


def write_outputs(root: Path) -> None:
    """Three small outputs: little but the formats' own structure is there to be damaged."""
    geometry = Geometry(height=4, width=8)
    for name, write in (("plain", write_interpolated), ("classes", write_classes)):
        source = root / name / "source"
        source.mkdir(parents=True)
        write(source)
    settings = {
        "plain": PrepConfig(
            reader="udacity-csv", source=root / "plain" / "source", geometry=geometry, split="test"
        ),
        "classes": PrepConfig(reader="image-folder", source=root / "classes" / "source"),
        "causes": PrepConfig(
            reader="synthetic",
            source=Path("-"),
            reader_options={"seconds": ROWS / 20},
            geometry=geometry,
            split="test",
        ),
    }
    for name, config in settings.items():
        prepare(config, root / name / "out")


def damage(root: Path, target: Target, generator: np.random.Generator, *, rehash: bool) -> bool:
    """Damages the target in place; whether its bytes changed."""
    path = root / target.damaged
    before = path.read_bytes()
    is_text = target.damaged == FILE_NAME
    harm = damaged_text if is_text else nudged_bytes if generator.random() < 0.7 else damaged_bytes
    after = harm(before, generator)
    if rehash and not is_text:
        manifest = Manifest.load(root)
        path.write_bytes(after)
        manifest = replace(
            manifest,
            index=[rehashed(root, entry, target) for entry in manifest.index],
            shards=[rehashed(root, entry, target) for entry in manifest.shards],
        )
        manifest.save(root)
    else:
        path.write_bytes(after)
    return before != after


def nudged_bytes(data: bytes, generator: np.random.Generator) -> bytes:
    """One to three bits or numbers changed in place: the file still opens, and lies."""
    changed = bytearray(data)
    for _ in range(int(generator.integers(1, 4))):
        at = int(generator.integers(len(data)))
        if generator.random() < 0.5:
            changed[at] ^= 1 << int(generator.integers(8))
            continue
        width = int(generator.choice([1, 2, 4, 8]))
        number = int(generator.choice([0, 1, 2**width, 2 ** (4 * width), 2 ** (8 * width) - 1]))
        changed[at : at + width] = min(number, 2 ** (8 * width) - 1).to_bytes(width, "little")
    return bytes(changed[: len(data)])


def rehashed(root: Path, entry: ShardEntry, target: Target) -> ShardEntry:
    if entry.path != target.damaged:
        return entry
    return ShardEntry.of(root, entry.path, rows=entry.rows, drive=entry.drive, dropped=entry.dropped)


def check(number: int, base: int, originals: Path, scratch: Path) -> str:
    """One case; says what came out, or raises what must not come out."""
    generator = np.random.default_rng([base, number])
    target = TARGETS[number % len(TARGETS)]
    rehash = number // len(TARGETS) % 2 == 1
    shutil.rmtree(scratch, ignore_errors=True)
    shutil.copytree(originals / target.output / "out", scratch)
    is_changed = damage(scratch, target, generator, rehash=rehash)
    named = verified(scratch)
    if is_changed and not rehash and target.damaged != FILE_NAME and target.damaged not in (named or ()):
        raise AssertionError(f"verify named {named}, not the damaged {target.damaged}")
    outcome = "read" if all([*reads(scratch, target)]) else "refused"
    what = "manifest" if target.damaged == FILE_NAME else Path(target.damaged).suffix[1:]
    return f"{what}{' with the right hash' if rehash and what != 'manifest' else ''}: {outcome}"


def verified(root: Path) -> set[str] | None:
    """The files that `verify` finds fault with; None where it refuses the manifest."""
    try:
        report = verify(root)
    except DataError as fault:
        one_line(fault)
        return None
    for problem in report.problems:
        one_line(DataError(problem.what))
    return {problem.path for problem in report.problems}


def reads(root: Path, target: Target) -> Iterator[bool]:
    """Tries every reader that the damaged file concerns; whether each gave a result."""
    path = root / target.damaged
    if target.damaged == FILE_NAME:
        yield given(lambda: Manifest.load(root).to_bytes())
    elif target.damaged == INDEX_NAME:
        yield given(lambda: check_index(root, target))
    elif path.suffix == ".parquet":
        yield given(lambda: check_images(path))
    else:
        yield given(lambda: check_frames(path))
        yield given(lambda: check_columns(path))
        yield given(lambda: read_attributes(path))
        if target.output == "causes":
            yield given(lambda: check_causes(path))


def given(read: Callable[[], object]) -> bool:
    try:
        read()
    except DataError as fault:
        one_line(fault)
        return False
    return True


def check_frames(path: Path) -> None:
    for start, stop in ((0, ROWS), (3, 7)):
        frames = read_frames(path, start, stop)
        assert frames.dtype == np.uint8, frames.dtype
        assert (len(frames), frames.ndim, frames.shape[-1]) == (stop - start, 4, 3), frames.shape


def check_causes(path: Path) -> None:
    causes = read_causes(path, 0, ROWS)
    assert causes.dtype == bool, causes.dtype
    assert (len(causes), causes.ndim) == (ROWS, 3), causes.shape


def check_columns(path: Path) -> None:
    columns = read_columns(path)
    assert {name: values.dtype for name, values in columns.items()} == dict(COLUMNS), "another type"
    assert len({values.shape for values in columns.values()}) == 1, "another number of rows"
    assert columns["time_ns"].ndim == 1, "another shape"


def check_index(root: Path, target: Target) -> None:
    index = read_index(root)
    names = SEQUENCE_INDEX.names if target.output == "plain" else ["shard", "row", "key", "split", "group"]
    assert set(names) <= set(index.columns), f"lacks {sorted(set(names) - set(index.columns))}"
    for name in names:
        kind = index[name].dtype.kind
        assert kind in ("iufOU" if name in ("shard", "split") else "iufOUT"), (name, kind)
    assert index["row"].dtype.kind == "i", index["row"].dtype


def check_images(path: Path) -> None:
    for image in read_images(path):
        assert isinstance(image.data, bytes), type(image.data)
        assert all(isinstance(text, str) for text in (image.key, image.split, image.group)), image[1:]
        assert all(isinstance(label, int) for label in image.labels), image.labels


def work(base: int, originals: Path, scratch: Path) -> None:
    """Runs the cases whose numbers come in, one a line, and says a line of JSON for each."""
    warnings.simplefilter("error")
    for line in sys.stdin:
        number = int(line)
        used = resident(reset=True)
        try:
            said = {"outcome": check(number, base, originals, scratch)}
        except Exception as error:
            said = {"finding": f"{TARGETS[number % len(TARGETS)].damaged} {described(error)}"}
        if resident() - used > MOST_BYTES:
            said = {"finding": f"took {(resident() - used) >> 20} MiB of memory"}
        print(json.dumps(said), flush=True)


def resident(*, reset: bool = False) -> int:
    """The most bytes of memory that this process held since the last reset."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    text = Path("/proc/self/status").read_text()
    return int(next(line.split()[1] for line in text.splitlines() if line.startswith("VmHWM"))) * 1024


class Worker:
    """A process that runs cases, and is replaced where one ends or stops it."""

    def __init__(self, command: list[str]) -> None:
        """Starts a program that reads numbers, one a line, and answers each with a line of JSON."""
        self._command = command
        self._start()

    def _start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        self._lines: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen, args=(self._process, self._lines), daemon=True)
        self._listener.start()
        self._is_fresh = True

    @staticmethod
    def _listen(process: subprocess.Popen, lines: queue.Queue[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)
        lines.put("")

    def run(self, number: int) -> dict[str, str]:
        """What a case came to: `outcome` or `finding`."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{number}\n")
        self._process.stdin.flush()
        limit_s = MOST_SECONDS + (STARTING_S if self._is_fresh else 0.0)
        self._is_fresh = False
        try:
            line = self._lines.get(timeout=limit_s)
        except queue.Empty:
            self._process.kill()
            line, what = "", f"still running after {limit_s:g} s"
        else:
            what = f"ended the process with status {self._process.wait() if not line else 0}"
        if line:
            return json.loads(line)
        self.close()
        self._start()
        return {"finding": f"{TARGETS[number % len(TARGETS)].damaged} {what}"}

    def close(self) -> None:
        """Ends the process, which does so where its input ends."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        self._listener.join()
        self._process.stdout.close()


def fuzz(numbers: Iterable[int], *, base: int) -> Report:
    """Runs the cases by number, all from one seed."""
    report = Report()
    with tempfile.TemporaryDirectory() as name:
        originals = Path(name) / "originals"
        write_outputs(originals)
        folders = [str(originals), str(Path(name) / "scratch")]
        worker = Worker([sys.executable, __file__, "--work", *folders, "--seed", str(base)])
        for number in numbers:
            start = time.perf_counter()
            said = worker.run(number)
            if "outcome" in said:
                report.outcomes[said["outcome"]] += 1
            else:
                report.findings.setdefault(said["finding"], []).append(number)
            took = time.perf_counter() - start
            if took > report.slowest_s:
                report.slowest_s, report.slowest_case = took, number
        worker.close()
    return report


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cases", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run one case again, with the same --seed")
    parser.add_argument("--work", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.work:
        work(arguments.seed, *arguments.work)
        return 0
    numbers = range(arguments.cases) if arguments.only is None else [arguments.only]
    report = fuzz(numbers, base=arguments.seed)
    report.print()
    return 1 if report.findings else 0


if __name__ == "__main__":
    sys.exit(main())
