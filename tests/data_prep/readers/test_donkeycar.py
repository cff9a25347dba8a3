"""Donkeycar tubs in both versions: order, deleted records, and damage that costs one record."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from data_prep.errors import DataError
from data_prep.geometry import read_image
from data_prep.prepare import PrepConfig, prepare
from data_prep.readers import recognise
from data_prep.readers.donkeycar import drives
from data_prep.shards.parquet import read_index
from tests.data_prep.recordings import jpeg

INPUTS = ["cam/image_array", "user/angle", "user/throttle", "user/mode"]
TYPES = ["image_array", "float", "float", "str"]
START_MS = 1_600_000_000_000


def tub_v2(folder, angles, *, deleted=(), per_catalog=10):
    """`manifest.json` of five lines, catalogs of JSON lines that end in CR LF, and `images/`."""
    (folder / "images").mkdir(parents=True)
    names, lines = [], []
    for number, angle in enumerate(angles):
        image = f"{number}_cam_image_array_.jpg"
        (folder / "images" / image).write_bytes(jpeg(number))
        record = {
            "_index": number,
            "_session_id": "20-09-13_0",
            "_timestamp_ms": START_MS + 50 * number,
            "cam/image_array": image,
            "user/angle": angle,
            "user/mode": "user",
            "user/throttle": 0.3,
        }
        lines.append(json.dumps(record, sort_keys=True))
    for start in range(0, len(lines), per_catalog):
        names.append(f"catalog_{start // per_catalog}.catalog")
        (folder / names[-1]).write_bytes(
            "".join(f"{line}\r\n" for line in lines[start : start + per_catalog]).encode()
        )
    catalogs = {
        "paths": names,
        "current_index": len(angles),
        "max_len": per_catalog,
        "deleted_indexes": list(deleted),
    }
    manifest = [INPUTS, TYPES, {}, {"created_at": 1.6e9}, catalogs]
    (folder / "manifest.json").write_bytes("".join(f"{json.dumps(line)}\r\n" for line in manifest).encode())
    return folder


def tub_v1(folder, angles):
    """`meta.json`, `record_N.json` and the images in one folder."""
    folder.mkdir(parents=True)
    (folder / "meta.json").write_text(json.dumps({"inputs": INPUTS, "types": TYPES, "start": 1.5e9}))
    for number, angle in enumerate(angles):
        image = f"{number}_cam-image_array_.jpg"
        (folder / image).write_bytes(jpeg(number))
        record = {
            "cam/image_array": image,
            "user/angle": angle,
            "user/throttle": 0.3,
            "milliseconds": 50 * number,
        }
        (folder / f"record_{number}.json").write_text(json.dumps(record))
    return folder


ANGLES = np.round(np.linspace(-0.9, 0.9, 25), 6).tolist()


@pytest.mark.parametrize("make", [tub_v1, tub_v2])
def test_records_are_in_order_and_right_is_negative(make, tmp_path):
    tub = make(tmp_path / "tub_1", ANGLES)
    assert recognise(tub) == "donkeycar"
    (drive,) = drives(tub, full_lock_deg=20.0, wheelbase_m=0.17)
    assert (drive.name, drive.vehicle.wheelbase_m, len(drive)) == ("tub_1", 0.17, 25)
    np.testing.assert_allclose(np.degrees(drive.steering_wheel.value), -20 * np.array(ANGLES))
    assert np.diff(drive.time_ns).tolist() == [50_000_000] * 24
    for number, image in zip((9, 10, 11), drive.images.read(9, 12), strict=True):
        folder = tub if make is tub_v1 else tub / "images"
        (file,) = folder.glob(f"{number}_*.jpg")
        assert np.array_equal(image, read_image(file))


def test_deleted_and_damaged_records_are_left_out_and_counted(tmp_path):
    tub = tub_v2(tmp_path / "tub", ANGLES, deleted=[3, 12])
    catalog = tub / "catalog_1.catalog"
    lines = catalog.read_text().splitlines()
    lines[4] = lines[4][:40]
    lines[5] = lines[5].replace('"user/angle": ', '"user/angle": 7')
    catalog.write_text("\n".join(lines))
    (tub / "images" / "20_cam_image_array_.jpg").unlink()
    (drive,) = drives(tub)
    assert len(drive) == 20
    assert {reason: len(names) for reason, names in drive.left_out.items()} == {
        "deleted": 2,
        "damaged_record": 2,
        "missing_image": 1,
    }
    assert drive.provenance["records"] == 25
    manifest = prepare(PrepConfig(reader="donkeycar", source=tub, split="train"), tmp_path / "out")
    assert manifest.quality["tub"]["kept"] == 20
    assert manifest.vehicle["name"] == "donkeycar"


def test_several_tubs_and_labels_in_curvature(tmp_path):
    tub_v2(tmp_path / "in" / "tub_b", [1.0] * 9)
    tub_v1(tmp_path / "in" / "tub_a", [0.5] * 9)
    assert [drive.name for drive in drives(tmp_path / "in")] == ["tub_a", "tub_b"]
    config = PrepConfig(reader="donkeycar", source=tmp_path / "in" / "tub_b", split="train", smoothing=1.0)
    prepare(config, tmp_path / "out")
    label = read_index(tmp_path / "out")["inverse_turning_radius"]
    np.testing.assert_allclose(label, -math.radians(25) / 0.26)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda tub: (tub / "manifest.json").write_text("{}"), "no manifest of a tub, expected five lines"),
        (
            lambda tub: (tub / "manifest.json").write_text("[]\n[]\n{}\n{}\n" + "[" * 9999),
            "no manifest of a tub",
        ),
        (lambda tub: (tub / "catalog_0.catalog").unlink(), "no tub found|is not there; copy the tub again"),
        (
            lambda tub: (tub / "catalog_0.catalog").write_bytes(b"\0\xff" * 99),
            r"no record can be used \(1 damaged",
        ),
        (
            lambda tub: (tub / "manifest.json").write_text('[]\n[]\n{}\n{}\n{"paths": ["../../x"]}'),
            "leads outside",
        ),
        (
            lambda tub: (tub / "catalog_0.catalog").write_text(
                (tub / "catalog_0.catalog").read_text().replace("0_cam", "../../0_cam")
            ),
            "leads outside",
        ),
    ],
)
def test_damaged_tubs_are_one_line(damage, message, tmp_path):
    tub = tub_v2(tmp_path / "tub", ANGLES[:5])
    damage(tub)
    with pytest.raises(DataError, match=message) as error:
        drives(tub)
    assert "\n" not in str(error.value)


def test_other_refusals(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no tub found; expected manifest.json with catalogs, or meta.json"):
        drives(tmp_path / "empty")
    tub = tub_v2(tmp_path / "tub", ANGLES[:3])
    with pytest.raises(DataError, match="wheelbase_m is 99; expected"):
        drives(tub, wheelbase_m=99.0)
    with pytest.raises(DataError, match="full_lock_deg is -5; expected"):
        drives(tub, full_lock_deg=-5.0)
