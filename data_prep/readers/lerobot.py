"""LeRobot data sets, versions 2 and 3: Parquet of states and actions, cameras as MP4 or as images in Parquet.

Version 2 has a file for each episode; version 3 joins episodes into larger files and says in `meta/episodes/` where
each lies. Every episode is a drive. What `export lerobot` wrote says so in `meta/info.json`, and is read back with its
steering, speed, times and vehicle without being asked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from jaxtyping import Float64, Int64

from data_prep.errors import DataError, SettingNeededError, quoted
from data_prep.geometry import Reduction
from data_prep.readers import video
from data_prep.readers.lerobot_files import ParquetImages, VideoPart, read_schema, read_table
from data_prep.readers.paths import drive_name, existing_folder, inside, printable, visible
from data_prep.readers.units import AS_ROS, ControlUnits
from data_prep.schema import VEHICLES, Drive, ImageSource, Signal
from data_prep.shards.atomic import read_bounded

NAME = "lerobot"

INFO = "meta/info.json"
MAX_INFO_BYTES = 16 * 2**20
_MOST_VIDEO_S = 1e6
"""Eleven days: times beyond it are damage, and nanoseconds up to it fit 64 bits."""
_FIELD = re.compile(r"\{(\w+)(?::0(\d)d)?\}")
OWN = "driving_xai"
"""In `meta/info.json`: the mark of a data set that `export lerobot` wrote."""
_OWN_STEERING, _OWN_SPEED, _OWN_TIME = (
    "action:steering_wheel_rad",
    "observation.state:speed_mps",
    "source.time_ns",
)
_EPISODES = re.compile(r"(\d{1,9})(?::(\d{1,9}))?")


def recognises(source: Path) -> bool:
    """Whether the folder has `meta/info.json` of a LeRobot data set."""
    try:
        return b'"codebase_version"' in read_bounded(source / INFO, most=MAX_INFO_BYTES)
    except (OSError, ValueError):
        return False


def drives(
    source: Path,
    *,
    image: str | None = None,
    steering: str | None = None,
    speed: str | None = None,
    episodes: str | None = None,
    controls: ControlUnits = AS_ROS,
    reduced: Reduction = 1,
) -> list[Drive]:
    """Reads the episodes of a data set, a drive each; times count from an episode's start at the data set's rate.

    Those that `export lerobot` wrote have the steering, speed, times and vehicle of the shards again.

    Args:
        source: the data set's folder.
        image: the camera, as `observation.images.front`; None takes the only one.
        steering: feature and item of the angle, by its name in `meta/info.json` or its number:
            `action:steering` or `observation.state:0`; a feature of one number needs no item.
        speed: feature and item of the speed, likewise.
        episodes: one, or a range without its end: `3`, `0:50`; None takes all.
        controls: units of the angles and speeds; each of its fields is an option.
        reduced: shrink while decoding images in Parquet; faster and not exact.

    Raises:
        DataError: the data set is damaged or of another version, or a feature is not there.
    """
    data_set = _DataSet.load(existing_folder(source))
    camera = data_set.camera(image)
    if data_set.own:
        steering, speed, controls = _as_exported(data_set, steering, speed, controls)
    wanted = [data_set.item(text, option) for text, option in ((steering, "steering"), (speed, "speed"))]
    files = _Files()
    return [
        _drive(data_set, files, episode, camera, wanted[0], wanted[1], controls, reduced)
        for episode in data_set.episodes(camera, _range(episodes))
    ]


def _as_exported(
    data_set: _DataSet, steering: str | None, speed: str | None, controls: ControlUnits
) -> tuple[str | None, str | None, ControlUnits]:
    """What `export lerobot` wrote, where nothing else is asked for."""
    if steering is None and _OWN_STEERING.partition(":")[0] in data_set.features:
        steering = _OWN_STEERING
    if speed is None and _OWN_SPEED.partition(":")[0] in data_set.features:
        speed = _OWN_SPEED
    if controls == AS_ROS and data_set.robot in VEHICLES:
        controls = replace(controls, vehicle=data_set.robot)
    return steering, speed, controls


class _Item(NamedTuple):
    """A number in each row of a feature."""

    feature: str
    number: int


class _Episode(NamedTuple):
    """Where one episode lies."""

    number: int
    length: int
    table: Path
    video: Path | None
    """None where the camera's images are in the table."""
    from_s: float
    """Where the episode begins in its video."""


@dataclass(frozen=True, kw_only=True)
class _DataSet:
    """`meta/info.json`, checked as far as it is used."""

    root: Path
    version: int
    fps: float
    features: Mapping[str, dict[str, Any]]
    data_path: str
    video_path: str
    chunks_size: int
    robot: str
    own: bool
    """Whether `export lerobot` wrote it."""

    @classmethod
    def load(cls, root: Path) -> _DataSet:
        path = root / INFO
        try:
            info = json.loads(read_bounded(path, most=MAX_INFO_BYTES))
            version, features = str(info["codebase_version"]), info["features"]
            if not all(isinstance(each, dict) for each in features.values()):
                raise TypeError
            found = cls(
                root=root,
                version=int(version.removeprefix("v").partition(".")[0]),
                fps=float(info["fps"]),
                features=features,
                data_path=str(info["data_path"]),
                video_path=str(info.get("video_path") or ""),
                chunks_size=int(info.get("chunks_size") or 1000),
                robot=str(info.get("robot_type")),
                own=isinstance(info.get(OWN), dict) and _OWN_TIME in features,
            )
        except FileNotFoundError:
            raise DataError(f"{root}: no {INFO}; expected a LeRobot data set") from None
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError):
            raise DataError(f"{path}: not the {INFO} of a LeRobot data set; restore it") from None
        if found.version not in (2, 3):
            raise DataError(f"{path}: version {quoted(version)}, expected v2 or v3; convert the data set")
        if not 0.1 <= found.fps <= 1000 or found.chunks_size < 1:
            raise DataError(
                f"{path}: fps {found.fps:g} and chunks_size {found.chunks_size} cannot be; restore it"
            )
        return found

    def camera(self, name: str | None) -> str:
        """The feature to take images from."""
        cameras = [key for key, value in self.features.items() if value.get("dtype") in ("video", "image")]
        listed = quoted(", ".join(cameras) or "none", most=400)
        if name is None and len(cameras) != 1:
            message = f"{self.root}: {len(cameras)} cameras ({listed}); add --option image=CAMERA"
            if not cameras:
                raise DataError(message)
            raise SettingNeededError(message, reader_options={"image": cameras[0]})
        chosen = name or cameras[0]
        if chosen not in cameras:
            raise DataError(f"{self.root}: has no camera {quoted(chosen)}; there are {listed}")
        return chosen

    def item(self, text: str | None, option: str) -> _Item | None:
        """What `FEATURE:ITEM` names."""
        if text is None:
            return None
        feature, _, item = text.partition(":")
        numeric = [key for key, value in self.features.items() if "float" in str(value.get("dtype"))]
        if feature not in numeric:
            listed = quoted(", ".join(numeric) or "none", most=400)
            raise DataError(f"{self.root}: has no feature {quoted(feature)} of numbers; there are {listed}")
        shape, names = self.features[feature].get("shape"), _names(self.features[feature].get("names"))
        count = (
            math.prod(shape) if isinstance(shape, list) and all(type(n) is int for n in shape) else len(names)
        )
        if item in names:
            return _Item(feature, names.index(item))
        if item.isdecimal() and len(item) < 6 and int(item) < count:
            return _Item(feature, int(item))
        if not item and count == 1:
            return _Item(feature, 0)
        listed = quoted(", ".join(names) or f"0 to {count - 1}", most=400)
        raise DataError(
            f"{self.root}: {feature} has no item {quoted(item)}; choose --option {option}={feature}:ITEM of {listed}"
        )

    def episodes(self, camera: str, wanted: range) -> Iterator[_Episode]:
        """The wanted episodes in order.

        Raises:
            DataError: none is wanted, or where one lies is not said.
        """
        rows = self._rows_v2() if self.version == 2 else self._rows_v3()
        is_video = self.features[camera].get("dtype") == "video"
        found = False
        for row in rows:
            try:
                number, length = int(row["episode_index"]), int(row["length"])
                episode = self._episode(row, number, length, camera, is_video) if number in wanted else None
            except DataError:
                raise
            except (KeyError, TypeError, ValueError, OverflowError):
                raise DataError(
                    f"{self.root}: an episode in meta/ lacks a field or has a wrong one; restore it"
                ) from None
            if episode is not None:
                found = True
                yield episode
        if not found:
            raise DataError(
                f"{self.root}: has no episode of {wanted.start}:{wanted.stop}; correct --option episodes"
            )

    def _episode(
        self, row: Mapping[str, Any], number: int, length: int, camera: str, is_video: bool
    ) -> _Episode:
        places = {"episode_index": number, "episode_chunk": number // self.chunks_size}
        if self.version == 3:
            places |= {name: int(row[f"data/{name}"]) for name in ("chunk_index", "file_index")}
        table = inside(self.root, _filled(self.data_path, places))
        if not is_video:
            return _Episode(number, length, table, None, 0.0)
        from_s = 0.0
        if self.version == 3:
            places |= {name: int(row[f"videos/{camera}/{name}"]) for name in ("chunk_index", "file_index")}
            from_s = float(row[f"videos/{camera}/from_timestamp"])
            if not 0 <= from_s <= _MOST_VIDEO_S:
                raise ValueError(from_s)
        file = _filled(self.video_path, places | {"video_key": camera})
        return _Episode(number, length, table, inside(self.root, file), from_s)

    def _rows_v2(self) -> Iterator[Mapping[str, Any]]:
        path = self.root / "meta" / "episodes.jsonl"
        try:
            with path.open(encoding="utf-8") as file:
                yield from (json.loads(line) for line in file if line.strip())
        except FileNotFoundError:
            raise DataError(f"{path}: no such file; restore it from the data set") from None
        except (OSError, ValueError, RecursionError):
            raise DataError(f"{path}: not a list of episodes; restore it from the data set") from None

    def _rows_v3(self) -> Iterator[Mapping[str, Any]]:
        folder = self.root / "meta" / "episodes"
        if not folder.is_dir():
            raise DataError(f"{folder}: no such folder; restore it from the data set")
        chunks = [chunk for chunk in visible(folder) if chunk.is_dir()]
        for path in [file for chunk in chunks for file in visible(chunk) if file.suffix == ".parquet"]:
            # The tasks are texts, which nothing here needs and damage makes undecodable.
            names = [name for name in read_schema(path).names if not name.startswith(("stats/", "tasks"))]
            yield from read_table(path, names).to_pylist()


def _names(names: Any) -> list[str]:
    """The names of a feature's items: a list, or lists by kind as `{"motors": [...]}`."""
    if isinstance(names, dict):
        return [each for part in names.values() for each in _names(part)]
    return [str(each) for each in names] if isinstance(names, list) else []


def _filled(template: str, places: Mapping[str, int | str]) -> str:
    """The template with numbers in their places; nothing else of a format string is understood."""

    def text(found: re.Match[str]) -> str:
        value = places[found[1]]
        return str(value).zfill(int(found[2])) if found[2] else str(value)

    return _FIELD.sub(text, template)


def _range(text: str | None) -> range:
    if text is None:
        return range(10**9)
    found = _EPISODES.fullmatch(text)
    if not found:
        raise DataError(
            f"episodes is {quoted(text)}, expected one as 3, or a range as 0:50; correct --option episodes"
        )
    start = int(found[1])
    return range(start, int(found[2]) if found[2] else start + 1)


class _Files:
    """The table and the video that were read last: in version 3 the next episode is in the same."""

    def __init__(self) -> None:
        self._table: tuple[Path, pa.Table, dict[int, Int64[np.ndarray, " R"]]] | None = None
        self._video: tuple[Path, Drive] | None = None

    def rows(self, path: Path, columns: list[str], episode: int) -> pa.Table:
        """The rows of an episode."""
        if self._table is None or self._table[0] != path:
            table = read_table(path, columns)
            number = _numbers(table["episode_index"], path)
            order = np.argsort(number, kind="stable")
            known, starts = np.unique(number[order], return_index=True)
            self._table = path, table, dict(zip(known.tolist(), np.split(order, starts[1:]), strict=True))
        _, table, rows = self._table
        return table.take(pa.array(rows.get(episode, np.arange(0))))

    def video(self, path: Path) -> Drive:
        """The whole video with the times of its frames."""
        if not path.is_file():
            raise DataError(f"{path}: no such video; download it or choose another camera")
        if self._video is None or self._video[0] != path:
            (whole,) = video.drives(path)
            self._video = path, whole
        return self._video[1]


def _drive(
    data_set: _DataSet,
    files: _Files,
    episode: _Episode,
    camera: str,
    steering: _Item | None,
    speed: _Item | None,
    controls: ControlUnits,
    reduced: Reduction,
) -> Drive:
    own_time = [_OWN_TIME] if data_set.own else []
    columns = [
        "frame_index",
        "episode_index",
        *own_time,
        *{item.feature for item in (steering, speed) if item},
    ]
    table = files.rows(episode.table, columns, episode.number)
    frame = _numbers(table["frame_index"], episode.table)
    if not ((frame >= 0) & (frame <= _MOST_VIDEO_S * data_set.fps)).all():
        raise DataError(
            f"{episode.table}: episode {episode.number} has a frame_index that cannot be; restore it"
        )
    if len(frame) != episode.length:
        raise DataError(
            f"{episode.table}: episode {episode.number} has {len(frame)} rows, meta/ says {episode.length}; restore it"
        )
    time_ns = np.rint(frame * (1e9 / data_set.fps)).astype(np.int64)
    images, rows, missing = _images(data_set, files, episode, camera, time_ns, reduced)
    if data_set.own:
        time_ns = _times_ns(table[_OWN_TIME], episode.table)
    return Drive(
        name=f"{drive_name(data_set.root)}-{episode.number:06d}",
        source=NAME,
        camera=camera,
        vehicle=controls.car,
        time_ns=time_ns[rows],
        images=images,
        steering_wheel=controls.steering(_signal(table, steering, time_ns, episode.table)),
        speed=controls.speed(_signal(table, speed, time_ns, episode.table)),
        left_out={"missing_image": missing} if missing else {},
        provenance={
            "folder": printable(data_set.root.resolve().name),
            "codebase_version": data_set.version,
            "episode": episode.number,
            "fps": data_set.fps,
            "steering": None if steering is None else list(steering),
            "speed": None if speed is None else list(speed),
        },
    )


def _times_ns(column: pa.ChunkedArray, path: Path) -> Int64[np.ndarray, " T"]:
    """Kept as integers: a Unix time in nanoseconds has more digits than a float64."""
    if column.type != pa.int64() or column.null_count:
        raise DataError(f"{path}: {_OWN_TIME} holds no whole numbers; export the data set again")
    return np.asarray(column.to_numpy(), dtype=np.int64)


def _numbers(column: pa.ChunkedArray, path: Path) -> Float64[np.ndarray, "..."]:
    try:
        return np.asarray(column.to_pylist(), dtype=np.float64)
    except (TypeError, ValueError):
        raise DataError(
            f"{path}: a column of numbers holds something else, or rows of several lengths; restore it"
        ) from None


def _signal(
    table: pa.Table, item: _Item | None, time_ns: Int64[np.ndarray, " T"], path: Path
) -> Signal | None:
    if item is None:
        return None
    values = _numbers(table[item.feature], path).reshape(len(table), -1)
    if item.number >= values.shape[1]:
        raise DataError(
            f"{path}: {item.feature} has {values.shape[1]} numbers a row, {INFO} says more; restore it"
        )
    return Signal(time_ns=time_ns, value=values[:, item.number])


def _images(
    data_set: _DataSet,
    files: _Files,
    episode: _Episode,
    camera: str,
    time_ns: Int64[np.ndarray, " T"],
    reduced: Reduction,
) -> tuple[ImageSource, Int64[np.ndarray, " K"], tuple[str, ...]]:
    """Where an episode's images come from, the rows that have one, and the names of those that have none."""
    every = np.arange(len(time_ns))
    if episode.video is None:
        images = ParquetImages(
            path=episode.table, column=camera, episode=episode.number, length=len(time_ns), reduced=reduced
        )
        return images, every, ()
    whole = files.video(episode.video)
    in_video_ns = time_ns + round(episode.from_s * 1e9)
    after = np.clip(np.searchsorted(whole.time_ns, in_video_ns), 1, max(len(whole.time_ns) - 1, 1))
    before_ns, after_ns = whole.time_ns[after - 1], whole.time_ns[np.minimum(after, len(whole.time_ns) - 1)]
    nearest = np.where(in_video_ns - before_ns <= after_ns - in_video_ns, after - 1, after)
    nearest = np.minimum(nearest, len(whole.time_ns) - 1)
    near = np.abs(whole.time_ns[nearest] - in_video_ns) < 0.5e9 / data_set.fps
    missing = tuple(f"episode {episode.number} frame {row}" for row in every[~near])
    return VideoPart(video=whole.images, numbers=tuple(nearest[near].tolist())), every[near], missing
