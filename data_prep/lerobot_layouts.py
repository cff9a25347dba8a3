"""How a LeRobot data set lies on disk, by version: names of files, and what stands in meta/ besides info.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, NamedTuple

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from data_prep.lerobot_statistics import Statistics, aggregate

Version = Literal["v2.1", "v3.0"]
CHUNK = 1000
"""Episodes in one folder; LeRobot's default."""
Write = Callable[[Path], object]


class Entry(NamedTuple):
    """An episode as meta/ lists it."""

    number: int
    first: int
    """Number of its first frame in the whole data set."""
    length: int
    statistics: Statistics


@dataclass(frozen=True, kw_only=True)
class MetaFiles:
    """What meta/ is made of."""

    entries: Sequence[Entry]
    task: str
    video_key: str
    rate_hz: int


class Layout:
    """Version 2.1: a table and a video for each episode, and lists of JSON lines."""

    version: ClassVar[Version] = "v2.1"
    data: ClassVar[str] = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
    video: ClassVar[str] = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
    named_numbers_are_lists: ClassVar[bool] = True

    def place(self, template: str, episode: int, video_key: str) -> str:
        """Where a file of an episode lies, below the data set."""
        return template.format(episode_chunk=episode // CHUNK, episode_index=episode, video_key=video_key)

    def info(
        self, episodes: int, features: Mapping[str, Mapping[str, object]], rate_hz: int
    ) -> dict[str, object]:
        """What `meta/info.json` says in this version only; of `features` what it says of each."""
        del rate_hz
        return {"total_videos": episodes, "total_chunks": -(-episodes // CHUNK), "features": features}

    def meta(self, made: MetaFiles) -> Mapping[str, Write]:
        """The other files of meta/, by name, each with what writes it."""
        lengths = [
            {"episode_index": each.number, "tasks": [made.task], "length": each.length}
            for each in made.entries
        ]
        stats = [{"episode_index": each.number, "stats": each.statistics} for each in made.entries]
        lines: Mapping[str, Sequence[Mapping[str, object]]] = {
            "meta/tasks.jsonl": [{"task_index": 0, "task": made.task}],
            "meta/episodes.jsonl": lengths,
            "meta/episodes_stats.jsonl": stats,
        }
        return {name: partial(_write_lines, values) for name, values in lines.items()}


class Layout3(Layout):
    """Version 3.0: files that may hold several episodes, of which we put one into each, and lists in Parquet.

    Source: huggingface/lerobot, src/lerobot/datasets/utils.py and scripts/convert_dataset_v21_to_v30.py.
    Deviation: `splits` stays; the converter makes all of it "train".
    """

    version = "v3.0"
    data = "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"
    video = "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4"
    named_numbers_are_lists = False
    """LeRobot reads tables with types that it derives from info.json: one number is no list."""

    def place(self, template: str, episode: int, video_key: str) -> str:
        return template.format(chunk_index=episode // CHUNK, file_index=episode % CHUNK, video_key=video_key)

    def info(
        self, episodes: int, features: Mapping[str, Mapping[str, object]], rate_hz: int
    ) -> dict[str, object]:
        del episodes
        with_rate = {
            name: each if each["dtype"] == "video" else {**each, "fps": rate_hz}
            for name, each in features.items()
        }
        return {"data_files_size_in_mb": 100, "video_files_size_in_mb": 500, "features": with_rate}

    def meta(self, made: MetaFiles) -> Mapping[str, Write]:
        tasks = pd.DataFrame({"task_index": [0]}, index=pd.Index([made.task], name="task"))
        rows = pa.Table.from_pylist([_row(each, made) for each in made.entries])
        whole = aggregate([each.statistics for each in made.entries])
        return {
            "meta/tasks.parquet": tasks.to_parquet,
            "meta/episodes/chunk-000/file-000.parquet": partial(pq.write_table, rows),
            "meta/stats.json": partial(_write_lines, [whole]),
        }


def _row(entry: Entry, made: MetaFiles) -> dict[str, object]:
    chunk, file = divmod(entry.number, CHUNK)
    video = f"videos/{made.video_key}"
    row: dict[str, object] = {
        "episode_index": entry.number,
        "tasks": [made.task],
        "length": entry.length,
        "data/chunk_index": chunk,
        "data/file_index": file,
        "dataset_from_index": entry.first,
        "dataset_to_index": entry.first + entry.length,
        f"{video}/chunk_index": chunk,
        f"{video}/file_index": file,
        f"{video}/from_timestamp": 0.0,
        f"{video}/to_timestamp": entry.length / made.rate_hz,
        "meta/episodes/chunk_index": 0,
        "meta/episodes/file_index": 0,
    }
    return row | {
        f"stats/{feature}/{name}": value
        for feature, statistics in entry.statistics.items()
        for name, value in statistics.items()
    }


LAYOUTS: Mapping[Version, Layout] = {each.version: each for each in (Layout(), Layout3())}


def _write_lines(values: Sequence[Mapping[str, object]], path: Path) -> None:
    lines = [json.dumps(value, allow_nan=False) + "\n" for value in values]
    path.write_text("".join(lines), encoding="utf-8")
