"""Shards as LeRobot data sets: read back equal, whole after a kill, refused where they cannot be one."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import av
import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep import lerobot_export
from data_prep.errors import DataError, OutputError
from data_prep.lerobot_export import LeRobotConfig, export
from data_prep.lerobot_layouts import LAYOUTS
from data_prep.prepare import PrepConfig, prepare
from data_prep.shards.hdf5 import read_frames
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import challenge, jpeg


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """A rendered drive of 6 s in three parts, in shards that end within an episode."""
    out = tmp_path_factory.mktemp("made") / "shards"
    config = PrepConfig(
        reader="synthetic",
        source=Path("-"),
        reader_options={"seconds": 6.0, "height": 80, "width": 160},
        blocks=3,
        gap_s=0.5,
        smoothing=1.0,
        frames_per_shard=25,
    )
    prepare(config, out)
    return out


def brightness_of(root, rows):
    """Of some frames; colours lose half their resolution in yuv420p, brightness none."""
    frames = [read_frames(root / shard, row, row + 1)[0] for shard, row in zip(*rows, strict=True)]
    return np.stack([cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in frames]).astype(int)


@pytest.mark.parametrize("version", LAYOUTS)
def test_what_is_exported_is_read_back(shards, tmp_path, version):
    made = export(shards, tmp_path / "set", LeRobotConfig(crf=4, version=version))
    index = read_index(shards)
    kept = index[index["split"] != "gap"]
    assert made.frames == len(kept) < len(index)
    assert made.left_out == len(index) - len(kept)
    back = tmp_path / "back"
    prepare(
        PrepConfig(
            reader="lerobot",
            source=tmp_path / "set",
            split="train",
            smoothing=1.0,
        ),
        back,
    )
    again = read_index(back)
    # The parts stand one after another; inside each, time runs on.
    expected = kept.iloc[np.argsort(kept["split"].map({"train": 0, "val": 1, "test": 2}), kind="stable")]
    for name in ("steering_wheel_rad", "speed_mps"):
        np.testing.assert_array_equal(again[name], expected[name].to_numpy(np.float32).astype(float))
    np.testing.assert_array_equal(again["time_ns"], expected["time_ns"])
    np.testing.assert_allclose(
        again["inverse_turning_radius"], expected["inverse_turning_radius"], rtol=1e-5, atol=1e-9
    )
    rows = [(table["shard"][::5], table["row"][::5]) for table in (again, expected)]
    found, wanted = brightness_of(back, rows[0]), brightness_of(shards, rows[1])
    loss = np.abs(found - wanted).mean(axis=(1, 2))
    assert loss.max() < 2.0
    others = np.abs(found[1:] - wanted[:-1]).mean(axis=(1, 2))
    assert others.min() > 2 * loss.max()


def test_the_files_are_those_of_version_2_1(shards, tmp_path):
    root = tmp_path / "set"
    export(shards, root, LeRobotConfig(camera="windscreen", task="keep the lane"))
    info = json.loads((root / "meta/info.json").read_text())
    assert (info["codebase_version"], info["fps"], info["robot_type"]) == ("v2.1", 20, "lincoln-mkz")
    lines = [json.loads(line) for line in (root / "meta/episodes.jsonl").read_text().splitlines()]
    stats = [json.loads(line) for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines()]
    assert info["total_episodes"] == info["total_videos"] == len(lines) == len(stats) == 3
    assert info["splits"] == {"train": "0:1", "val": "1:2", "test": "2:3"}
    first = 0
    for line in lines:
        number = line["episode_index"]
        table = pq.read_table(root / info["data_path"].format(episode_chunk=0, episode_index=number))
        video = info["video_path"].format(
            episode_chunk=0, episode_index=number, video_key="observation.images.windscreen"
        )
        assert (root / video).is_file()
        assert set(table.column_names) == {
            name for name, each in info["features"].items() if each["dtype"] != "video"
        }
        assert table["index"].to_pylist() == list(range(first, first + line["length"]))
        np.testing.assert_allclose(table["timestamp"], np.arange(line["length"]) / 20, atol=1e-6)
        first += line["length"]
    assert info["total_frames"] == first
    action = stats[0]["stats"]["action"]
    values = np.array(pq.read_table(root / "data/chunk-000/episode_000000.parquet")["action"].to_pylist())
    assert action["mean"] == pytest.approx(values.mean(axis=0).tolist())
    assert action["count"] == [len(values)]
    image = stats[0]["stats"]["observation.images.windscreen"]
    assert np.shape(image["mean"]) == (3, 1, 1)
    assert 0 <= np.min(image["min"]) < np.max(image["max"]) <= 1


def test_the_files_are_those_of_version_3_0(shards, tmp_path):
    root = tmp_path / "set"
    export(shards, root, LeRobotConfig(task="keep the lane", version="v3.0"))
    info = json.loads((root / "meta/info.json").read_text())
    assert info["codebase_version"] == "v3.0"
    assert {"total_chunks", "total_videos"}.isdisjoint(info)
    key = "observation.images.front"
    assert all(each["dtype"] == "video" or each["fps"] == 20 for each in info["features"].values())
    tasks = pd.read_parquet(root / "meta/tasks.parquet")
    assert (tasks.index.tolist(), tasks["task_index"].tolist()) == (["keep the lane"], [0])
    rows = pq.read_table(root / "meta/episodes/chunk-000/file-000.parquet").to_pylist()
    assert [row["episode_index"] for row in rows] == [0, 1, 2]
    tables = []
    for row in rows:
        at = {name: row[f"data/{name}"] for name in ("chunk_index", "file_index")}
        tables.append(pq.read_table(root / info["data_path"].format(**at)))
        assert tables[-1]["index"].to_pylist() == list(
            range(row["dataset_from_index"], row["dataset_to_index"])
        )
        at = {name: row[f"videos/{key}/{name}"] for name in ("chunk_index", "file_index")}
        with av.open(str(root / info["video_path"].format(video_key=key, **at))) as video:
            assert float(video.duration / av.time_base) == pytest.approx(row[f"videos/{key}/to_timestamp"])
    # One number is no list: LeRobot reads the tables with the types that info.json gives.
    assert tables[0].schema.field("action").type == pa.float32()
    stats = json.loads((root / "meta/stats.json").read_text())
    action = pa.concat_tables(tables)["action"].to_numpy().astype(float)
    expected = {"mean": action.mean(), "std": action.std(), "min": action.min(), "max": action.max()}
    for name, value in expected.items():
        assert stats["action"][name] == pytest.approx([value])
    assert stats["action"]["count"] == [len(action)] == [info["total_frames"]]
    assert np.shape(stats[key]["std"]) == (3, 1, 1)


def test_a_killed_export_is_no_data_set_and_goes_on_where_it_was(shards, tmp_path, monkeypatch):
    export(shards, tmp_path / "whole")
    written = itertools.count()
    real = lerobot_export._write_episode

    def dies(*arguments):
        if next(written) == 2:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(lerobot_export, "_write_episode", dies)
    with pytest.raises(KeyboardInterrupt):
        export(shards, tmp_path / "set")
    assert not (tmp_path / "set/meta/info.json").exists()
    with pytest.raises(DataError, match="--resume to continue"):
        export(shards, tmp_path / "set")
    with pytest.raises(DataError, match="other shards or settings"):
        export(shards, tmp_path / "set", LeRobotConfig(crf=30), resume=True)
    again = []
    monkeypatch.setattr(lerobot_export, "_write_episode", lambda *a: again.append(1) or real(*a))
    export(shards, tmp_path / "set", resume=True)
    assert len(again) == 1
    files = [
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "whole", tmp_path / "set")
    ]
    assert files[0] == files[1]
    monkeypatch.setattr(lerobot_export, "_write_episode", real)
    assert export(shards, tmp_path / "set", resume=True).episodes == 3  # nothing left to do
    export(shards, tmp_path / "set", LeRobotConfig(crf=30), overwrite=True)


def test_what_cannot_be_exported_is_refused_and_nothing_is_touched(shards, tmp_path):
    out = tmp_path / "set"
    for camera in ("", "a/b", "../up"):
        with pytest.raises(DataError, match="camera is"):
            export(shards, out, LeRobotConfig(camera=camera))
    with pytest.raises(DataError, match="crf is 99"):
        LeRobotConfig(crf=99)
    with pytest.raises(DataError, match=r"no manifest\.json"):
        export(tmp_path / "missing", out)
    images = tmp_path / "images"
    for part, name in enumerate(("stop", "go")):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (tmp_path / "classes" / name / "0.jpg").write_bytes(jpeg(part))
    prepare(PrepConfig(reader="image-folder", source=tmp_path / "classes"), images)
    with pytest.raises(DataError, match="labelled images"):
        export(images, out)
    out.mkdir()
    (out / "diary.txt").write_text("mine")
    for how in ({}, {"resume": True}, {"overwrite": True}):
        with pytest.raises(DataError, match="no export of ours"):
            export(shards, out, **how)
    assert [path.name for path in out.iterdir()] == ["diary.txt"]
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises((DataError, OutputError)):
        export(shards, file)


def test_drives_without_steering_or_speed(tmp_path):
    made = prepare(
        PrepConfig(reader="udacity-csv", source=challenge(tmp_path / "in", 30), split="train"),
        tmp_path / "shards",
    )
    assert made.rows == 30
    root = tmp_path / "set"
    export(tmp_path / "shards", root)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    assert "action" in features
    assert "observation.state" not in features
