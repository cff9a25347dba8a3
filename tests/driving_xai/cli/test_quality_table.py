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


def test_a_drive_has_every_loss_in_80_columns():
    assert lines("sequences", {"a": DRIVE}) == [
        "a: 1,197 kept of 1,200 read",
        "  split      717 train, 200 val, 200 test, 80 gap",
        "  left out   7 missing_image, 3 undecodable_image",
        "  clock      20.000 Hz, jitter 1.250 ms, longest gap 0.300 s, 2 segments",
        "  angles     |@.|  -180 to 180 deg",
    ]


def test_long_names_and_many_losses_are_wrapped():
    lost = {f"reason_number_{n}": n for n in range(1, 20)}
    report = DRIVE | {"dropped": lost, "segments": 1, "label_histogram": {"counts": [3] * 40}}
    shown = lines("sequences", {"a-name-" * 20: report})
    assert all(len(line) <= 80 and line.isascii() for line in shown)
    assert all(f"{count} {reason}" in " ".join(" ".join(shown).split()) for reason, count in lost.items())


def test_drives_without_labels_or_time_and_image_sets():
    alone = DRIVE | {"label_histogram": None, "rate_hz": None, "jitter_ms": None, "longest_gap_s": None}
    shown = lines("sequences", {"a": alone})
    assert shown[3:] == [
        "  clock      - Hz, jitter - ms, longest gap - s, 2 segments",
        "  angles     unlabelled",
    ]
    report = {
        "read": 5,
        "kept": 4,
        "dropped": {},
        "left_out": {},
        "by_split": {"train": 4},
        "labels": {"stop": {"0": 1, "1": 3}, "left": {"0": 4}},
    }
    assert lines("images", {"a": report})[-1] == "  positives  3 stop, 0 left"
