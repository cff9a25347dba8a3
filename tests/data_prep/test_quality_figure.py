"""The figure shows what the report says: colours where the parts are, bars as high as the counts."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from data_prep import quality, quality_figure
from data_prep.geometry import decode_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.quality_figure import COLOURS
from data_prep.sample_frames import sample_frames
from data_prep.shards.hdf5 import read_frames
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import challenge, jpeg


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


def runs(axes):
    """(part, times, angles) of each line that is a run of steering, in order."""
    names = {colour: part for part, colour in COLOURS.items()}
    lines = [line for line in axes.lines if line.get_linewidth() == 0.9]
    return [(names[to_hex(line.get_color())], line.get_xdata(), line.get_ydata()) for line in lines]


def test_each_run_has_its_part_its_times_and_its_angles_and_a_hole_is_blank():
    degrees = np.linspace(-30, 10, 300)
    rows = drive(["train"] * 200 + ["gap"] * 20 + ["val"] * 80, degrees, hole_at=100)
    track, _ = quality_figure.draw("sequences", {"a": report_of(rows)}, rows).axes
    found = runs(track)
    assert [part for part, _, _ in found] == ["train", "train", "gap", "val"]
    assert [len(times) for _, times, _ in found] == [100, 100, 20, 80]
    assert found[0][1][-1] == pytest.approx(4.95)
    assert found[1][1][0] == pytest.approx(20.0)
    np.testing.assert_allclose(np.concatenate([angles for _, _, angles in found]), degrees)
    bands = [line for line in track.lines if line.get_linewidth() == 4]
    assert [tuple(line.get_xdata()) for line in bands] == [(times[0], times[-1]) for _, times, _ in found]


def test_bars_stand_between_the_edges_of_their_bins():
    rows = drive(["train"] * 100 + ["test"] * 50, np.concatenate([np.full(100, -30.0), np.full(50, 7.0)]))
    report = report_of(rows)
    _, histogram = quality_figure.draw("sequences", {"a": report}, rows).axes
    assert [bar.get_height() for bar in histogram.patches] == report["label_histogram"]["counts"]
    edges = dict(
        zip(histogram.get_xticks(), (t.get_text() for t in histogram.get_xticklabels()), strict=True)
    )
    (low,) = [bar for bar in histogram.patches if bar.get_height() == 100]
    assert edges[round(low.get_center()[0] - 0.5)] == "-45"
    assert edges[round(low.get_center()[0] + 0.5)] == "-20"


def test_unlabelled_drives_show_their_parts_and_image_sets_their_positives():
    rows = drive(["test"] * 30, np.full(30, np.nan))
    track, note = quality_figure.draw("sequences", {"a": report_of(rows)}, rows).axes
    assert [line for line in track.lines if line.get_linewidth() == 4]
    assert note.texts[0].get_text() == "no steering recorded"
    images = pd.DataFrame(
        {
            "split": ["train", "train", "val", "test"],
            "group": list("abcd"),
            "stop": [1, 1, 1, 0],
            "go": [0, 0, 0, 1],
        }
    )
    report = quality.of_images(images, ("stop", "go"), images_read=4, left_out={}, dropped={})
    (axes,) = quality_figure.draw("images", {"a": report}, images).axes
    bars = [(to_hex(bar.get_facecolor()), bar.get_y(), bar.get_height()) for bar in axes.patches]
    train, val, test = (COLOURS[part] for part in ("train", "val", "test"))
    assert bars == [(train, 0, 2), (train, 0, 0), (val, 2, 1), (val, 0, 0), (test, 3, 0), (test, 0, 1)]


def test_many_drives_are_counted_and_the_file_is_a_png_of_the_same_bytes():
    rows = pd.concat([drive(["test"] * 5, np.zeros(5)).assign(drive=str(n)) for n in range(15)])
    reports = {str(n): report_of(rows[rows["drive"] == str(n)]) for n in range(15)}
    figure = quality_figure.draw("sequences", reports, rows)
    assert len(figure.axes) == 2 * quality_figure.MOST_PANELS
    assert figure.texts[-1].get_text() == "and 3 more drives"
    data = quality_figure.encode(figure)
    assert data == quality_figure.encode(quality_figure.draw("sequences", reports, rows))
    assert decode_image(data, name="figure").shape == (3160, 1000, 3)


def test_names_that_the_font_lacks_and_signs_of_formulas_are_drawn():
    rows = drive(["test"] * 5, np.zeros(5)).assign(drive="行车$x_$")
    figure = quality_figure.draw("sequences", {"行车$x_$": report_of(rows)}, rows)
    assert figure.axes[0].get_title(loc="left").startswith("??$x_$   5 kept")
    assert quality_figure.encode(figure)


def test_sample_frames_are_the_stored_ones_with_their_labels(tmp_path):
    source = challenge(tmp_path / "in", 30)
    prepare(PrepConfig(reader="udacity-csv", source=source, split="train"), tmp_path / "out")
    index = read_index(tmp_path / "out")
    samples = sample_frames(tmp_path / "out", index, count=4)
    numbers = [0, 9, 19, 29]
    for sample, number in zip(samples, numbers, strict=True):
        row = index.iloc[number]
        (stored,) = read_frames(tmp_path / "out" / row["shard"], row["row"], row["row"] + 1)
        np.testing.assert_array_equal(sample.image, stored)
        angle_deg = np.degrees(row["steering_wheel_rad_smoothed"])
        assert f"{angle_deg:+.1f} deg" in sample.caption
    report = report_of(index)
    figure = quality_figure.draw("sequences", {index["drive"].iloc[0]: report}, index, samples)
    shown = [axes.images[0].get_array() for axes in figure.axes if axes.images]
    for picture, sample in zip(shown, samples, strict=True):
        np.testing.assert_array_equal(picture, sample.image)
    assert all(len(axes.get_xticks()) and len(axes.get_yticks()) for axes in figure.axes)


def test_sample_images_bear_the_names_of_their_labels(tmp_path):
    for name in ("stop", "go"):
        (tmp_path / "in" / name).mkdir(parents=True)
        (tmp_path / "in" / name / "0.jpg").write_bytes(jpeg(len(name)))
    prepare(PrepConfig(reader="image-folder", source=tmp_path / "in"), tmp_path / "out")
    samples = sample_frames(tmp_path / "out", read_index(tmp_path / "out"))
    assert {sample.caption.splitlines()[1] for sample in samples} == {"stop", "go"}
