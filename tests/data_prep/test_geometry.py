"""Decoding that never guesses, and a crop and resize that equal their definition."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_prep.errors import DataError
from data_prep.geometry import (
    MAX_IMAGE_BYTES,
    Geometry,
    ImageFiles,
    MissingImageError,
    decode_image,
    decode_jpeg,
    jpeg_size,
    read_image,
)
from tests.data_prep.recordings import jpeg, scene


def naive_area(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Each output pixel is the mean of its block, in float64."""
    rows, columns = image.shape[0] // height, image.shape[1] // width
    result = np.empty((height, width, 3))
    for y in range(height):
        for x in range(width):
            block = image[y * rows : (y + 1) * rows, x * columns : (x + 1) * columns]
            result[y, x] = block.reshape(-1, 3).mean(axis=0)
    return result


def test_shrinking_is_the_mean_of_each_block():
    image = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    made = Geometry(crop_top=0.2, crop_bottom=0.2, crop_left=0.1, crop_right=0.1, height=9, width=16).apply(
        image
    )
    assert np.abs(made - naive_area(image[12:48, 8:72], 9, 16)).max() <= 0.5


@given(down=st.integers(1, 17), across=st.integers(1, 17), top=st.integers(0, 1), seed=st.integers(0, 999))
def test_shrinking_by_whole_factors_is_opencvs_to_the_last_bit(down, across, top, seed):
    rng = np.random.default_rng(seed)
    spread = rng.choice([1, 30, 255])
    image = rng.integers(255 - spread, 256, ((3 + top) * down, 5 * across, 3), dtype=np.uint8)
    made = Geometry(crop_top=top * 1 / (3 + top), height=3, width=5).apply(image)
    expected = cv2.resize(image[top * down :], (5, 3), interpolation=cv2.INTER_AREA)
    assert np.array_equal(made, expected)


def test_growing_interpolates_between_neighbours():
    image = np.zeros((1, 2, 3), dtype=np.uint8)
    image[0, 1] = 100
    # Output pixel centres lie at -1/4, 1/4, 3/4 and 5/4 of the two source centres.
    assert Geometry(height=1, width=4).apply(image)[0, :, 0].tolist() == [0, 25, 75, 100]


def test_an_image_of_the_right_size_is_copied_not_changed():
    image = scene(3, 80, 160)
    made = Geometry().apply(image)
    assert np.array_equal(made, image)


def test_the_crop_of_the_udacity_drive():
    assert Geometry(crop_top=1 / 3).region(240, 320) == (80, 240, 0, 320)
    assert Geometry(crop_top=1 / 3).region(480, 640) == (160, 480, 0, 640)


@given(
    top=st.floats(0, 0.4), bottom=st.floats(0, 0.4), height=st.integers(8, 2000), width=st.integers(8, 2000)
)
def test_a_region_lies_inside_and_keeps_the_stated_fraction(top, bottom, height, width):
    y0, y1, x0, x1 = Geometry(crop_top=top, crop_bottom=bottom).region(height, width)
    assert 0 <= y0 < y1 <= height
    assert (x0, x1) == (0, width)
    assert abs((y1 - y0) - height * (1 - top - bottom)) <= 1


@pytest.mark.parametrize(
    "crops", [{"crop_top": -0.1}, {"crop_left": 1.0}, {"crop_top": 0.5, "crop_bottom": 0.5}, {"height": 0}]
)
def test_a_crop_that_leaves_nothing_is_refused(crops):
    with pytest.raises(DataError, match=r"crop|size"):
        Geometry(**crops)


def test_a_mask_is_set_where_at_least_half_of_the_source_is():
    mask = np.zeros((4, 4), dtype=bool)
    mask[0, 0] = True  # a quarter of the first block
    mask[0, 2:] = True  # half of the second
    mask[2:, :2] = True  # all of the third
    assert Geometry(height=2, width=2).apply_mask(mask).tolist() == [[False, True], [True, False]]


def test_decoding_is_exactly_opencvs_in_rgb():
    data = jpeg(5)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)[..., ::-1]
    assert np.array_equal(decode_jpeg(data), expected)
    written, png = cv2.imencode(".png", scene(5)[..., ::-1])
    assert written
    assert np.array_equal(decode_image(png.tobytes(), name="a.png"), scene(5))


def test_reduced_decoding_halves_each_side():
    data = jpeg(5)
    expected = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_2)[..., ::-1]
    assert np.array_equal(decode_jpeg(data, reduced=2), expected)
    assert expected.shape == (24, 32, 3)


def test_a_jpeg_cut_anywhere_is_refused():
    data = jpeg(0)
    for length in range(0, len(data) - 1, 37):
        with pytest.raises(DataError, match=r"frame\.jpg.*(cut short|header|neither)"):
            decode_image(data[:length], name="frame.jpg")


def test_padding_after_the_end_is_allowed():
    assert np.array_equal(decode_jpeg(jpeg(1) + bytes(100)), decode_jpeg(jpeg(1)))


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8", b"GIF89a", b"\x89PNG\r\n\x1a\n", bytes(1000), b"\xff\xd8" + b"\xff" * 64]
)
def test_what_is_no_image_is_refused(data):
    with pytest.raises(DataError, match=r"^x: "):
        decode_image(data, name="x")


def test_a_header_that_claims_too_much_is_refused_before_decoding():
    data = jpeg(0)
    at = data.index(b"\xff\xc0")
    bomb = data[: at + 5] + (65000).to_bytes(2) + (65000).to_bytes(2) + data[at + 9 :]
    assert jpeg_size(bomb) == (65000, 65000)
    with pytest.raises(DataError, match="65000x65000 pixels"):
        decode_jpeg(bomb)
    png = b"\x89PNG\r\n\x1a\n" + bytes(8) + (60000).to_bytes(4) + (60000).to_bytes(4)
    with pytest.raises(DataError, match="60000x60000 pixels"):
        decode_image(png, name="bomb.png")


@given(st.binary(max_size=200))
def test_any_bytes_behind_a_jpegs_first_two_give_one_line(data):
    with pytest.raises(DataError, match=r"^x: [^\n]*$"):
        decode_image(b"\xff\xd8" + data, name="x")


def test_a_missing_file_is_told_apart_from_a_bad_one(tmp_path: Path):
    (tmp_path / "bad.jpg").write_bytes(b"nothing")
    (tmp_path / "good.jpg").write_bytes(jpeg(2))
    source = ImageFiles(folder=tmp_path, names=("good.jpg", "bad.jpg", "gone.jpg"))
    assert np.array_equal(next(source.read(0, 1)), read_image(tmp_path / "good.jpg"))
    with pytest.raises(DataError, match=r"bad\.jpg") as bad:
        list(source.read(1, 2))
    assert not isinstance(bad.value, MissingImageError)
    with pytest.raises(MissingImageError, match=r"gone\.jpg"):
        list(source.read(2, 3))


def test_a_file_beyond_any_image_is_refused_unread(tmp_path):
    with (tmp_path / "bomb.jpg").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)  # takes no room on the disk
    with pytest.raises(DataError, match="over the 268,435,456 bytes"):
        read_image(tmp_path / "bomb.jpg")


def with_thumbnail(data: bytes) -> bytes:
    """The JPEG with another, whole one in its EXIF segment, as cameras write it."""
    thumbnail = jpeg(9, 16, 16)
    payload = b"Exif\0\0" + b"II*\0\x08\0\0\0\0\0" + thumbnail
    return data[:2] + b"\xff\xe1" + (len(payload) + 2).to_bytes(2) + payload + data[2:]


BEHIND = {
    "a motion photo's video": b"\0\0\0\x18ftypmp42" + bytes(range(256)) * 40,
    "padding": b"\0" * 4096,
    "a second picture": jpeg(5),
    "a second picture that is cut": jpeg(5)[:700],
    "a line end": b"\r\n",
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
@pytest.mark.parametrize("make", [lambda data: data, with_thumbnail], ids=["plain", "thumbnail"])
def test_what_stands_behind_a_jpegs_end_is_no_cut(make, behind):
    whole = make(jpeg(3))
    found = decode_image(whole + behind, name="a.jpg")
    assert np.array_equal(found, decode_image(whole, name="a.jpg"))


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9, 0.999])
@pytest.mark.parametrize("make", [lambda data: data, with_thumbnail], ids=["plain", "thumbnail"])
def test_a_jpeg_without_its_end_is_cut_also_behind_a_thumbnail(make, kept):
    whole = make(jpeg(3))
    with pytest.raises(DataError, match=r"cut short|without a JPEG header"):
        decode_image(whole[: int(kept * len(whole))], name="a.jpg")


def test_a_jpeg_cut_at_the_end_of_its_thumbnail_is_cut():
    whole = with_thumbnail(jpeg(3))
    end = whole.index(b"\xff\xd9") + 2
    with pytest.raises(DataError, match=r"cut short|without a JPEG header"):
        decode_image(whole[:end], name="a.jpg")
