"""How time and memory of joining, summarising and reporting scores grow with their number.

    python tests/benchmarks/bench_growth.py [--images 25000 100000 400000] [--frames 25000 100000] [--batch 32]
        [--group 1] [--resamples 2000] [--methods 2]

Parts are fabricated as `score` writes them: batches of images by two methods and two controls under two
measures, eight rows an image, one of the measures with curves of 21 values. Each size is measured in a process of
its own, so that the most memory it ever held is its own. A report is of one drive of so many frames, by two or
more methods and two controls under one measure and two references. Memory does not depend on the number of resamples.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from driving_xai.evaluation.condensed import CondensedRows  # noqa: E402
from driving_xai.evaluation.results import (  # noqa: E402
    PER_FRAME,
    SUMMARY,
    Results,
    Rows,
    frame_rows,
    read_rows,
    write_row_groups,
    write_table,
)
from driving_xai.evaluation.row_order import in_order  # noqa: E402
from driving_xai.evaluation.summary import summarise  # noqa: E402
from driving_xai.metrics.statistics import BlockBootstrap  # noqa: E402

METHODS, CONTROLS = ("rise", "grad-cam"), ("random", "centre-prior")
CURVE = 21


def batch_rows(images: np.ndarray, group: int, draw: np.random.Generator) -> Rows:
    """The rows of some images, `group` of them in a drive."""
    count, methods = len(images), (*METHODS, *CONTROLS)
    places = {
        "drive": np.array([f"place-{image // group}" for image in images.tolist()], dtype=object),
        "camera": np.full(count, "", dtype=object),
        "segment": np.zeros(count, dtype=np.int32),
        "frame": images,
        "time_ns": np.zeros(count, dtype=np.int64),
        "key": np.array([f"{image:09d}.jpg" for image in images.tolist()], dtype=object),
        "target": np.full(count, "left", dtype=object),
    }
    known = {"prediction": draw.random(count), "truth": np.ones(count)}
    known["error"] = 1 - known["prediction"]
    curves, areas = draw.random((count, len(methods), CURVE)), draw.random((count, len(methods)))
    columns = {"value": curves.mean(2), "normalised": curves.max(2), "curve": curves}
    both = [
        frame_rows(
            places,
            methods=methods,
            measure=measure,
            reference="target",
            known=known,
            columns=measured,
            degenerate=np.zeros((count, len(methods)), dtype=bool),
        )
        for measure, measured in (("deletion", columns), ("increase", {"value": areas}))
    ]
    return {name: np.concatenate([rows[name] for rows in both]) for name in both[0]}


def write_parts(folder: Path, images: int, *, batch: int, group: int) -> None:
    """Parts of a run over so many images."""
    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    for number, start in enumerate(range(0, images, batch)):
        rows = batch_rows(np.arange(start, min(start + batch, images)), group, draw)
        write_table(folder / f"part-{number:06d}.parquet", rows, sums="inside")


def join(parts: Path, out: Path, *, resamples: int = 2000) -> Iterator[tuple[str, Any]]:
    """As `score` ends: the rows are put in order and written, then summarised; each step with its outcome."""
    from driving_xai.metrics.quantities import PROBABILITY  # brings torch, which a report does without

    out.mkdir(parents=True, exist_ok=True)
    condensed = CondensedRows()
    found = map(read_rows, sorted(parts.glob("part-*.parquet")))
    write_row_groups(out / PER_FRAME, map(condensed.passed, in_order(found, parts / "ordered")))
    yield "join", condensed.frames
    block = condensed.largest_drive
    yield (
        "summary",
        summarise(
            condensed.rows(),
            quantity=PROBABILITY,
            protocol={"edited": "the frame", "references": {}},
            measures={name: {"faithful": "low"} for name in ("deletion", "increase")},
            methods=METHODS,
            controls=CONTROLS,
            bootstrap=BlockBootstrap(block=block, resamples=resamples),
            mean_curves=condensed.mean_curves(),
        ),
    )


def measured(folder: Path, resamples: int) -> dict[str, float]:
    """Processor seconds of each step and the most MiB resident after it, in this process."""
    spent: dict[str, float] = {"base_mib": _peak_mib()}
    before = time.process_time()
    for step, _ in join(folder / "parts", folder / "out", resamples=resamples):
        after = time.process_time()
        spent |= {f"{step}_s": after - before, f"{step}_mib": _peak_mib()}
        before = after
    return spent


def measured_report(results: Path, _: int = 0) -> dict[str, float]:
    """Processor seconds, size and the most MiB resident of the page of some results, in this process."""
    from driving_xai.report.api import write

    spent: dict[str, float] = {"base_mib": _peak_mib()}
    before = time.process_time()
    (page,) = write(results, results.parent / "report.html")
    return spent | {
        "report_s": time.process_time() - before,
        "html_mb": page.stat().st_size / 1e6,
        "report_mib": _peak_mib(),
    }


def write_drive(folder: Path, frames: int, *, methods: int = 2) -> None:
    """Results along one drive."""
    from tests.driving_xai.report.made import make_rows, make_summary

    gains = {"rise": 2.0, "grad-cam": 0.0, "random": 0.0, "centre-prior": -1.0}
    gains |= {f"method-{number}": 1.0 for number in range(3, methods + 1)}
    rows = make_rows(gains, frames=frames, drive="road", measures=("deletion",))
    Results(summary=make_summary(rows), per_frame=rows).save(folder)


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def exponent(sizes: list[int], spent: list[float]) -> float:
    """Of the growth between the two largest sizes, fixed cost included."""
    return math.log(spent[-1] / spent[-2]) / math.log(sizes[-1] / sizes[-2])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, nargs="*", default=[25_000, 100_000, 400_000])
    parser.add_argument("--frames", type=int, nargs="*", default=[25_000, 100_000])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--group", type=int, default=1, help="images in a drive, which are drawn together")
    parser.add_argument("--resamples", type=int, default=2000)
    parser.add_argument("--methods", type=int, default=2, help="of a report")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside is not None:
        found = measured_report if (given.inside / SUMMARY).exists() else measured
        print(json.dumps(found(given.inside, given.resamples)))
        return
    print(f"Python {platform.python_version()}, {platform.machine()}, {given.batch} images a part")
    joined = []
    for images in given.images:
        with tempfile.TemporaryDirectory() as scratch:
            _elsewhere(write_parts, Path(scratch) / "parts", images, batch=given.batch, group=given.group)
            joined.append(_apart(Path(scratch), f"{images:>9,} images", given.resamples))
    for step in ("join_s", "summary_s"):
        if len(joined) > 1:
            print(f"{step}: exponent {exponent(given.images, [each[step] for each in joined]):.2f}")
    for frames in given.frames:
        with tempfile.TemporaryDirectory() as scratch:
            _elsewhere(write_drive, Path(scratch) / "scores", frames, methods=given.methods)
            _apart(Path(scratch) / "scores", f"{frames:>9,} frames", given.resamples)


def _elsewhere(write: Callable[..., None], *given: object, **options: int) -> None:
    """Fabricates in another process: the most memory of this one would count for those that it starts."""
    process = multiprocessing.get_context("spawn").Process(target=write, args=given, kwargs=options)
    process.start()
    process.join()
    assert process.exitcode == 0


def _apart(folder: Path, label: str, resamples: int) -> dict[str, float]:
    """Measures in a process of its own, and prints what was found."""
    again = [sys.executable, __file__, "--inside", str(folder), "--resamples", str(resamples)]
    found = json.loads(subprocess.run(again, check=True, capture_output=True, text=True).stdout)
    print(label, "  ".join(f"{name} {value:,.1f}" for name, value in found.items()), flush=True)
    return found


if __name__ == "__main__":
    main()
