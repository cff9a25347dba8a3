"""Which picture shows which frame, and which frames are worth looking at."""

from __future__ import annotations

import shutil

import cv2
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driving_xai.errors import DataError
from driving_xai.replay.sink import Encoding, open_sink
from driving_xai.report.pictures import stills
from driving_xai.report.sources import load_sources
from driving_xai.report.timeline import Shown, _pictures, _with_scores, drives, picks, videos
from tests.driving_xai.report.made import RATE, grey_of, make_rows


def test_each_scored_frame_is_shown_by_its_picture(write_replay):
    """The first picture of a run has no score, so the first row is the second picture."""
    (video,) = videos(load_sources([write_replay(frames=30)]))
    assert [video.pictures[Shown("road", "front", frame, "")] for frame in (1, 2, 30)] == [1, 2, 30]
    jpegs = stills(video.path, [7], width=64)
    picture = cv2.imdecode(np.frombuffer(jpegs[7], np.uint8), cv2.IMREAD_COLOR)
    assert picture.shape[:2] == (48, 64)
    assert picture.mean() == pytest.approx(grey_of(7), abs=2)


def test_a_title_card_is_none_of_the_drive_s_pictures(tmp_path):
    path = tmp_path / "drive.mp4"
    with open_sink(path, height=96, width=128, frame_rate=RATE, encoding=Encoding(crf=8)) as sink:
        sink.hold(np.full((96, 128, 3), 250, np.uint8), for_s=0.5)
        for number in range(5):
            sink.write(np.full((96, 128, 3), grey_of(number), np.uint8))
        first_s = sink.starts_s[0]
    for number, jpeg in stills(path, [0, 4], width=64, first_s=first_s).items():
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        assert picture.mean() == pytest.approx(grey_of(number), abs=2)


def test_a_film_of_two_models_is_one_video(write_replay):
    first = write_replay(frames=20)
    second = first.with_name("drive.2.scores")
    shutil.copytree(first, second)
    (video,) = videos(load_sources([first, second]))
    assert len(video.pictures) == 20


def test_pictures_are_those_that_the_replay_noted_or_none():
    """Frame 5 is picture 0 and has two outputs, frame 6 none, frame 7 one."""
    rows = pd.DataFrame(
        {
            "drive": "a",
            "camera": "",
            "frame": [5, 5, 7],
            "key": ["x.jpg", "x.jpg", "y.jpg"],
            "target": ["stop", "left", "stop"],
        }
    )
    first, second = Shown("a", "", 5, "x.jpg"), Shown("a", "", 7, "y.jpg")
    assert _pictures({"pictures": [["a", 5, 0], ["a", 6, 1], ["a", 7, 2]]}, rows) == {first: 0, second: 2}
    assert _pictures({"run_starts": [0]}, rows) == {first: 1, second: 2}
    assert _pictures({}, rows) is None


@given(begins=st.lists(st.booleans(), max_size=30))
def test_pictures_without_scores_are_skipped(begins):
    begins = [True, *begins]
    starts = [number for number, is_start in enumerate(begins) if is_start]
    scored = [number for number, is_start in enumerate(begins) if not is_start]
    assert _with_scores(starts, len(scored)).tolist() == scored


def test_a_video_that_was_changed_is_refused_and_one_that_is_gone_is_done_without(write_replay):
    folder = write_replay(frames=20)
    video = folder.parent / "drive.mp4"
    video.write_bytes(video.read_bytes() + b"0")
    with pytest.raises(DataError, match=r"differs from the video that .* was scored with; replay again"):
        videos(load_sources([folder]))
    video.unlink()
    assert videos(load_sources([folder])) == []


def test_results_cannot_reach_for_files_elsewhere(write_results, tmp_path):
    (tmp_path / "secret").write_bytes(b"secret")
    told = {"file": "../../secret", "sha256": 64 * "0", "frame_rate": "20"}
    assert videos(load_sources([write_results(root=tmp_path / "a" / "b", video=told)])) == []


def _values(drive: str, values: list[float]) -> pd.DataFrame:
    rows = make_rows({"grad-cam": 0.0}, frames=len(values), drive=drive, measures=("deletion",))
    rows = rows[rows["reference"] == "truth"].reset_index(drop=True)
    return rows.assign(value=values, base_corrected=values)


def test_picks_are_not_the_frames_where_the_model_errs_most():
    """Against the truth an area is large where the model is wrong; what the edit changed may be little."""
    rows = _values("road", [0.0] * 200).assign(value=np.arange(200.0))
    (found,) = drives(rows.assign(base_corrected=np.where(rows.index == 20, 5.0, 0.0)))
    best, *_ = picks([found], "deletion/truth", "grad-cam", higher_is_faithful=True, count=1)
    assert best.row == 20
    unknown = drives(rows.assign(base_corrected=np.nan))
    best, *_ = picks(unknown, "deletion/truth", "grad-cam", higher_is_faithful=True, count=1)
    assert best.row == 199, "a measure without a base goes by its value"


def test_picks_are_the_ends_and_keep_apart():
    """Neighbours of a pick are passed over: they show the same moment."""
    values = [0.0] * 200
    values[50], values[51], values[120] = 9.0, 8.0, 7.0
    values[10], values[11], values[199] = -9.0, -8.0, np.nan
    found = drives(_values("road", values))
    chosen = picks(found, "deletion/truth", "grad-cam", higher_is_faithful=True, count=2)
    best = [pick.row for pick in chosen if pick.kind == "best"]
    worst = [pick.row for pick in chosen if pick.kind == "worst"]
    assert best == [50, 120]
    assert worst[0] == 10
    assert abs(worst[1] - 10) >= 4
    reverse = picks(found, "deletion/truth", "grad-cam", higher_is_faithful=False, count=1)
    assert [(pick.kind, pick.row) for pick in reverse] == [("best", 10), ("worst", 50)]
    assert picks(found, "deletion/truth", "absent", higher_is_faithful=True, count=2) == []


def test_drives_are_told_apart_and_many_are_put_in_a_row():
    two = drives(pd.concat([_values("a", [1.0, 2.0]), _values("b", [3.0])]))
    assert [(drive.name, drive.across, len(drive.frames)) for drive in two] == [("a", "s", 2), ("b", "s", 1)]
    assert two[0].frames["at"].tolist() == pytest.approx([0.0, 0.05])
    assert two[1].values["deletion/truth"]["grad-cam"].tolist() == [3.0]
    many = drives(pd.concat([_values(f"image-{n}", [float(n)]) for n in range(50)]))
    assert [(drive.name, drive.across) for drive in many] == [("all images", "image")]
    assert many[0].values["deletion/truth"]["grad-cam"].tolist() == [float(n) for n in range(50)]
    still = drives(_values("a", [1.0, 2.0]).assign(time_ns=5))
    assert [(drive.across, drive.frames["at"].tolist()) for drive in still] == [("image", [0.0, 1.0])]
