"""The picture shows what the report says: colours where the parts are, bars as high as the counts."""

from __future__ import annotations

import numpy as np
import pandas as pd

from data_prep import quality, quality_figure
from data_prep.geometry import decode_image

BLUE, ORANGE, GREEN, GREY, INK = (0, 114, 178), (230, 159, 0), (0, 158, 115), (150, 150, 150), (40, 40, 40)


def report_of(rows: pd.DataFrame) -> dict:
    left_out = {"missing_image": ("a.jpg",)}
    return quality.of_drive(
        rows, frames_read=len(rows), dropped={}, left_out=left_out, signal_samples_dropped={}
    )


def drive(parts: list[str], degrees: np.ndarray, *, hole_at: int | None = None) -> pd.DataFrame:
    count = len(parts)
    time_ns = np.arange(count, dtype=np.int64) * 50_000_000
    segment = np.zeros(count, dtype=np.int32)
    if hole_at is not None:
        time_ns[hole_at:] += count * 50_000_000
        segment[hole_at:] = 1
    return pd.DataFrame(
        {
            "drive": "a",
            "time_ns": time_ns,
            "segment": segment,
            "split": parts,
            "block": 0,
            "steering_wheel_rad": np.radians(degrees),
        }
    )


def pixels(image: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Where the picture is nearly of this colour: lines are smoothed."""
    return np.argwhere(np.abs(image.astype(int) - colour).sum(axis=2) < 75)


def test_each_part_has_its_share_of_the_band_and_a_hole_is_blank():
    rows = drive(["train"] * 200 + ["gap"] * 20 + ["val"] * 80, np.zeros(300), hole_at=100)
    image = quality_figure.draw("sequences", {"a": report_of(rows)}, rows)
    foot = image[145, 16:636]
    assert image.shape[1] == 960
    # The hole doubles the time: 100 frames, a blank of 301 periods, then 100, 20 and 80 frames.
    for colour, expected in ((BLUE, 200 / 599), (GREY, 20 / 599), (ORANGE, 80 / 599)):
        assert abs((foot == colour).all(axis=1).mean() - expected) < 0.01
    assert abs((foot == 255).all(axis=1).mean() - 301 / 599) < 0.02


def test_left_is_up_and_bars_are_as_high_as_their_counts():
    degrees = np.concatenate([np.full(100, -30.0), np.full(50, 7.0)])
    rows = drive(["train"] * 100 + ["test"] * 50, degrees)
    image = quality_figure.draw("sequences", {"a": report_of(rows)}, rows)
    track = image[30:141, 16:636]
    right, left = pixels(track, BLUE)[:, 0].mean(), pixels(track, GREEN)[:, 0].mean()
    middle = 146 - 30 - 58
    assert right > middle > left
    bars = image[30:146, 690:944]
    heights = (bars == INK).all(axis=2).sum(axis=0)
    values, counts = np.unique(heights[heights > 10], return_counts=True)
    assert len(values) == 2
    assert abs(values[0] / values[1] - 0.5) < 0.02
    assert (counts > 8).all()


def test_unlabelled_drives_and_image_sets_are_drawn():
    rows = drive(["test"] * 30, np.full(30, np.nan))
    image = quality_figure.draw("sequences", {"a": report_of(rows)}, rows)
    assert len(pixels(image[30:150], GREEN)) > 600
    images = pd.DataFrame(
        {
            "split": ["train", "train", "val", "test"],
            "group": list("abcd"),
            "stop": [1, 1, 1, 0],
            "go": [0, 0, 0, 1],
        }
    )
    report = quality.of_images(images, ("stop", "go"), images_read=4, left_out={}, dropped={})
    image = quality_figure.draw("images", {"a": report}, images)[30:146]
    train, val, test = (len(pixels(image, colour)) for colour in (BLUE, ORANGE, GREEN))
    assert abs(train / val - 2) < 0.1
    assert abs(test / val - 1) < 0.1


def test_many_drives_are_counted_and_the_file_is_a_png():
    rows = pd.concat([drive(["test"] * 5, np.zeros(5)).assign(drive=str(n)) for n in range(15)])
    reports = {str(n): report_of(rows[rows["drive"] == str(n)]) for n in range(15)}
    image = quality_figure.draw("sequences", reports, rows)
    assert image.shape == (12 * 190 + 30, 960, 3)
    assert len(pixels(image[-30:, 700:], INK)) > 20  # the note on the other three
    assert np.array_equal(decode_image(quality_figure.encode(image), name="figure"), image)
