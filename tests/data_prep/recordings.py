"""Small recordings in the layouts that the readers know, written anew for each test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

START_NS = 1479425441182877835
PERIOD_NS = 50_000_001
"""20 Hz, and not a multiple of anything that a float would keep."""


def scene(number: int, height: int = 48, width: int = 64) -> np.ndarray:
    """An RGB image that differs from frame to frame and compresses well."""
    rows, columns = np.mgrid[0:height, 0:width]
    channels = [rows * 3 + number, columns * 2 + 5 * number, rows + columns + 11 * number]
    return (np.stack(channels, axis=2) % 256).astype(np.uint8)


def jpeg(number: int, height: int = 48, width: int = 64) -> bytes:
    written, data = cv2.imencode(".jpg", scene(number, height, width)[..., ::-1])
    assert written
    return data.tobytes()


def challenge(
    folder: Path,
    frames: int = 60,
    *,
    times: Sequence[int] | None = None,
    angles: Sequence[float] | None = None,
) -> Path:
    """Udacity challenge 2: `center/<ns>.jpg` and `CH2_final_evaluation.csv`."""
    times = [START_NS + i * PERIOD_NS for i in range(frames)] if times is None else times
    angles = [0.1 * np.sin(i / 7) for i in range(len(times))] if angles is None else angles
    (folder / "center").mkdir(parents=True)
    for number, stamp in enumerate(times):
        (folder / "center" / f"{stamp}.jpg").write_bytes(jpeg(number))
    lines = [f"{stamp},{float(angle)!r},0" for stamp, angle in zip(times, angles, strict=True)]
    text = "\n".join(["frame_id,steering_angle,public", *lines, ""])
    (folder / "CH2_final_evaluation.csv").write_text(text)
    return folder


def interpolated(folder: Path, frames: int = 12, *, timestamp: str = "{}", start_ns: int = START_NS) -> Path:
    """udacity-driving-reader: `interpolated.csv` of three cameras, angles and speeds rising row by row."""
    lines = ["index,timestamp,width,height,frame_id,filename,angle,torque,speed,lat,long,alt"]
    for number in range(3 * frames):
        camera = ("left", "center", "right")[number % 3]
        stamp = start_ns + number * PERIOD_NS // 3
        (folder / camera).mkdir(parents=True, exist_ok=True)
        (folder / camera / f"{stamp}.jpg").write_bytes(jpeg(number))
        cells = ("x", timestamp.format(stamp), 64, 48, f"{camera}_camera", f"{camera}/{stamp}.jpg")
        lines.append(",".join(map(str, (*cells, number / 100, 0.1, 10 + number, 0, 0, 0))))
    (folder / "interpolated.csv").write_text("\n".join([*lines, ""]))
    return folder


def simulator(
    folder: Path,
    steering: Sequence[float],
    *,
    root: str = "/Users/somebody/sim/IMG/",
    separator: str = ",",
    header: bool = False,
) -> Path:
    """The simulator's `driving_log.csv` with the absolute paths of another machine, at 10 Hz and 20 mph."""
    (folder / "IMG").mkdir(parents=True)
    lines = ["center,left,right,steering,throttle,brake,speed"] if header else []
    for number, value in enumerate(steering):
        stamp = f"2018_07_19_21_36_{number // 10:02d}_{number % 10 * 100:03d}"
        for camera in ("center", "left", "right"):
            (folder / "IMG" / f"{camera}_{stamp}.jpg").write_bytes(jpeg(number))
        cells = [
            *(f"{root}{camera}_{stamp}.jpg" for camera in ("center", "left", "right")),
            value,
            0.5,
            0,
            20,
        ]
        lines.append(separator.join(map(str, cells)))
    (folder / "driving_log.csv").write_text("\n".join([*lines, ""]))
    return folder
