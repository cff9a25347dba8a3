"""What a planned preparation will give: frames, losses by reason, size and time, before anything is written."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_prep.decoding import decoded
from data_prep.drive_job import DriveJob, DriveUnit
from data_prep.errors import DataError
from data_prep.geometry import decode_image, read_bytes
from data_prep.image_job import ImageJob
from data_prep.jobs import Job
from data_prep.shards.hdf5 import FRAMES_PER_CHUNK

_SAMPLES = 24
"""Frames that are decoded to measure the time of one."""


class Forecast(NamedTuple):
    """What is known of a run before it begins."""

    read: int
    """Frames or images that the source has."""
    kept: int
    left_out: dict[str, int]
    """Reason to how many are lost; what turns out only when an image is decoded is not among them."""
    shards: int
    megabytes: float
    minutes: float
    """Measured on a few frames of this machine; writing and hashing not counted."""

    def sentence(self, what: str) -> str:
        """In words.

        Example:
            >>> Forecast(120, 117, {"no_control": 3}, 1, 4.5, 0.02).sentence("frames")
            '120 frames read, 117 kept (left out: 3 no_control); 1 shard of 4.5 MB in all, about 2 s'
        """
        lost = ", ".join(f"{count:,} {reason}" for reason, count in self.left_out.items())
        files = "1 shard" if self.shards == 1 else f"{self.shards:,} shards"
        needed = f"{self.minutes:,.0f} min" if self.minutes >= 1.5 else f"{60 * self.minutes + 0.5:.0f} s"
        return (
            f"{self.read:,} {what} read, {self.kept:,} kept (left out: {lost or 'none'}); "
            f"{files} of {self.megabytes:,.1f} MB in all, about {needed}"
        )


def forecast(job: Job, *, workers: int = 1) -> Forecast:
    """Counts what the plan keeps, and decodes a few frames to measure their time.

    Args:
        job: the plan, from `read_job`.
        workers: how many threads or processes will share the work.

    Raises:
        DataError: not one of the frames that were tried can be decoded.
    """
    if isinstance(job, DriveJob):
        return _of_drives(job, workers)
    assert isinstance(job, ImageJob)
    return _of_images(job, workers)


def _of_drives(job: DriveJob, workers: int) -> Forecast:
    lost: Counter[str] = Counter()
    for drive, aligned in zip(job.drives, job.aligned, strict=True):
        lost.update({reason: len(frames) for reason, frames in aligned.dropped.items() if len(frames)})
        lost.update({reason: len(rows) for reason, rows in drive.left_out.items() if rows})
    kept = sum(map(len, job.aligned))
    frame_s = _frame_s(job)
    read = sum(map(len, job.drives)) + sum(
        len(rows) for each in job.drives for rows in each.left_out.values()
    )
    frame_bytes = job.geometry.height * job.geometry.width * (3 if job.drives[0].causes is None else 4)
    megabytes = sum(map(_frames_stored, job.units)) * frame_bytes / 1e6
    return Forecast(read, kept, dict(lost), len(job.units), megabytes, kept * frame_s / workers / 60)


def _frames_stored(unit: DriveUnit) -> int:
    """Frames lie in whole chunks."""
    count = unit.stop - unit.start
    chunk = min(FRAMES_PER_CHUNK, count)
    return -(-count // chunk) * chunk


def _frame_s(job: DriveJob) -> float:
    """Seconds for one frame, over the first frames of the first drive."""
    wanted = job.aligned[0].frame[:_SAMPLES]
    begun = time.perf_counter()
    tried = sum(1 for _ in decoded(job.drives[0], wanted, job.geometry, threads=1))
    return (time.perf_counter() - begun) / max(tried, 1)


def _of_images(job: ImageJob, workers: int) -> Forecast:
    images = job.images
    lost = {reason: len(rows) for reason, rows in images.left_out.items() if rows}
    files = [item.path for item in images.items if item.path is not None]
    sampled = [files[n] for n in np.linspace(0, len(files) - 1, min(_SAMPLES, len(files))).astype(int)]
    begun = time.perf_counter()
    sizes = [size for path in sampled if (size := _decoded_bytes(path, job)) is not None]
    image_s = (time.perf_counter() - begun) / max(len(sampled), 1)
    if sampled and not sizes:
        raise DataError(f"{images.name}: none of {len(sampled)} images that were tried can be decoded")
    megabytes = len(images) * float(np.mean(sizes or [0])) / 1e6
    minutes = len(images) * image_s / workers / 60
    read = len(images) + sum(lost.values())
    return Forecast(read, len(images), lost, len(job.units), megabytes, minutes)


def _decoded_bytes(path: Path, job: ImageJob) -> int | None:
    """What an image takes as it is stored; None where it cannot be decoded."""
    try:
        data = read_bytes(path)
        image = decode_image(data, name=path.name)
    except DataError:
        return None
    if job.geometry is None:
        return len(data)
    # A resized image is JPEG again; its share of the pixels is near its share of the bytes.
    return int(len(data) * job.geometry.height * job.geometry.width / (image.shape[0] * image.shape[1]))
