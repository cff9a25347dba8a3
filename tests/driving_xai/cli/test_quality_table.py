"""The table that prep and info print: the report's own numbers, and nothing that a terminal cannot show."""

from __future__ import annotations

from driving_xai.cli.quality_table import lines

DRIVE = {
    "read": 1200,
    "kept": 1197,
    "dropped": {"undecodable_image": 3},
    "left_out": {"missing_image": {"count": 7, "first": ["a"]}},
    "segments": 2,
    "by_split": {"gap": 80, "test": 200, "train": 717, "val": 200},
    "rate_hz": 20.0,
    "jitter_ms": 1.25,
    "longest_gap_s": 0.3,
    "label_histogram": {"edges_deg": [0.0], "counts": [10, 1]},
}


def test_a_drive_is_a_row_with_every_loss():
    heading, row = lines("sequences", {"a": DRIVE})
    assert heading.split()[:3] == ["drive", "read", "kept"]
    cells = [cell.strip() for cell in row.split("  ") if cell.strip()]
    assert cells == [
        "a",
        "1,200",
        "1,197",
        "20.000",
        "1.250",
        "0.300",
        "2",
        "717 train, 200 val, 200 test, 80 gap",
        "|@.|",
        "7 missing_image, 3 undecodable_image",
    ]
    assert all(line.isascii() for line in (heading, row))


def test_drives_without_labels_or_time_and_image_sets():
    alone = DRIVE | {"label_histogram": None, "rate_hz": None, "jitter_ms": None, "longest_gap_s": None}
    assert "unlabelled" in lines("sequences", {"a": alone})[1]
    report = {
        "read": 5,
        "kept": 4,
        "dropped": {},
        "left_out": {},
        "by_split": {"train": 4},
        "labels": {"stop": {"0": 1, "1": 3}, "left": {"0": 4}},
    }
    assert lines("images", {"a": report})[1].split() == [
        "a",
        "5",
        "4",
        "4",
        "train",
        "3",
        "stop,",
        "0",
        "left",
        "-",
    ]
