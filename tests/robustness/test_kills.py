"""A hundred SIGKILLs at random moments of a preparation; what is resumed to the end has the same bytes."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data_prep.prepare import prepare
from data_prep.shards.manifest import FILE_NAME
from data_prep.shards.verify import verify
from tests.data_prep.recordings import challenge
from tests.data_prep.test_prepare import config, contents

KILLS = 100
SHARDS = 9
ENGINES = [("serial", 1), ("serial", 2)] * 8 + [("processes", 2)]
"""Worker processes take seconds to start, so they are tried less often."""


def run(source: Path, out: Path, engine: str, workers: int) -> None:
    """In a process of its own, which tells that it is about to begin by a file beside the output."""
    out.with_suffix(".begun").touch()
    prepare(config(source), out, engine=engine, workers=workers, resume=out.exists())


def start(source: Path, out: Path, engine: str, workers: int):
    begun = out.with_suffix(".begun")
    begun.unlink(missing_ok=True)
    process = context().Process(target=run, args=(source, out, engine, workers))
    process.start()
    while not begun.exists():
        time.sleep(0.001)
    return process


def context():
    """Processes come from one that has imported everything, so that a kill meets work and not imports."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(["tests.robustness.test_kills"])
    return found


def usual_seconds(source: Path, folder: Path, engine: str, workers: int) -> float:
    took = []
    for number in range(3):
        process = start(source, folder / f"timed{engine}{workers}{number}", engine, workers)
        began = time.perf_counter()
        process.join()
        took.append(time.perf_counter() - began)
        assert process.exitcode == 0
    return sorted(took)[1]


@pytest.mark.slow
def test_a_hundred_kills_change_no_byte(tmp_path):
    source = challenge(tmp_path / "drive", 10 * SHARDS)
    prepare(config(source), tmp_path / "reference")
    reference = contents(tmp_path / "reference")
    lasts_s = {each: usual_seconds(source, tmp_path, *each) for each in set(ENGINES)}
    met: Counter[str] = Counter()
    output = 0
    while sum(met.values()) < KILLS:
        generator = np.random.default_rng([0, output])
        out = tmp_path / f"out{output}"
        for _ in range(int(generator.integers(1, 4))):
            engine = ENGINES[int(generator.integers(len(ENGINES)))]
            process = start(source, out, *engine)
            # By how far it has come and not by the clock alone, which other work on the machine would put wrong.
            wanted = int(generator.integers(SHARDS + 1))
            while process.is_alive() and whole_shards(out) < wanted:
                time.sleep(0.001)
            time.sleep(float(generator.uniform(0.0, lasts_s[engine] / SHARDS)))
            process.kill()
            process.join()
            if process.exitcode == -signal.SIGKILL:
                met[moment(out)] += 1
        engine = ENGINES[int(generator.integers(len(ENGINES)))]
        prepare(config(source), out, engine=engine[0], workers=engine[1], resume=out.exists())
        assert contents(out) == reference, output
        shutil.rmtree(out)
        output += 1
    print(f"{sum(met.values())} kills in {output} outputs: {dict(met)}")
    assert met["between the first shard and the last"] > KILLS // 4, met


def whole_shards(out: Path) -> int:
    return len([*out.glob("shards/*.h5")])


def moment(out: Path) -> str:
    """How far the killed run had come. A folder with a manifest is whole at any time."""
    shards = whole_shards(out)
    if (out / FILE_NAME).exists():
        problems = [problem for problem in verify(out).problems if not problem.path.startswith(".prep/")]
        assert not problems
        return "with a manifest"
    if shards == SHARDS:
        return "behind the last shard"
    return "between the first shard and the last" if shards else "before the first shard"
