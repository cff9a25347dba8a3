"""Coverage-guided fuzzing of the readers, with atheris (not a dependency: install it beside the project).

    pip install atheris
    python tests/robustness/fuzz_coverage.py csv --seconds 300 --corpus corpus/csv

What is not a `DataError` of one line ends the run and leaves its input in the working directory; such
inputs become cases of `test_coverage_targets.py`.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
with atheris.instrument_imports(include=["data_prep", "rosbags.rosbag1", "json"]):
    from tests.robustness.coverage_targets import TARGETS, target


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--seconds", type=int, default=300)
    parser.add_argument("--corpus", type=Path, required=True, help="a folder that grows with what was found")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    warnings.simplefilter("error")
    given.corpus.mkdir(parents=True, exist_ok=True)
    # Memory, not a disk, where there is a file system for it.
    shared = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=shared if shared.is_dir() else None) as folder:
        check, whole = target(given.target, Path(folder))
        for number, data in enumerate(whole):
            (given.corpus / f"seed{number}").write_bytes(data)
        limits = [f"-max_total_time={given.seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=20000"]
        atheris.Setup([sys.argv[0], *limits, f"-seed={given.seed}", str(given.corpus)], check)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
