"""Progress as lines: the first comes soon, all say what is left, and a resumed run is not taken for a fast one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from driving_xai.cli import console


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """The lines of work that reports at given seconds what it has done."""
    now = [100.0]
    monkeypatch.setattr("driving_xai.cli.console.time.monotonic", lambda: now[0])

    def lines(reports: list[tuple[float, float]], total: float, **options: Any) -> list[str]:
        with console.progress("work", **options) as on_progress:
            for at_s, done in reports:
                now[0] = 100.0 + at_s
                on_progress(done, total)
        return capsys.readouterr().err.splitlines()

    return lines


def test_the_first_line_says_how_long_it_will_take(said):
    found = said([(1, 1), (4, 4), (8, 8), (15, 15), (100, 100)], 100)
    assert found == [
        "work: 4 of 100 frames, 4 s, about 96 s left",
        "work: 15 of 100 frames, 15 s, about 85 s left",
        "work: 100 of 100 frames, 100 s",
    ]


def test_a_resumed_training_is_timed_from_where_it_goes_on(said):
    """Ten epochs are there at once; the eleventh takes a minute."""
    found = said([(0, 10), (60, 11)], 20, unit="epochs", begin="at the first report")
    assert found == ["work: 11 of 20 epochs, 60 s, about 9 min left"]


def test_parts_of_an_epoch_are_counted(said):
    found = said([(0, 0), (30, 0.25), (60, 0.5)], 8, unit="epochs", begin="at the first report")
    assert found[0] == "work: 0.25 of 8 epochs, 30 s, about 16 min left"


def test_what_a_resumed_run_skips_is_soon_forgotten(said):
    """A thousand frames are there at once; then one takes a second."""
    reports = [(0.1, 1000)] + [(float(at), 1000.0 + at) for at in range(1, 101)]
    assert said(reports, 2000)[-1].endswith("about 15 min left")


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "1 s"), (99, "99 s"), (100, "2 min"), (3540, "59 min"), (3600, "1 h 0 min")]
)
def test_lengths_of_time(seconds, text):
    assert console.duration(seconds) == text
