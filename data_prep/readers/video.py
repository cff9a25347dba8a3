"""A video file as a drive without labels."""

from __future__ import annotations

from pathlib import Path

from data_prep.errors import DataError
from data_prep.readers.paths import drive_name, visible
from data_prep.schema import VEHICLES, Drive
from data_prep.video import Video

NAME = "video"
SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".mkv", ".avi", ".webm", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"}
    | {".hevc", ".h265", ".265", ".h264", ".264"}
)


def recognises(source: Path) -> bool:
    """Whether the source is a file with a video's suffix, or a folder that holds one directly."""
    return bool(_files(source))


def drives(source: Path, *, vehicle: str = "lincoln-mkz", rate: float | None = None) -> list[Drive]:
    """Reads a video file, or every video directly inside a folder; times are those of the frames.

    Args:
        source: the file or folder.
        vehicle: a name in `VEHICLES`, for turning a prediction into an angle.
        rate: frames a second of raw streams, which have no times; refused for every other video.

    Raises:
        DataError: there is no video, or one cannot be opened, holds no frame, or has no times and no rate is given.
    """
    if vehicle not in VEHICLES:
        raise DataError(f"vehicle {vehicle!r} is unknown; choose one of {', '.join(VEHICLES)}")
    files = _files(source)
    if not files:
        raise DataError(f"{source}: no video found; expected a file ending in {', '.join(sorted(SUFFIXES))}")
    return [_drive(path, vehicle, rate) for path in files]


def _files(source: Path) -> list[Path]:
    candidates = visible(source) if source.is_dir() else [source]
    return [path for path in candidates if path.is_file() and path.suffix.lower() in SUFFIXES]


def _drive(path: Path, vehicle: str, rate: float | None) -> Drive:
    video = Video.index(path, rate_hz=rate)
    damaged = tuple(f"{path.name} before frame {number}" for number in video.damaged_before)
    return Drive(
        name=drive_name(path),
        source=NAME,
        camera="video",
        vehicle=VEHICLES[vehicle],
        time_ns=video.time_ns,
        images=video,
        left_out={"damaged_packet": damaged} if damaged else {},
        provenance={
            "file": path.name,
            "bytes": path.stat().st_size,
            "size": f"{video.width}x{video.height}",
            "codec": video.codec,
            "frames": len(video),
        },
    )
