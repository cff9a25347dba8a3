"""The table of public reports: every group of trouble that others had with such files, and the tests that hold it."""

from __future__ import annotations

import ast
import shlex
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
from typer.testing import CliRunner

from data_prep.errors import DataError
from data_prep.prepare import PrepConfig, prepare, read_job
from data_prep.readers import recognise
from data_prep.shards.parquet import read_index
from driving_xai.cli.commands import app
from tests.data_prep.readers.bag_writer import (
    SECOND,
    START_NS,
    camera,
    generated_jpegs,
    steering,
    write_bag,
)
from tests.data_prep.recordings import jpeg

ROOT = Path(__file__).resolve().parents[2]
CASES = ROOT.parent / "shared" / "cases"
"""Small files with the same trouble; not in the repository."""


class Report(NamedTuple):
    """A group of reports."""

    trouble: str
    verdict: str
    held_by: tuple[str, ...]
    """Tests, as `file::function` below `tests/`."""


_PREP, _REPLAY, _MODELS = "data_prep", "driving_xai/replay", "driving_xai/models"
REPORTS = (
    Report(
        "display rotation and pixel aspect of phones and of BDD100K's videos",
        "shown as players show it",
        (
            f"{_PREP}/test_video.py::test_frames_are_turned_as_the_display_matrix_says",
            f"{_PREP}/test_video.py::test_pixels_are_shown_square",
        ),
    ),
    Report(
        "seeks that land behind the wanted frame: open GOP, MPEG-TS, no index, intra refresh",
        "the frames of a plain decode, whatever the range",
        (f"{_PREP}/test_video.py::test_every_range_equals_one_pass",),
    ),
    Report(
        "AVI with B-frames, whose packets' times are not the frames'",
        "every frame in order",
        (f"{_PREP}/test_video.py::test_every_range_equals_one_pass",),
    ),
    Report(
        "raw H.264 and HEVC, which have no times",
        "read at a stated rate, or refused by name",
        (
            f"{_PREP}/test_video.py::test_a_raw_stream_needs_a_rate_and_others_refuse_one",
            f"{_PREP}/readers/test_video.py::test_a_raw_stream_is_read_at_the_rate_that_is_given",
        ),
    ),
    Report(
        "cover art or a preview as the first stream",
        "the default stream",
        (
            f"{_PREP}/test_video.py::test_cover_art_before_the_drive_is_passed_over",
            f"{_PREP}/test_video.py::test_the_default_stream_is_read_and_not_a_preview_before_it",
        ),
    ),
    Report(
        "variable rate",
        "the times of the frames",
        (f"{_PREP}/test_video.py::test_times_of_a_variable_rate",),
    ),
    Report(
        "bytes behind a JPEG's end: motion photos, padding; and a true cut behind a thumbnail",
        "the first read, the second refused",
        (
            f"{_PREP}/test_geometry.py::test_what_stands_behind_a_jpegs_end_is_no_cut",
            f"{_PREP}/test_geometry.py::test_a_jpeg_without_its_end_is_cut_also_behind_a_thumbnail",
            f"{_PREP}/test_geometry.py::test_a_jpeg_cut_at_the_end_of_its_thumbnail_is_cut",
        ),
    ),
    Report(
        "`._NAME` files of macOS and the like",
        "passed over",
        (
            f"{_PREP}/readers/test_paths.py::test_what_systems_leave_in_folders_is_not_listed",
            f"{_PREP}/readers/test_dialects.py::test_hidden_files_of_other_systems_are_passed_over",
            f"{_PREP}/readers/test_video.py::test_files_of_other_systems_are_no_videos",
        ),
    ),
    Report(
        "names in other alphabets, or not UTF-8",
        "kept, or told by a hash",
        (
            f"{_PREP}/readers/test_paths.py::test_names_of_any_alphabet_stay",
            f"{_PREP}/readers/test_paths.py::test_names_that_are_no_text_or_too_long_are_told_by_a_hash",
        ),
    ),
    Report(
        "two files of one name",
        "refused with both places",
        (f"{_PREP}/readers/test_dialects.py::test_two_recordings_of_one_name_are_refused_with_both_places",),
    ),
    Report(
        "byte-order marks, semicolons, decimal commas, cp1252",
        "read where unambiguous, named where not, no row blamed",
        (
            f"{_PREP}/readers/test_dialects.py::test_a_log_in_another_dialect_gives_the_same_drive",
            f"{_PREP}/readers/test_dialects.py::test_the_cars_tables_in_other_dialects",
            f"{_PREP}/readers/test_dialects.py::test_decimal_commas_between_commas_are_named_and_no_row_is_blamed",
            f"{_PREP}/readers/test_dialects.py::test_a_comma_that_may_mean_two_things_is_named",
        ),
    ),
    Report(
        "sessions joined out of order, shuffled rows",
        "sorted by their own times, and counted",
        (
            f"{_PREP}/readers/test_times.py::test_sessions_joined_out_of_order_and_shuffled_rows_are_sorted",
            f"{_PREP}/readers/test_times.py::test_joined_sessions_keep_every_frame_and_the_report_counts_what_was_moved",
        ),
    ),
    Report(
        "times as seconds with nine decimals",
        "the same drive",
        (f"{_PREP}/readers/test_times.py::test_seconds_with_nine_decimals_are_the_same_drive",),
    ),
    Report(
        "a video with more frames than frame times",
        "counted",
        (f"{_PREP}/readers/test_comma2k19.py::test_frames_without_a_time_are_counted",),
    ),
    Report(
        "file systems that grant no locks",
        "written, and said once",
        (f"{_PREP}/test_lock.py::test_a_file_system_without_locks_is_written_and_said_once",),
    ),
    Report(
        "layouts as authors publish them",
        "found; the message says where it looked",
        (
            f"{_PREP}/readers/test_bdd_oia.py::test_images_in_a_folder_of_the_splits_name_are_found",
            f"{_PREP}/readers/test_bdd_oia.py::test_a_set_without_its_images_says_where_it_looked",
        ),
    ),
    Report(
        "numbers of other alphabets in image names",
        "in order, no traceback",
        (f"{_REPLAY}/test_source.py::test_names_of_images_are_read_as_a_person_reads_them",),
    ),
    Report(
        "DINO's and DINOv2's own checkpoints, and what trainings keep next to their weights",
        "read, and no code run",
        (
            f"{_MODELS}/test_weights.py::test_dinos_whole_checkpoint_with_its_settings",
            f"{_MODELS}/test_weights.py::test_dinov2s_teacher_files",
            f"{_MODELS}/test_weights.py::test_what_trainings_keep_next_to_their_weights_is_read_without_code",
        ),
    ),
)


@pytest.mark.parametrize("report", REPORTS, ids=lambda report: report.trouble[:40])
def test_every_report_has_a_verdict_and_tests_that_hold_it(report):
    assert report.verdict
    for place in report.held_by:
        file, _, function = place.partition("::")
        tree = ast.parse((ROOT / "tests" / file).read_text())
        assert function in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, place


FRAMES = {
    "avi_bframes.avi": 60,
    "cover_first.mp4": 40,
    "mpegts_bframes.mp4": 120,
    "no_index.avi": 120,
    "open_gop_hevc.mp4": 120,
    "rotated_90.mov": None,
    "variable_rate.mp4": None,
    "行车记录.mkv": 40,
}


@pytest.mark.parametrize("name", FRAMES)
def test_every_frame_of_the_reported_videos_is_kept(name, tmp_path):
    path = next(iter(CASES.glob(f"*/{name}")), None)
    if path is None:
        pytest.skip("the reported file is not here; equivalents are made in the tests of the table")
    assert recognise(path) == "video"
    manifest = prepare(PrepConfig(reader="video", source=path, frames_per_shard=37), tmp_path / "out")
    (report,) = manifest.quality.values()
    assert report["dropped"] == {}, name
    assert manifest.rows == report["read"]
    assert FRAMES[name] in (None, manifest.rows)


def six_seconds(path: Path) -> Path:
    """A bag of 6 s whose camera has another name than those of Udacity's car."""
    path.parent.mkdir(parents=True)
    messages = []
    for frame, picture in enumerate(generated_jpegs(120)):
        at_ns = START_NS + frame * SECOND // 20
        messages.append(camera(at_ns, picture, topic="/town/camera/compressed"))
        messages.append(steering(at_ns, 0.01 * frame, speed=5.0))
    return write_bag(path, messages)


def test_a_short_bag_of_another_car_one_level_down_is_told_one_command_that_works(tmp_path, monkeypatch):
    six_seconds(tmp_path / "bags" / "monday" / "town.bag")
    with pytest.raises(DataError, match="/town/camera/compressed") as error:
        read_job(PrepConfig(reader="udacity-bag", source=tmp_path / "bags"))
    words = shlex.split(str(error.value).partition(": driving-xai ")[2])
    assert words[:2] == ["prep", "udacity-bag"]
    out = tmp_path / "out"
    result = CliRunner().invoke(app, [str(out) if word == "OUT" else word for word in words])
    assert result.exit_code == 0, result.output
    index = read_index(out)
    assert set(index["split"]) == {"train", "val", "test", "gap"}
    assert len(index) == 120


def tiny_images(folder: Path, count: int) -> Path:
    data = [jpeg(level) for level in range(10)]
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        path = folder / ("left", "right")[number % 2] / f"{number:05d}.jpg"
        path.write_bytes(data[number % 10])
    return folder


def peak_mb(source: Path, out: Path) -> float:
    """The most memory that a preparation in a process of its own takes."""
    code = (
        "import resource, sys; from pathlib import Path; from data_prep.prepare import PrepConfig, prepare;"
        "made = prepare(PrepConfig(reader='image-folder', source=Path(sys.argv[1])), Path(sys.argv[2]));"
        "print(made.rows, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(source), str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    rows, peak = done.stdout.split()
    assert int(rows) == len(list(source.glob("*/*.jpg")))
    return float(peak)


@pytest.mark.slow
def test_fifty_thousand_tiny_images_take_little_more_memory_than_five_thousand(tmp_path):
    few = peak_mb(tiny_images(tmp_path / "few", 5_000), tmp_path / "few_out")
    many = peak_mb(tiny_images(tmp_path / "many", 50_000), tmp_path / "many_out")
    assert many - few < 200  # 4 kB an image: its path, key and labels, thrice while the index is made
