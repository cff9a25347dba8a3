"""Preparing end to end on small recordings: the same bytes however it runs, and clear refusals."""

from __future__ import annotations

import math
import shlex
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from data_prep.drive_job import MOST_CARRIED
from data_prep.errors import DataError, OutputError
from data_prep.geometry import Geometry, read_image
from data_prep.prepare import PrepConfig, Progress, prepare, read_job
from data_prep.schema import VEHICLES
from data_prep.shards.hdf5 import read_attributes, read_columns, read_frames
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import read_index
from data_prep.shards.verify import verify
from data_prep.signals import inverse_turning_radius, smooth
from tests.data_prep.recordings import PERIOD_NS, START_NS, challenge, interpolated, jpeg

ROOT = Path(__file__).resolve().parents[2]
GEOMETRY = Geometry(crop_top=0.25, height=12, width=16)


def config(source: Path, **changes) -> PrepConfig:
    """Sixty frames of 20 Hz in six shards, blocks of 0.6 s."""
    settings = {"geometry": GEOMETRY, "smoothing": 0.9, "gap_s": 0.1, "frames_per_shard": 10} | changes
    return PrepConfig(reader="udacity-csv", source=source, **settings)


def contents(root: Path) -> dict[str, bytes]:
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return challenge(tmp_path / "drive")


@pytest.fixture
def reference(source: Path, tmp_path: Path) -> dict[str, bytes]:
    """What an undisturbed run writes."""
    prepare(config(source), tmp_path / "reference")
    return contents(tmp_path / "reference")


def test_shards_and_index_hold_what_the_definitions_say(source: Path, tmp_path: Path):
    manifest = prepare(config(source), tmp_path / "out", workers=2)
    out, stamps = tmp_path / "out", [START_NS + i * PERIOD_NS for i in range(60)]
    index = read_index(out)
    angle = 0.1 * np.sin(np.arange(60) / 7)
    smoothed = smooth(angle, 0.9)
    nothing = np.full(60, np.nan)
    assert index["time_ns"].tolist() == stamps
    np.testing.assert_array_equal(index["steering_wheel_rad"], angle)
    np.testing.assert_array_equal(index["steering_wheel_rad_smoothed"], smoothed)
    expected = inverse_turning_radius(smoothed, nothing, VEHICLES["lincoln-mkz"])
    np.testing.assert_array_equal(index["inverse_turning_radius"], expected)
    assert index["speed_mps"].isna().all()
    assert index["block"].tolist() == np.repeat(range(5), 12).tolist()
    for row in index.itertuples():
        image = read_image(source / "center" / f"{row.time_ns}.jpg")
        assert np.array_equal(read_frames(out / row.shard, row.row, row.row + 1)[0], GEOMETRY.apply(image))
    columns = pd.concat(
        [pd.DataFrame(read_columns(out / s.path)) for s in manifest.shards], ignore_index=True
    )
    pd.testing.assert_frame_equal(columns, index[columns.columns])
    assert manifest.signals["slip_term"] == {"drive": "off"}
    assert read_attributes(out / "shards/drive-00000.h5")["vehicle_name"] == "lincoln-mkz"
    assert not read_attributes(out / "shards/drive-00000.h5")["speed_known"]
    assert verify(out).ok
    assert Manifest.load(out).sha256 == manifest.sha256


@pytest.mark.parametrize(("engine", "workers"), [("serial", 1), ("serial", 3), ("processes", 2)])
def test_engine_and_workers_change_no_byte(engine, workers, source, reference, tmp_path):
    prepare(config(source), tmp_path / "out", engine=engine, workers=workers)
    assert contents(tmp_path / "out") == reference


@pytest.mark.slow
def test_dask_changes_no_byte(source, reference, tmp_path):
    pytest.importorskip("distributed")
    prepare(config(source), tmp_path / "out", engine="dask", workers=2)
    assert contents(tmp_path / "out") == reference


def test_the_folder_of_the_source_does_not_matter(source, reference, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    moved = source.rename(tmp_path / "elsewhere" / "drive")
    prepare(config(moved), tmp_path / "out")
    assert contents(tmp_path / "out") == reference


KILLED = """
import os, signal, sys
from pathlib import Path
from data_prep.prepare import prepare
from data_prep.shards import hdf5, manifest
from tests.data_prep.test_prepare import config

where, out, source = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)
calls = 0
def die_inside_the_third_shard(self, frames, causes, append=hdf5.SequenceWriter.append):
    global calls
    calls += 1
    die() if calls == 3 else append(self, frames, causes)
def die_after_two(progress):
    die() if progress.units_done == 2 else None
if where == "inside a shard":
    hdf5.SequenceWriter.append = die_inside_the_third_shard
if where == "before the index":
    import data_prep.output
    data_prep.output.write_index = die
if where == "inside the index":
    import pyarrow.parquet
    pyarrow.parquet.write_table = lambda table, path, **_: (path.write_bytes(b"PAR1"), die())
if where == "inside the manifest":
    manifest.Manifest.to_bytes = die
if where == "before the manifest":
    manifest.Manifest.save = die
if where == "before any shard":
    from data_prep.output import Output
    Output.finished = die
if where == "before the plan":
    import data_prep.output
    data_prep.output.replacing = die
if where == "while replacing":
    unlink = Path.unlink
    def unlink_or_die(self, missing_ok=False):
        die() if self.name == "drive-00002.h5" else unlink(self, missing_ok=missing_ok)
    Path.unlink = unlink_or_die
if where == "before cleaning":
    import shutil
    shutil.rmtree = die
after_two = die_after_two if where == "between shards" else None
flags = {"resume": "resume" in sys.argv, "overwrite": "overwrite" in sys.argv}
prepare(config(source), out, engine="serial", on_progress=after_two, **flags)
"""


def killed(where: str, out: Path, source: Path, *more: str) -> None:
    """Runs a preparation in its own process and checks that it died of the signal."""
    command = [sys.executable, "-c", KILLED, where, str(out), str(source), *more]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ("inside a shard", 2),
        ("between shards", 2),
        ("before the index", 6),
        ("inside the index", 6),
        ("inside the manifest", 6),
        ("before the manifest", 6),
        ("before cleaning", 6),
    ],
)
def test_a_killed_run_resumes_to_the_same_bytes(where, kept, source, reference, tmp_path):
    out = tmp_path / "out"
    killed(where, out, source)
    if where != "before cleaning":
        with pytest.raises(DataError, match=r"no manifest\.json"):
            verify(out)
    with pytest.raises(DataError, match="add --resume"):
        prepare(config(source), out)
    seen: list[Progress] = []
    prepare(config(source), out, resume=True, on_progress=seen.append)
    assert seen[0].units_done == kept
    assert contents(out) == reference


@pytest.mark.parametrize("where", ["before any shard", "before the plan"])
def test_a_run_killed_in_its_first_moments_can_be_resumed(where, source, reference, tmp_path):
    killed(where, tmp_path / "out", source)
    prepare(config(source), tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == reference


def test_a_replacement_that_was_killed_is_still_ours_and_never_mixed_with_the_new(
    source, reference, tmp_path
):
    out = tmp_path / "out"
    prepare(config(source, smoothing=1.0), out)
    killed("while replacing", out, source, "overwrite")
    assert not (out / "manifest.json").exists()
    for changes in ({}, {"smoothing": 1.0}):
        with pytest.raises(DataError, match="--overwrite to replace it"):
            prepare(config(source, **changes), out, resume=True)
    prepare(config(source), out, overwrite=True)
    assert contents(out) == reference


def test_any_number_of_kills_changes_no_byte(source, reference, tmp_path):
    for _ in range(2):
        killed("inside a shard", tmp_path / "out", source, "resume")
    prepare(config(source), tmp_path / "out", resume=True, engine="processes", workers=2)
    assert contents(tmp_path / "out") == reference


def test_resuming_a_finished_run_repairs_what_was_damaged(source, reference, tmp_path):
    out = tmp_path / "out"
    prepare(config(source), out)
    shard = out / "shards/drive-00003.h5"
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    (out / "shards/drive-00001.h5").unlink()
    (out / "index.parquet").write_bytes(b"PAR1")
    named = {problem.path for problem in verify(out).problems}
    assert named == {"shards/drive-00003.h5", "shards/drive-00001.h5", "index.parquet"}
    seen: list[Progress] = []
    prepare(config(source), out, resume=True, on_progress=seen.append)
    assert seen[0].units_done == 4
    assert contents(out) == reference


@pytest.mark.parametrize("note", ['{"path": ', "[" * 100_000])
def test_a_damaged_note_of_a_shard_costs_that_shard_only(note, source, reference, tmp_path):
    out = tmp_path / "out"
    killed("between shards", out, source)
    (out / ".prep" / "drive-00000.h5.shard.json").write_text(note)
    seen: list[Progress] = []
    prepare(config(source), out, resume=True, on_progress=seen.append)
    assert seen[0].units_done == 1
    assert contents(out) == reference


def test_resuming_another_plan_is_refused(source, tmp_path):
    prepare(config(source), tmp_path / "out")
    before = contents(tmp_path / "out")
    with pytest.raises(DataError, match="another source, configuration"):
        prepare(config(source, smoothing=1.0), tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == before


def test_resuming_with_a_changed_source_is_refused(source, tmp_path):
    """The frames that were written would be of one recording, the others of another."""
    out = tmp_path / "out"
    killed("between shards", out, source)
    image = sorted((source / "center").iterdir())[-1]
    data = image.read_bytes()
    image.write_bytes(data + b"\0")
    with pytest.raises(DataError, match="another source, configuration"):
        prepare(config(source), out, resume=True)
    image.write_bytes(data)
    with pytest.raises(DataError, match="changed or copied since it was begun"):
        prepare(config(source), out, resume=True)
    prepare(config(source), out, overwrite=True)


def test_a_repair_that_comes_out_otherwise_tells_of_a_changed_source(source, tmp_path):
    """Of a finished output only names and sizes are known: a copy of its source need not keep the times."""
    out = tmp_path / "out"
    prepare(config(source), out)
    (out / "shards/drive-00005.h5").unlink()
    image = sorted((source / "center").iterdir())[-1]
    data = bytearray(image.read_bytes())
    data[-40] ^= 0xFF
    image.write_bytes(data)
    with pytest.raises(DataError, match="comes out otherwise than before"):
        prepare(config(source), out, resume=True)


def test_overwrite_replaces_our_output_and_nothing_else(source, reference, tmp_path):
    out = tmp_path / "out"
    prepare(config(source, frames_per_shard=3), out)
    prepare(config(source), out, overwrite=True)
    assert contents(out) == reference
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.txt").write_text("the only copy")
    for flags in ({}, {"overwrite": True}, {"resume": True}):
        with pytest.raises(DataError, match="not an output of prep"):
            prepare(config(source), foreign, **flags)
    assert contents(foreign) == {"thesis.txt": b"the only copy"}
    (foreign / "manifest.json").write_text('{"name": "a web application"}')
    with pytest.raises(DataError, match="not an output of prep"):
        prepare(config(source), foreign, overwrite=True)


def test_two_runs_into_one_folder_are_refused(source, tmp_path):
    out = tmp_path / "out"

    def start_another(progress: Progress) -> None:
        with pytest.raises(DataError, match="another run is writing"):
            prepare(config(source), out, resume=True)

    prepare(config(source), out, on_progress=start_another)
    assert verify(out).ok


def test_unusable_images_are_dropped_and_counted(source, tmp_path):
    images = sorted((source / "center").iterdir())
    images[5].write_bytes(images[5].read_bytes()[:-20])
    images[30].write_bytes(b"")
    images[31].write_bytes(jpeg(31)[:100])
    images[40].unlink()
    manifest = prepare(config(source), tmp_path / "out", workers=2)
    report, index = manifest.quality["drive"], read_index(tmp_path / "out")
    assert (report["read"], report["kept"]) == (59, 56)
    assert report["dropped"] == {"undecodable_image": 3}
    assert report["left_out"] == {"missing_image": {"count": 1, "first": [f"center/{images[40].name}"]}}
    # Frames 30 and 31 together are a hole of three periods, over the 2.5 that a segment bridges.
    assert index.groupby("segment").size().tolist() == [29, 27]
    assert manifest.shards[0].dropped == {"undecodable_image": [5]}
    for row in index.itertuples():
        expected = GEOMETRY.apply(read_image(source / "center" / f"{row.time_ns}.jpg"))
        assert np.array_equal(read_frames(tmp_path / "out" / row.shard, row.row, row.row + 1)[0], expected)
    assert verify(tmp_path / "out").ok


def test_refusing_names_the_first_bad_frame(source, tmp_path):
    image = sorted((source / "center").iterdir())[5]
    image.write_bytes(image.read_bytes()[:-20])
    with pytest.raises(DataError, match=rf"{image.name}.*cut short"):
        prepare(config(source, on_bad="refuse"), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()
    image.unlink()
    with pytest.raises(DataError, match=rf"missing_image, first center/{image.name}"):
        prepare(config(source, on_bad="refuse"), tmp_path / "fresh")
    assert not (tmp_path / "fresh").exists()


@pytest.mark.parametrize(
    ("frames", "options"), [(120, {}), (90, {"blocks": 3}), (40, {}), (120, {"lead_s": 0.5})]
)
def test_a_drive_too_short_for_the_defaults_is_told_the_command_that_works(frames, options, tmp_path):
    source = challenge(tmp_path / "short drive", frames)
    config = PrepConfig(reader="udacity-csv", source=source, reader_options={"reduced": 2}, **options)
    with pytest.raises(DataError, match="leaves no frame") as error:
        prepare(config, tmp_path / "refused")
    assert not (tmp_path / "refused").exists()
    words = shlex.split(str(error.value).partition(": driving-xai prep ")[2])
    assert words[:3] == ["udacity-csv", str(source), str(tmp_path / "refused")]
    assert words[3:5] == ["--option", "reduced=2"]
    told = dict(word.split("=") for word in words[6::2])
    told = {name: text if name == "split" else float(text) for name, text in told.items()}
    if "blocks" in told:
        told["blocks"] = int(told["blocks"])
    prepare(replace(config, **told), tmp_path / "out")
    index = read_index(tmp_path / "out")
    assert set(index["split"]) >= ({"test"} if "split" in told else {"train", "val", "test"})


def test_bad_clocks_are_dropped_and_counted_or_refused(tmp_path):
    times = [START_NS + i * PERIOD_NS for i in range(60)]
    times[20] = START_NS + 86_400_000_000_000
    times[41] = times[39] - 3
    source = challenge(tmp_path / "drive", times=times)
    manifest = prepare(config(source), tmp_path / "out")
    assert manifest.quality["drive"]["dropped"] == {"clock_jump": 1, "out_of_order": 1}
    assert np.all(np.diff(read_index(tmp_path / "out")["time_ns"]) > 0)
    with pytest.raises(DataError, match=r"out_of_order, first at frame 41; clock_jump, first at frame 20"):
        prepare(config(source, on_bad="refuse"), tmp_path / "refused")


@pytest.mark.parametrize("refused", ["clock_jump", "out_of_order", "duplicate", "gap"])
def test_each_fault_can_be_refused_by_itself(refused, tmp_path):
    times = [START_NS + i * PERIOD_NS for i in range(60)]
    times[20] = START_NS + 86_400_000_000_000
    times[41] = times[39] - 3
    times[50:] = [stamp + 4 * PERIOD_NS for stamp in times[50:]]
    source = challenge(tmp_path / "drive", times=times)
    text = (source / "CH2_final_evaluation.csv").read_text().splitlines()
    (source / "CH2_final_evaluation.csv").write_text("\n".join([*text, text[-1]]))
    manifest = prepare(config(source), tmp_path / "out")
    assert manifest.quality["drive"]["dropped"] == {"clock_jump": 1, "duplicate": 1, "out_of_order": 1}
    assert manifest.quality["drive"]["segments"] == 2
    with pytest.raises(DataError, match=rf"drive drive: (1 )?{refused}") as error:
        prepare(config(source, refuse=(refused,)), tmp_path / "refused")
    assert sum(each in str(error.value) for each in ("jump,", "order,", "duplicate,", "gaps over")) == 1
    others = tuple({"missing_image", "no_control", "undecodable_image"})
    prepare(config(source, refuse=others), tmp_path / "others")


def test_a_gap_that_unreadable_images_leave_is_refused_too(source, tmp_path):
    for image in sorted((source / "center").iterdir())[30:33]:
        image.write_bytes(b"")
    with pytest.raises(
        DataError, match=r"1 gaps over 2.5 frame periods, the first of 0\.200 s after kept frame 29"
    ):
        prepare(config(source, refuse=("gap",)), tmp_path / "out")
    with pytest.raises(DataError, match="neither JPEG nor PNG"):
        prepare(config(source, refuse=("undecodable_image",)), tmp_path / "other")


def test_with_a_lead_the_last_frames_are_counted_and_not_refused(source, tmp_path):
    whole = config(source, lead_s=0.2, gap_s=0.3, on_bad="refuse")
    manifest = prepare(whole, tmp_path / "out")
    assert manifest.quality["drive"]["dropped"] == {"no_later_control": 4}
    assert manifest.quality["drive"]["kept"] == 56
    lines = (source / "CH2_final_evaluation.csv").read_text().splitlines()
    lines[30:36] = [line.replace(line.split(",")[1], "nan") for line in lines[30:36]]
    (source / "CH2_final_evaluation.csv").write_text("\n".join(lines))
    with pytest.raises(DataError, match="no_control, first at frame"):
        prepare(whole, tmp_path / "refused")


def test_a_drive_without_one_usable_image_is_refused(source, tmp_path):
    for image in (source / "center").iterdir():
        image.write_bytes(b"broken")
    with pytest.raises(
        DataError, match=r"none of its 60 images can be used; the first: .*neither JPEG nor PNG"
    ):
        prepare(config(source), tmp_path / "out")
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_several_drives_split_by_drive(tmp_path):
    for hour, name in enumerate("abcd"):
        interpolated(tmp_path / "source" / name, start_ns=START_NS + hour * 3600 * 10**9)
    whole = config(tmp_path / "source", split="drive", val_drives=("b",), test_drives=("d",))
    manifest = prepare(whole, tmp_path / "out")
    index = read_index(tmp_path / "out")
    parts = index.groupby("drive")["split"].unique().map(list).to_dict()
    assert parts == {"a": ["train"], "b": ["val"], "c": ["train"], "d": ["test"]}
    assert index.groupby("drive")["block"].unique().map(list).to_dict() == {
        "a": [0],
        "b": [1],
        "c": [2],
        "d": [3],
    }
    assert manifest.signals["speed_present"] == dict.fromkeys("abcd", True)
    assert manifest.signals["clock"] == dict.fromkeys("abcd", "unix")
    slow = inverse_turning_radius(
        index["steering_wheel_rad_smoothed"].to_numpy(),
        index["speed_mps_smoothed"].to_numpy(),
        VEHICLES["lincoln-mkz"],
    )
    np.testing.assert_array_equal(index["inverse_turning_radius"], slow)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"smoothing": 0.0}, "smoothing is 0.0"),
        ({"tolerance_s": -1.0}, "tolerance_s is -1.0"),
        ({"hole_periods": float("nan")}, "hole_periods is nan"),
        ({"frames_per_shard": 0}, "frames_per_shard is 0"),
        ({"vehicle": "tricycle"}, "tricycle.*lincoln-mkz"),
        ({"split": "frame"}, "split is 'frame'; expected one of block"),
        ({"refuse": ("noise",)}, r"refuse\[0\] is 'noise'; expected one of duplicate, out_of_order"),
        ({"on_bad": "ignore"}, "on_bad is 'ignore'; expected one of drop, refuse"),
        (
            {"reader_options": {"colour": "red"}},
            "colour is no option; it has camera, side_camera_correction_rad, reduced",
        ),
        (
            {"reader_options": {"camera": "rear"}},
            "camera is 'rear'; expected one of center, left, right, all",
        ),
    ],
)
def test_a_wrong_setting_is_one_clear_line_and_nothing_is_written(changes, message, source, tmp_path):
    with pytest.raises(DataError, match=message) as error:
        prepare(config(source, **changes), tmp_path / "out")
    assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_output_that_cannot_be_written_is_one_clear_line(source, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match=r"cannot be written \(Not a directory\)"):
        prepare(config(source), tmp_path / "file" / "out")


@pytest.mark.parametrize("room", [1000, 4096, 8192])
def test_a_full_disk_is_one_clear_line(room, source, tmp_path):
    """A limit on the size of files, a third of a shard and more, stands for a disk without room."""
    script = f"""
import resource, signal
from pathlib import Path
from data_prep.errors import OutputError
from data_prep.prepare import prepare
from tests.data_prep.test_prepare import config
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))
try:
    prepare(config(Path({str(source)!r})), Path({str(tmp_path / "out")!r}))
except OutputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "cannot be written" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert not list((tmp_path / "out").rglob("*.h5"))


def test_a_source_that_goes_away_stops_the_run_and_drops_nothing(source, reference, tmp_path):
    away = tmp_path / "away"

    def unplug(progress: Progress) -> None:
        if progress.units_done == 1:
            source.rename(away)

    with pytest.raises(DataError, match="was there when the run was planned"):
        prepare(config(source), tmp_path / "out", on_progress=unplug)
    away.rename(source)
    prepare(config(source), tmp_path / "out", resume=True)
    assert contents(tmp_path / "out") == reference


def test_a_missing_source_is_one_clear_line(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        prepare(config(tmp_path / "nowhere"), tmp_path / "out")


def test_the_real_drive_gives_the_known_labels(shared_data, tmp_path):
    """The zero predictor's error in each fifth of the whole challenge-2 drive, from its CSV alone."""
    from data_prep.prepare import read_job

    source = shared_data / "udacity_ch2_001"
    job = read_job(PrepConfig(reader="udacity-csv", source=source))
    angle_deg = np.degrees(job.aligned[0].columns["steering_wheel_rad"])
    fifths = [round(float(np.abs(part).mean()), 1) for part in np.array_split(angle_deg, 5)]
    assert fifths == [6.6, 9.1, 8.0, 11.8, 2.3]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gap_s", math.inf),
        ("gap_s", 1e6),
        ("tolerance_s", math.inf),
        ("tolerance_s", math.nan),
        ("hole_periods", math.inf),
        ("hole_periods", 1e300),
    ],
)
def test_numbers_without_a_bound_are_refused_by_name(name, value, source):
    with pytest.raises(DataError, match=f"{name} is .*; expected"):
        config(source, **{name: value})


def test_a_size_that_no_memory_holds_is_refused():
    with pytest.raises(DataError, match="output size is 10000000x160; expected at most 100,000,000 pixels"):
        Geometry(height=10_000_000)


def test_the_longest_numbers_allowed_are_prepared(source, tmp_path):
    longest = {"tolerance_s": 1e6, "hole_periods": 1e6, "gap_s": 999_999.0, "split": "test"}
    prepare(config(source, **longest), tmp_path / "out")
    assert verify(tmp_path / "out").ok


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 3), ("split", "test"), ("smoothing", 0.5), ("vehicle", "acura-ilx"), ("gap_s", 1.0)],
)
def test_settings_of_drives_are_refused_for_images_and_not_recorded(name, value):
    recipe = PrepConfig(
        reader="synthetic-actions", source=Path("-"), reader_options={"images": 4, "height": 48, "width": 80}
    )
    assert not set(read_job(recipe).config) & {"seed", "split", "smoothing", "vehicle", "gap_s"}
    with pytest.raises(DataError, match=f"{name} is a setting of drives") as refused:
        read_job(replace(recipe, **{name: value}))
    assert ("--option seed=3" in str(refused.value)) == (name == "seed")


def test_smoothing_that_reaches_over_the_gap_is_refused_with_the_gap_it_needs(source):
    with pytest.raises(DataError, match=r"carries 64\.0% of a label .* use gap_s 0\.9 or more"):
        read_job(config(source, smoothing=0.2))
    assert 0.8 ** (0.9 * 20) < MOST_CARRIED < 0.8 ** (0.8 * 20)
    read_job(config(source, smoothing=0.2, split="test"))
    read_job(config(source, smoothing=1.0, gap_s=0.05))


@pytest.mark.parametrize(("rate_hz", "smoothing"), [(20.0, 0.2), (10.0, 0.2), (10.0, 0.36)])
def test_the_default_gap_is_long_enough_for_the_default_smoothing(rate_hz, smoothing):
    options = {"seconds": 30.0, "rate_hz": rate_hz}
    read_job(PrepConfig(reader="synthetic", source=Path("-"), reader_options=options, smoothing=smoothing))


def test_shards_that_no_manifest_could_list_are_refused_before_any_work(source, tmp_path, monkeypatch):
    monkeypatch.setattr("data_prep.shards.manifest.MAX_MANIFEST_BYTES", 6 * 150)
    with pytest.raises(DataError, match=r"6 shards and 1 drives .* use a larger frames_per_shard"):
        prepare(config(source), tmp_path / "out")
    assert not (tmp_path / "out").exists()
