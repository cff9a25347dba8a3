"""Results as a recording for the Rerun viewer, for people who live in it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data_prep.shards.atomic import replacing
from driving_xai.errors import UnsupportedModelError
from driving_xai.report.sources import Source
from driving_xai.report.timeline import Drive, Video, drives, videos

_TIMELINE = "drive_time"


def write_recording(sources: Sequence[Source], out: Path) -> None:
    """Writes every frame's numbers, and the videos, along the time of the drive.

    Raises:
        UnsupportedModelError: Rerun is not installed.
        DataError: a video does not fit its results.
    """
    try:
        import rerun
    except ImportError:
        raise UnsupportedModelError(
            "--rrd needs the Rerun SDK, which is not installed; pip install '.[rerun]' in the source folder"
        ) from None
    shown = videos(sources)
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        # The identity follows from the content: the same results give the same recording.
        stream = rerun.RecordingStream("driving-xai", recording_id="-".join(_hashes(sources)))
        stream.save(str(temporary))
        for source in sources:
            for drive in drives(source.results.without_curves):
                _log_numbers(rerun, stream, f"{source.label}/{drive.name}", drive)
        for at, video in enumerate(shown):
            _log_video(rerun, stream, f"video/{at}", video)
        stream.flush()
        stream.disconnect()


def _hashes(sources: Sequence[Source]) -> list[str]:
    return [str(each)[:12] for source in sources for each in source.summary["files"].values()]


def _log_numbers(rerun: Any, stream: Any, root: str, drive: Drive) -> None:
    at = drive.frames["at"].to_numpy(dtype=np.float64)
    lines = {name: drive.frames[name] for name in ("prediction", "truth", "error") if name in drive.frames}
    for key, table in drive.values.items():
        lines |= {f"{key}/{method}": table[method] for method in table}
    for name, values in lines.items():
        numbers = values.to_numpy(dtype=np.float64)
        known = np.isfinite(numbers)
        if known.any():
            stream.send_columns(
                f"{root}/{name}",
                indexes=[rerun.TimeColumn(_TIMELINE, duration=at[known])],
                columns=rerun.Scalars.columns(scalars=numbers[known]),
            )


def _log_video(rerun: Any, stream: Any, name: str, video: Video) -> None:
    asset = rerun.AssetVideo(path=str(video.path))
    stream.log(name, asset, static=True)
    stamps_ns = asset.read_frame_timestamps_nanos()
    stream.send_columns(
        name,
        indexes=[rerun.TimeColumn(_TIMELINE, duration=1e-9 * np.asarray(stamps_ns))],
        columns=rerun.VideoFrameReference.columns_nanos(stamps_ns),
    )
