"""Options of the train commands that would have no effect are refused."""

from __future__ import annotations

import pytest


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("steering", ("--heat", "grad-cam", "--logger", "none"), "--heat grad-cam with --logger none"),
        ("steering", ("--heat", "grad-cam", "--heat-every", "0"), "--heat grad-cam with --heat-every 0"),
        ("steering", ("--heat", "grad-camm", "--logger", "none"), "grad-camm"),
        ("classifier", ("--model", "bla", "--heat-every", "2"), "--heat-every: bla trains on kept features"),
    ],
)
def test_heat_that_nothing_would_show_is_refused(run, tmp_path, kind, options, message) -> None:
    (tmp_path / "shards").mkdir()
    result = run("train", kind, tmp_path / "shards", tmp_path / "out", *options, "--device", "cpu")
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "out").exists()
