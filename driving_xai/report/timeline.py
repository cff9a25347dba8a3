"""The frames of results along time, and which picture of which video shows each of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Int64

from data_prep.shards.atomic import sha256_of
from driving_xai.errors import DataError
from driving_xai.evaluation.results import FRAME_COLUMNS
from driving_xai.evaluation.summary import frame_numbers
from driving_xai.report.sources import Source

MOST_DRIVES = 40
"""Results with more of them are of single images: they are put in a row instead of on clocks."""


class Shown(NamedTuple):
    """What a picture shows. An image is known by its name: in other shards its place is another image's."""

    drive: str
    camera: str
    frame: int
    key: str


@dataclass(frozen=True, kw_only=True)
class Video:
    """A replay's video, unchanged since it was scored."""

    path: Path
    frame_rate: Fraction
    starts_s: Sequence[float] | None
    """When each picture begins; None where each is shown for one period of the frame rate."""
    method: str
    """Whose maps it shows."""
    pictures: Mapping[Shown, int]
    """The number of the picture that shows each scored frame."""

    @property
    def megabytes(self) -> float:
        return self.path.stat().st_size / 1e6


def videos(sources: Sequence[Source]) -> list[Video]:
    """The videos of those sources that are a replay's; a film of several models is one video.

    Raises:
        DataError: a video was changed after the replay, or the results do not fit it.
    """
    found: dict[Path, Video] = {}
    for video in filter(None, map(_video, sources)):
        known = found.setdefault(video.path, video)
        if known is not video:
            found[video.path] = replace(known, pictures={**video.pictures, **known.pictures})
    return list(found.values())


def _video(source: Source) -> Video | None:
    told = source.summary.get("video")
    if told is None:
        return None
    # Only a name: results that came from elsewhere must not reach for other files.
    path = source.path.resolve().parent / Path(told["file"]).name
    if not path.is_file():
        return None
    if sha256_of(path) != told["sha256"]:
        raise DataError(f"{path}: differs from the video that {source.path} was scored with; replay again")
    pictures = _pictures(told, source.results.without_curves)
    if pictures is None:
        return None
    starts_s = told.get("starts_s")
    if starts_s is not None and pictures and max(pictures.values()) >= len(starts_s):
        raise DataError(
            f"{source.path}: video.starts_s has {len(starts_s)} pictures, its scores more; replay again"
        )
    return Video(
        path=path,
        frame_rate=Fraction(told["frame_rate"]),
        starts_s=starts_s,
        method=str(next(iter(source.summary["methods"]), "random")),
        pictures=pictures,
    )


def _pictures(told: Mapping[str, Any], per_frame: pd.DataFrame) -> dict[Shown, int] | None:
    """The picture of each scored frame; None where the results do not say it."""
    # A row may be one of several of its frame: of another target, method, measure or reference.
    scored = shown_of(per_frame.drop_duplicates(list(Shown._fields)))
    if "pictures" in told:
        noted = {(str(drive), int(frame)): int(picture) for drive, frame, picture in told["pictures"]}
        known = {each: noted.get((each.drive, each.frame)) for each in scored}
        return {each: picture for each, picture in known.items() if picture is not None}
    if "run_starts" not in told:
        return None
    return dict(zip(scored, _with_scores(told["run_starts"], len(scored)).tolist(), strict=True))


def shown_of(frames: pd.DataFrame) -> list[Shown]:
    """What shows each row of a table with `FRAME_COLUMNS`."""
    columns = (frames["drive"].astype(str), frames["camera"].astype(str), frames["frame"], frames["key"])
    return [
        Shown(drive, camera, int(frame), str(key)) for drive, camera, frame, key in zip(*columns, strict=True)
    ]


def _with_scores(run_starts: Sequence[int], count: int) -> Int64[np.ndarray, " N"]:
    """The first `count` numbers that are no run's first picture."""
    every = np.arange(count + len(run_starts))
    return np.setdiff1d(every, run_starts)[:count]


@dataclass(frozen=True, kw_only=True)
class Drive:
    """One drive's frames in the order of time."""

    name: str
    across: str
    """What the horizontal axis is: `s` since the first frame, or `image`."""
    frames: pd.DataFrame
    """`FRAME_COLUMNS`, prediction, truth, error; and `at`, the place along the axis."""
    values: Mapping[str, pd.DataFrame]
    """By measure/reference: a column for each method, a row for each frame."""
    corrected: Mapping[str, pd.DataFrame]
    """The same less what the unedited frame has already, where there is such: the model's own error, say."""


def drives(per_frame: pd.DataFrame) -> list[Drive]:
    """Splits rows by drive and camera, and puts the methods side by side."""
    frames = _frames(per_frame)
    groups = list(frames.groupby(["drive", "camera"], sort=False, dropna=False, observed=True))
    if len(groups) > MOST_DRIVES:
        return [
            _drive("all images", "image", frames.assign(at=np.arange(len(frames), dtype=float)), per_frame)
        ]
    return [
        _drive(_name(drive, camera, groups), *_along(of_drive), _rows_of(per_frame, of_drive))
        for (drive, camera), of_drive in groups
    ]


def _frames(per_frame: pd.DataFrame) -> pd.DataFrame:
    columns = [*FRAME_COLUMNS, *(name for name in ("prediction", "truth", "error") if name in per_frame)]
    return per_frame.drop_duplicates(FRAME_COLUMNS)[columns].reset_index(drop=True)


def _name(drive: Any, camera: Any, groups: Sequence[Any]) -> str:
    of_drive = sum(key[0] == drive for key, _ in groups)
    return f"{drive} ({camera})" if of_drive > 1 else str(drive)


def _along(frames: pd.DataFrame) -> tuple[str, pd.DataFrame]:
    times = frames["time_ns"].to_numpy(dtype=np.float64)
    if not np.isfinite(times).all() or len(np.unique(times)) < len(times):
        return "image", frames.assign(at=np.arange(len(frames), dtype=float))
    since_s = (frames["time_ns"] - frames["time_ns"].iloc[0]).to_numpy(dtype=np.float64) / 1e9
    return "s", frames.assign(at=since_s)


def _rows_of(per_frame: pd.DataFrame, frames: pd.DataFrame) -> pd.DataFrame:
    first = frames.iloc[0]
    same = per_frame["drive"].eq(first["drive"]) | (per_frame["drive"].isna() & pd.isna(first["drive"]))
    also = per_frame["camera"].eq(first["camera"]) | (per_frame["camera"].isna() & pd.isna(first["camera"]))
    chosen = same & also
    return per_frame if chosen.all() else per_frame[chosen]


def _drive(name: str, across: str, frames: pd.DataFrame, rows: pd.DataFrame) -> Drive:
    values, corrected = {}, {}
    # Numbered once: comparing seven columns for each line takes memory and time.
    both = pd.concat([frames[FRAME_COLUMNS], rows[FRAME_COLUMNS]], ignore_index=True)
    places = frame_numbers(both).to_numpy()[len(frames) :]
    scores = rows[["measure", "reference", "method", "value", "base_corrected"]].assign(place=places)
    for (measure, reference), scored in scores.groupby(["measure", "reference"], sort=False, observed=True):
        key = f"{measure}/{reference}"
        values[key] = _by_method(scored, "value", len(frames))
        corrected[key] = _by_method(scored, "base_corrected", len(frames)).fillna(values[key])
    return Drive(
        name=name,
        across=across,
        frames=frames.reset_index(drop=True),
        values=values,
        corrected=corrected,
    )


def _by_method(scored: pd.DataFrame, column: str, frames: int) -> pd.DataFrame:
    """A column for each method, in the order of the frames."""
    columns = {}
    for method, of_method in scored.groupby("method", sort=False, observed=True):
        line = np.full(frames, np.nan)
        line[of_method["place"].to_numpy()] = of_method[column].to_numpy(dtype=np.float64)
        columns[str(method)] = line
    return pd.DataFrame(columns)


@dataclass(frozen=True, kw_only=True)
class Pick:
    """A frame worth looking at."""

    kind: str
    """`best` or `worst`."""
    drive: int
    row: int
    """In the drive's frames."""


def picks(
    found: Sequence[Drive], key: str, method: str, *, higher_is_faithful: bool, count: int
) -> list[Pick]:
    """The frames with a method's most and least faithful values, from different moments.

    By the corrected values: the largest areas of all are often those of the model's largest errors.
    Neighbouring frames are alike, so each pick keeps a fiftieth of its drive's frames clear around it.

    Args:
        found: the drives of one source.
        key: measure/reference.
        method: whose values count.
        higher_is_faithful: which end is the best.
        count: of each kind, at most.
    """
    sign = 1.0 if higher_is_faithful else -1.0
    values, places = [np.empty(0)], [np.empty((0, 2), dtype=np.int64)]
    for number, drive in enumerate(found):
        if key in drive.corrected and method in drive.corrected[key]:
            of_drive = drive.corrected[key][method].to_numpy(dtype=np.float64)
            rows = np.flatnonzero(np.isfinite(of_drive))
            values.append(sign * of_drive[rows])
            places.append(np.stack([np.full(len(rows), number), rows], 1))
    scored = np.concatenate(places)[np.argsort(np.concatenate(values), kind="stable")]
    worst = list(_apart(scored, found, count))
    taken = set(worst)
    best = [place for place in _apart(scored[::-1], found, count) if place not in taken]
    return [Pick(kind="best", drive=number, row=row) for number, row in best] + [
        Pick(kind="worst", drive=number, row=row) for number, row in worst
    ]


def _apart(scored: Int64[np.ndarray, "N 2"], found: Sequence[Drive], count: int) -> Iterator[tuple[int, int]]:
    taken: list[tuple[int, int]] = []
    for number, row in map(np.ndarray.tolist, scored):
        clear = max(1, len(found[number].frames) // 50)
        if all(other != number or abs(at - row) >= clear for other, at in taken):
            taken.append((number, row))
            yield number, row
        if len(taken) == count:
            return
