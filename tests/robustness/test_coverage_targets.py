"""What coverage-guided fuzzing found once stays found; its whole inputs still reach every reader."""

from __future__ import annotations

import numpy as np
import pytest

from tests.robustness.coverage_targets import TARGETS, target
from tests.robustness.fuzz_readers import damaged_bytes


@pytest.mark.parametrize("name", TARGETS)
def test_whole_and_damaged_inputs_are_read_or_refused(name, tmp_path):
    check, whole = target(name, tmp_path)
    assert whole
    for number, data in enumerate([b"", b"\0", *whole]):
        check(data)
        for case in range(10):
            check(damaged_bytes(data, np.random.default_rng([number, case])))


def simulator_of_the_year(year: int) -> bytes:
    """The third recording of the CSV target, one time of which lies beyond 64 bits of nanoseconds."""
    names = [f"center_{year}_07_19_21_36_37_160.jpg", "left.jpg", "right.jpg"]
    return b"\x02" + (",".join(names) + ",0.05,0.5,0,21.0\n").encode()


@pytest.mark.parametrize("year", [1009, 1969, 2262, 9999])
def test_an_image_name_of_another_age(year, tmp_path):
    check, _ = target("csv", tmp_path)
    check(simulator_of_the_year(year))


def test_a_header_that_cannot_be_printed_gives_a_short_line(tmp_path):
    check, _ = target("csv", tmp_path)
    check(b"\x00" + b"\x00" * 500 + b"\n1\n")
