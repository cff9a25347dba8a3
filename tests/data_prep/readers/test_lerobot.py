"""LeRobot data sets in versions 2 and 3: the same drives from both, whatever shares a file."""

from __future__ import annotations

import json
import math
from functools import partial

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_prep.errors import DataError
from data_prep.geometry import decode_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import read, recognise
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import jpeg

FPS = 20
LENGTHS = (12, 7, 9)
CAMERA = "observation.images.front"
FEATURES = {
    CAMERA: {"dtype": "video", "shape": [48, 64, 3], "names": ["height", "width", "channels"]},
    "observation.state": {"dtype": "float32", "shape": [2], "names": {"motors": ["speed", "wheel"]}},
    "action": {"dtype": "float32", "shape": [1], "names": None},
    "timestamp": {"dtype": "float32", "shape": [1], "names": None},
    "frame_index": {"dtype": "int64", "shape": [1], "names": None},
}


def drives(source, **options):
    return read("lerobot", source, options)


def grey(episode, frame):
    """The level of each frame: unique, and far enough apart to survive H.264."""
    return 8 * (10 * episode + frame) % 240


def video(path, levels):
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"g": "4", "crf": "10"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rows(episode, *, images):
    length = LENGTHS[episode]
    columns = {
        "observation.state": [[10.0 + n, np.sin(n / 5) + episode] for n in range(length)],
        "action": [[0.01 * n] for n in range(length)],
        "timestamp": pa.array(np.arange(length) / FPS, pa.float32()),
        "frame_index": list(range(length)),
        "episode_index": [episode] * length,
    }
    if images:
        columns[CAMERA] = [{"bytes": jpeg(grey(episode, n)), "path": None} for n in range(length)]
    return pa.table(columns)


def info(folder, version, *, images=False, **paths):
    features = FEATURES | ({CAMERA: FEATURES[CAMERA] | {"dtype": "image"}} if images else {})
    content = {"codebase_version": version, "fps": FPS, "chunks_size": 2, "features": features, **paths}
    (folder / "meta").mkdir(parents=True)
    (folder / "meta" / "info.json").write_text(json.dumps(content))


def v2(folder, *, images=False):
    """A Parquet file and a video for each episode, in chunks of two."""
    info(
        folder,
        "v2.1",
        images=images,
        data_path="data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
        video_path="videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    )
    lines = []
    for episode, length in enumerate(LENGTHS):
        data = folder / f"data/chunk-{episode // 2:03d}/episode_{episode:06d}.parquet"
        data.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows(episode, images=images), data)
        if not images:
            path = folder / f"videos/chunk-{episode // 2:03d}/{CAMERA}/episode_{episode:06d}.mp4"
            video(path, [grey(episode, n) for n in range(length)])
        lines.append(json.dumps({"episode_index": episode, "tasks": ["drive"], "length": length}))
    (folder / "meta" / "episodes.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def v3(folder, *, images=False):
    """All episodes in one Parquet file and one video."""
    info(
        folder,
        "v3.0",
        images=images,
        data_path="data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
        video_path="videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    )
    for name in ("data/chunk-000", "meta/episodes/chunk-000"):
        (folder / name).mkdir(parents=True)
    tables = [rows(episode, images=images) for episode in range(len(LENGTHS))]
    pq.write_table(pa.concat_tables(tables), folder / "data/chunk-000/file-000.parquet")
    if not images:
        levels = [grey(episode, n) for episode, length in enumerate(LENGTHS) for n in range(length)]
        video(folder / f"videos/{CAMERA}/chunk-000/file-000.mp4", levels)
    ends = np.cumsum(LENGTHS) / FPS
    episodes = {
        "episode_index": list(range(len(LENGTHS))),
        "length": list(LENGTHS),
        "data/chunk_index": [0] * 3,
        "data/file_index": [0] * 3,
        f"videos/{CAMERA}/chunk_index": [0] * 3,
        f"videos/{CAMERA}/file_index": [0] * 3,
        f"videos/{CAMERA}/from_timestamp": [0.0, *ends[:-1]],
        f"videos/{CAMERA}/to_timestamp": list(ends),
        "stats/action/mean": [[0.0]] * 3,
    }
    pq.write_table(pa.table(episodes), folder / "meta/episodes/chunk-000/file-000.parquet")
    return folder


OPTIONS = {"steering": "observation.state:wheel", "speed": "observation.state:0"}


@pytest.mark.parametrize("make", [v2, v3])
def test_every_episode_is_a_drive_with_its_own_frames(make, tmp_path):
    source = make(tmp_path / "set")
    assert recognise(source) == "lerobot"
    found = drives(source, **OPTIONS)
    assert [drive.name for drive in found] == [f"set-{n:06d}" for n in range(3)]
    for episode, drive in enumerate(found):
        length = LENGTHS[episode]
        assert drive.time_ns.tolist() == [n * 50_000_000 for n in range(length)]
        np.testing.assert_allclose(drive.steering_wheel.value, np.sin(np.arange(length) / 5) + episode)
        np.testing.assert_allclose(drive.speed.value, 10.0 + np.arange(length))
        for start, stop in ((0, length), (3, 5)):
            levels = [float(image.mean()) for image in drive.images.read(start, stop)]
            np.testing.assert_allclose(levels, [grey(episode, n) for n in range(start, stop)], atol=2.5)


@pytest.mark.parametrize("make", [v2, v3])
def test_images_in_parquet(make, tmp_path):
    (drive,) = drives(make(tmp_path / "set", images=True), episodes="1", steering="action")
    assert drive.name == "set-000001"
    np.testing.assert_allclose(drive.steering_wheel.value, 0.01 * np.arange(7))
    for number, image in zip((2, 3), drive.images.read(2, 4), strict=True):
        assert np.array_equal(image, decode_image(jpeg(grey(1, number)), name="x"))


def test_shards_are_the_same_from_both_versions(tmp_path):
    indexes = []
    for make in (v2, v3):
        config = PrepConfig(
            reader="lerobot",
            source=make(tmp_path / make.__name__ / "set"),
            reader_options=OPTIONS,
            split="train",
            frames_per_shard=5,
        )
        prepare(config, tmp_path / f"out-{make.__name__}")
        indexes.append(read_index(tmp_path / f"out-{make.__name__}"))
    assert len(indexes[0]) == sum(LENGTHS)
    assert indexes[0].equals(indexes[1])


def test_a_video_that_ends_early_costs_the_frames_behind_its_end(tmp_path):
    source = v2(tmp_path / "set")
    video(source / f"videos/chunk-000/{CAMERA}/episode_000000.mp4", [0] * 9)
    drive = drives(source, **OPTIONS)[0]
    assert len(drive) == 9
    assert drive.left_out == {"missing_image": tuple(f"episode 0 frame {n}" for n in (9, 10, 11))}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": "rear"}, "has no camera 'rear'; there are 'observation.images.front'"),
        (
            {"steering": "wheel"},
            "has no feature 'wheel' of numbers; there are 'observation.state, action, timestamp'",
        ),
        (
            {"steering": "observation.state"},
            "choose --option steering=observation.state:ITEM of 'speed, wheel'",
        ),
        ({"steering": "observation.state:2"}, "has no item '2'"),
        ({"steering": "action:x"}, "of '0 to 0'"),
        ({"episodes": "x"}, "expected one as 3, or a range as 0:50"),
        ({"episodes": "7:9"}, "has no episode of 7:9"),
    ],
)
def test_what_is_not_there_is_named(options, message, tmp_path):
    source = v3(tmp_path / "set", images=True)
    with pytest.raises(DataError, match=message) as error:
        drives(source, **options)
    assert "\n" not in str(error.value)


def rewritten(folder, change):
    path = folder / "meta" / "info.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def changed(path, name, value):
    """One column of a Parquet file is the same number in every row."""
    table = pq.read_table(path)
    at = table.column_names.index(name)
    pq.write_table(table.set_column(at, name, pa.array([value] * len(table))), path)


def renumbered(root, value):
    changed(root / "data/chunk-000/file-000.parquet", "frame_index", value)


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_an_episode_that_begins_nowhere_in_its_video_is_refused(value, tmp_path):
    source = v3(tmp_path / "set")
    changed(source / "meta/episodes/chunk-000/file-000.parquet", f"videos/{CAMERA}/from_timestamp", value)
    with pytest.raises(DataError, match="lacks a field or has a wrong one"):
        drives(source, **OPTIONS)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda root: (root / "meta/info.json").write_text("[" * 9999),
            "not the meta/info.json of a LeRobot",
        ),
        (lambda root: (root / "meta/info.json").unlink(), "no meta/info.json"),
        (
            lambda root: rewritten(root, lambda info: info.update(codebase_version="v9.0")),
            "'v9.0', expected v2 or v3",
        ),
        (lambda root: rewritten(root, lambda info: info.update(fps=0)), "fps 0 and chunks_size"),
        (lambda root: rewritten(root, lambda info: info.pop("features")), "not the meta/info.json"),
        (
            lambda root: rewritten(root, lambda info: info.update(data_path="../../{chunk_index}.parquet")),
            "leads outside",
        ),
        (
            lambda root: rewritten(root, lambda info: info.update(data_path="{episode_index.__class__}")),
            "no such file",
        ),
        (lambda root: rewritten(root, lambda info: info.update(data_path="{secret}")), "lacks a field"),
        (
            lambda root: (root / "data/chunk-000/file-000.parquet").write_bytes(b"PAR1" * 9),
            "not a Parquet file",
        ),
        (
            lambda root: (root / "data/chunk-000/file-000.parquet").write_bytes(
                (root / "data/chunk-000/file-000.parquet")
                .read_bytes()
                .replace(b"timestamp", b"time\xff\xfe\xfdmp")
            ),
            "not a Parquet file that can be read",
        ),
        (lambda root: (root / "meta/episodes/chunk-000/file-000.parquet").unlink(), "has no episode"),
        (
            lambda root: pq.write_table(
                rows(0, images=True).append_column("x", pa.array([1] * 12)).slice(2),
                root / "data/chunk-000/file-000.parquet",
            ),
            "episode 0 has 10 rows, meta/ says 12",
        ),
        *(
            (partial(renumbered, value=value), "has a frame_index that cannot be")
            for value in (math.nan, 1e300, -1.0)
        ),
    ],
)
def test_damage_is_one_line(damage, message, tmp_path):
    source = v3(tmp_path / "set", images=True)
    damage(source)
    with pytest.raises(DataError, match=message) as error:
        drives(source, **OPTIONS)
    assert "\n" not in str(error.value)
