"""Folders of results as score and replay write them, made up without a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards.atomic import sha256_of
from driving_xai.evaluation.results import Results
from driving_xai.replay.sink import Encoding, open_sink
from tests.driving_xai.report.made import RATE, grey_of, make_rows, make_summary

Write = Callable[..., Path]


@pytest.fixture(scope="session")
def write_results(tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes a folder of results; by default one method beats both controls and one does not.

    `keys` names images by their frame, as in `"a-{}.jpg"`.
    """

    def write(
        name: str = "scores",
        *,
        root: Path | None = None,
        gains: dict[str, float] | None = None,
        frames: int = 160,
        drive: str = "road",
        measures: tuple[str, ...] = ("deletion",),
        keys: str = "",
        **more: Any,
    ) -> Path:
        folder = (root or tmp_path_factory.mktemp("results")) / name
        given = gains or {"grad-cam": 2.0, "lime": 0.0, "random": 0.0, "centre-prior": -1.0}
        rows = make_rows(given, frames=frames, drive=drive, measures=measures)
        if keys:
            rows = rows.assign(key=[keys.format(frame) for frame in rows["frame"]], time_ns=0)
        Results(summary=make_summary(rows, **more), per_frame=rows).save(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def write_replay(write_results: Write, tmp_path_factory: pytest.TempPathFactory) -> Write:
    """Writes a video whose greys count its pictures, and beside it the results of its replay."""

    def write(*, root: Path | None = None, frames: int = 160, drive: str = "road", **more: Any) -> Path:
        folder = root or tmp_path_factory.mktemp("replay")
        path = folder / "drive.mp4"
        with open_sink(path, height=96, width=128, frame_rate=RATE, encoding=Encoding(crf=8)) as sink:
            for number in range(frames + 1):
                sink.write(np.full((96, 128, 3), grey_of(number % 200), np.uint8))
        video = {"file": path.name, "sha256": sha256_of(path), "frame_rate": str(RATE), "run_starts": [0]}
        gains = {"sign-attention": 1.0, "random": 0.0}
        return write_results(
            "drive.scores", root=folder, gains=gains, frames=frames, drive=drive, video=video, **more
        )

    return write
