"""Shards of drives to a LeRobot data set: a Parquet file and a video for each episode.

An episode is an unbroken run of frames of one drive in one part of the split. LeRobot's clock is constant, so a
frame's time there is its number over the rate; the recorded time stays in a column of its own.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, cast

import av
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.documents import read_json
from data_prep.errors import DataError, OutputError
from data_prep.h264 import ENCODER, declare_colours, reproducible, to_i420, why_missing
from data_prep.lerobot_layouts import CHUNK, LAYOUTS, Entry, Layout, MetaFiles, Version
from data_prep.lerobot_statistics import Moments, of_numbers
from data_prep.lock import exclusive
from data_prep.readers.lerobot import OWN
from data_prep.schema import Image
from data_prep.shards import hdf5
from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import Manifest
from data_prep.shards.parquet import read_index
from data_prep.values import Checked, Interval, MinLen

STATE = ".export"
INFO = "meta/info.json"
ACTION, STATE_FEATURE, LABEL = "action", "observation.state", "inverse_turning_radius"
_PARTS = ("train", "val", "test")
_FRAMES_AT_ONCE = 64
_KEYFRAME_PERIOD = 2
"""Source: lerobot/common/datasets/video_utils.py, which reads single frames at random."""
_MOST_NOTE_BYTES = 2**20
_MOST_RATE_DEVIATION = 0.02


@dataclass(frozen=True, kw_only=True)
class LeRobotConfig(Checked, error=DataError):
    """What decides the data set's contents, beyond the shards."""

    camera: Annotated[str, MinLen(1)] = "front"
    """The images are the feature `observation.images.CAMERA`."""
    task: Annotated[str, MinLen(1)] = "drive"
    """What the driver was asked to do, in words; policies that read text are given it."""
    crf: Annotated[int, Interval(ge=0, le=51)] = 18
    """x264's constant quality, 0 (lossless) to 51; 18 to 23 look alike to most."""
    version: Version = "v2.1"
    """LeRobot before 0.4 reads 2.1, later ones 3.0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.camera.replace("_", "").replace("-", "").isalnum():
            raise DataError(f"camera is {self.camera!r}; expected letters, digits, - and _")

    @property
    def video_key(self) -> str:
        """The name of the images' feature."""
        return f"observation.images.{self.camera}"

    @property
    def layout(self) -> Layout:
        """Where the version puts what."""
        return LAYOUTS[self.version]


class Exported(NamedTuple):
    """What was written."""

    episodes: int
    frames: int
    rate_hz: int
    left_out: int
    """Frames between two parts of the split, which belong to none."""


@dataclass(frozen=True)
class _Episode:
    number: int
    part: str
    rows: pd.DataFrame
    """Of the index, in time."""
    first: int
    """Number of its first frame in the whole data set."""


def export(
    shards: Path,
    out: Path,
    config: LeRobotConfig | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
    on_note: Callable[[str], None] | None = None,
) -> Exported:
    """Writes a data set that LeRobot, and `prep lerobot`, read. `meta/info.json` is written last.

    Args:
        shards: a folder that `prep` wrote, of drives with steering.
        out: the folder to write: new or empty, unless `resume` or `overwrite`.
        config: names and quality.
        resume: keep the episodes that an earlier run of the same shards and settings finished.
        overwrite: replace an earlier export; a folder that holds anything else is refused.
        on_progress: called with the episodes done and their total.
        on_note: called with a sentence that the user should see.

    Raises:
        DataError: the shards cannot be exported, or the folder is not ours to write.
        OutputError: the folder cannot be written, or its disk is full.
    """
    chosen = config or LeRobotConfig()
    if reason := why_missing():
        raise OutputError(reason)
    manifest = Manifest.load(shards)
    if manifest.kind != "sequences":
        raise DataError(
            f"{shards}: labelled images; a LeRobot data set holds drives, which `prep` makes of recordings"
        )
    index = read_index(shards, manifest)
    episodes = _episodes(index, shards)
    plan = _Plan(
        shards=shards,
        manifest=manifest,
        episodes=episodes,
        features=_features(episodes, manifest, chosen),
        rate_hz=_rate_hz(episodes, shards),
        config=chosen,
    )
    try:
        _check(out, plan, resume=resume, overwrite=overwrite)
        with exclusive(out, file=f"{STATE}/lock", on_unlocked=on_note):
            _begin(out, plan, afresh=not resume)
            _write(out, plan, on_progress)
            shutil.rmtree(out / STATE)
    except (OSError, av.FFmpegError) as error:
        where = getattr(error, "filename", None) or out
        raise OutputError(
            f"{where}: cannot be written ({error.strerror or error}); free space or choose another folder"
        ) from None
    frames = sum(len(episode.rows) for episode in episodes)
    return Exported(len(episodes), frames, plan.rate_hz, len(index) - frames)


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Everything that is known before a frame is read."""

    shards: Path
    manifest: Manifest
    episodes: Sequence[_Episode]
    features: Mapping[str, dict[str, Any]]
    rate_hz: int
    config: LeRobotConfig

    @property
    def fingerprint(self) -> str:
        plan = [self.manifest.sha256, asdict(self.config), av.__version__]
        return hashlib.sha256(json.dumps(plan).encode()).hexdigest()


def _episodes(index: pd.DataFrame, shards: Path) -> list[_Episode]:
    """Unbroken runs of each part, the parts one after another so that `splits` can be ranges."""
    if index["steering_wheel_rad"].isna().any():
        raise DataError(
            f"{shards}: some frames have no steering, which would be the action; export drives with steering"
        )
    keys = index[["drive", "segment", "split"]]
    run = (keys != keys.shift()).any(axis=1).cumsum()
    runs = [rows for _, rows in index.groupby(run, sort=False)]
    ordered = [(part, rows) for part in _PARTS for rows in runs if rows["split"].iloc[0] == part]
    found: list[_Episode] = []
    first = 0
    for number, (part, rows) in enumerate(ordered):
        found.append(_Episode(number, part, rows, first))
        first += len(rows)
    if not found:
        raise DataError(f"{shards}: holds no frame of train, val or test; prepare it again")
    return found


def _rate_hz(episodes: Sequence[_Episode], shards: Path) -> int:
    """The whole rate that LeRobot's clock has; the drives' own must agree with it."""
    steps = [np.diff(episode.rows["time_ns"].to_numpy()) for episode in episodes if len(episode.rows) > 1]
    if not steps:
        raise DataError(f"{shards}: no run of two frames, so no rate; prepare a longer drive")
    rates = [1e9 / float(np.median(each)) for each in steps]
    rate = round(1e9 / float(np.median(np.concatenate(steps))))
    furthest = max(rates, key=lambda each: abs(each - rate))
    if rate < 1 or abs(furthest - rate) > _MOST_RATE_DEVIATION * rate:
        raise DataError(
            f"{shards}: an episode has {furthest:.4g} frames a second, and LeRobot one whole rate for all (here {rate}); "
            "prepare drives of one rate into a folder of their own"
        )
    return rate


def _features(
    episodes: Sequence[_Episode], manifest: Manifest, config: LeRobotConfig
) -> dict[str, dict[str, Any]]:
    """`features` of `meta/info.json`; the speed is one only where it is known throughout."""
    geometry = manifest.geometry or {}
    height, width = (int(geometry[side]) + int(geometry[side]) % 2 for side in ("height", "width"))
    video = {
        "video.fps": 0,
        "video.height": height,
        "video.width": width,
        "video.channels": 3,
        "video.codec": "h264",
        "video.pix_fmt": "yuv420p",
        "video.is_depth_map": False,
        "has_audio": False,
    }
    images = {
        "dtype": "video",
        "shape": [height, width, 3],
        "names": ["height", "width", "channels"],
        "info": video,
    }
    found: dict[str, dict[str, Any]] = {config.video_key: images}
    if not any(episode.rows["speed_mps"].isna().any() for episode in episodes):
        found[STATE_FEATURE] = _numbers("float32", ["speed_mps"])
    found[ACTION] = _numbers("float32", ["steering_wheel_rad"])
    found[LABEL] = _numbers("float32", None)
    found |= {name: _numbers("int64", None) for name in ("source.time_ns", "source.frame")}
    found["timestamp"] = _numbers("float32", None)
    return found | {
        name: _numbers("int64", None) for name in ("frame_index", "episode_index", "index", "task_index")
    }


def _numbers(dtype: str, names: list[str] | None) -> dict[str, Any]:
    return {"dtype": dtype, "shape": [len(names or [""])], "names": names}


def _check(out: Path, plan: _Plan, *, resume: bool, overwrite: bool) -> None:
    """Touches nothing, so that a refusal changes nothing."""
    if resume and overwrite:
        raise DataError("resume and overwrite contradict each other; choose one")
    if not out.exists() or not any(entry.name != STATE for entry in out.iterdir()):
        return
    earlier = _fingerprint_at(out)
    if earlier is None:
        raise DataError(f"{out}: is not empty and no export of ours; choose a new folder")
    if not (resume or overwrite):
        raise DataError(
            f"{out}: holds an export, finished or not; add --resume to continue or --overwrite to replace"
        )
    if resume and earlier != plan.fingerprint:
        raise DataError(
            f"{out}: was begun with other shards or settings; use the same again, or --overwrite to replace it"
        )


def _fingerprint_at(out: Path) -> str | None:
    """The plan of the export that lies here; None where there is none."""
    for file in (out / STATE / "plan.json", out / INFO):
        try:
            return str(read_json(file, most=_MOST_NOTE_BYTES)["driving_xai"]["fingerprint"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _begin(out: Path, plan: _Plan, *, afresh: bool) -> None:
    """Clears what an earlier run left, all of it or its temporary files, and notes the plan."""
    state = out / STATE
    if afresh:
        (out / INFO).unlink(missing_ok=True)
        for folder in ("meta", "data", "videos"):
            shutil.rmtree(out / folder, ignore_errors=True)
        for note in state.glob("episode_*.json"):
            note.unlink()
    for stale in state.glob("*.tmp"):
        stale.unlink()
    _write_json(state / "plan.json", {"driving_xai": {"fingerprint": plan.fingerprint}}, scratch=state)


def _write(out: Path, plan: _Plan, on_progress: Callable[[int, int], None] | None) -> None:
    if (out / INFO).is_file():  # a finished export that is resumed
        return
    scratch = out / STATE
    entries = []
    for done, episode in enumerate(plan.episodes, 1):
        note = scratch / f"episode_{episode.number:06d}.json"
        if not note.is_file():
            _write_json(note, _write_episode(out, plan, episode), scratch=scratch)
        stats = read_json(note, most=_MOST_NOTE_BYTES)
        entries.append(Entry(episode.number, episode.first, len(episode.rows), stats))
        if on_progress is not None:
            on_progress(done, len(plan.episodes))
    config = plan.config
    made = MetaFiles(entries=entries, task=config.task, video_key=config.video_key, rate_hz=plan.rate_hz)
    for name, write in config.layout.meta(made).items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        with replacing(out / name, scratch=scratch) as temporary:
            write(temporary)
    _write_json(out / INFO, _info(plan), scratch=scratch)


def _write_episode(out: Path, plan: _Plan, episode: _Episode) -> dict[str, Any]:
    """One episode's table and video; returns its statistics."""
    scratch, key, layout = out / STATE, plan.config.video_key, plan.config.layout
    table = _table(plan, episode)
    data, video = (out / layout.place(each, episode.number, key) for each in (layout.data, layout.video))
    for path in (data, video):
        path.parent.mkdir(parents=True, exist_ok=True)
    seen = Moments()
    with replacing(video, scratch=scratch) as temporary:
        _encode(temporary, seen.watched(_images(plan.shards, episode)), plan)
    with replacing(data, scratch=scratch) as temporary:
        pq.write_table(table, temporary)
    stats = {name: of_numbers(np.array(table[name].to_pylist())) for name in table.column_names}
    return {key: seen.stats(), **stats}


def _table(plan: _Plan, episode: _Episode) -> pa.Table:
    rows, count = episode.rows, len(episode.rows)
    number = np.arange(count)
    columns: dict[str, Any] = {
        ACTION: rows["steering_wheel_rad"],
        STATE_FEATURE: rows["speed_mps"],
        LABEL: rows["inverse_turning_radius"],
        "source.time_ns": rows["time_ns"],
        "source.frame": rows["frame"],
        "timestamp": number / plan.rate_hz,
        "frame_index": number,
        "episode_index": np.full(count, episode.number),
        "index": episode.first + number,
        "task_index": np.zeros(count),
    }
    arrays = {}
    for name, feature in plan.features.items():
        if feature["dtype"] == "video":
            continue
        values = np.asarray(columns[name]).astype(feature["dtype"])
        flat = pa.array(values)
        # LeRobot's own files: a feature of one number without names is a plain column, others may be lists.
        is_list = feature["names"] is not None and plan.config.layout.named_numbers_are_lists
        arrays[name] = pa.array(values[:, None].tolist(), pa.list_(flat.type)) if is_list else flat
    return pa.table(arrays)


def _images(shards: Path, episode: _Episode) -> Iterator[Image]:
    for shard, rows in episode.rows.groupby("shard", sort=False):
        numbers = rows["row"].to_numpy()
        for start in range(0, len(numbers), _FRAMES_AT_ONCE):
            wanted = numbers[start : start + _FRAMES_AT_ONCE]
            frames = hdf5.read_frames(shards / str(shard), int(wanted[0]), int(wanted[-1]) + 1)
            yield from frames[wanted - wanted[0]]


def _encode(path: Path, images: Iterator[Image], plan: _Plan) -> None:
    """H.264 in yuv420p, each picture as `to_i420` makes it."""
    height, width, _ = plan.features[plan.config.video_key]["shape"]
    with ExitStack() as stack:
        container = stack.enter_context(
            av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"})
        )
        stream = cast(av.VideoStream, container.add_stream(ENCODER, rate=plan.rate_hz))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"crf": str(plan.config.crf), "g": str(_KEYFRAME_PERIOD), **reproducible()}
        codec = stream.codec_context
        codec.thread_count = 1  # with several, equal frames need not give equal bytes
        declare_colours(codec)
        for image in images:
            frame = av.VideoFrame.from_ndarray(to_i420(image), format="yuv420p")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _info(plan: _Plan) -> dict[str, Any]:
    episodes = plan.episodes
    splits = {}
    for part in _PARTS:
        numbers = [episode.number for episode in episodes if episode.part == part]
        if numbers:
            splits[part] = f"{numbers[0]}:{numbers[-1] + 1}"
    features = {name: dict(feature) for name, feature in plan.features.items()}
    video = features[plan.config.video_key]
    video["info"] = video["info"] | {"video.fps": plan.rate_hz}
    layout = plan.config.layout
    return {
        "codebase_version": layout.version,
        "robot_type": str((plan.manifest.vehicle or {}).get("name", "car")),
        "total_episodes": len(episodes),
        "total_frames": sum(len(episode.rows) for episode in episodes),
        "total_tasks": 1,
        "chunks_size": CHUNK,
        "fps": plan.rate_hz,
        "splits": splits,
        "data_path": layout.data,
        "video_path": layout.video,
        **layout.info(len(episodes), features, plan.rate_hz),
        OWN: {"fingerprint": plan.fingerprint, "shards_sha256": plan.manifest.sha256},
    }


def _write_json(path: Path, value: Mapping[str, Any], *, scratch: Path) -> None:
    with replacing(path, scratch=scratch) as temporary:
        temporary.write_text(json.dumps(value, indent=1, allow_nan=False), encoding="utf-8")
