"""Masks of a user: found by name, refused where they do not fit."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from driving_xai.errors import DataError
from driving_xai.evaluation.maps_file import Masks

PLACES = pd.DataFrame({"drive": ["a", "b", "a"], "frame": [7, 7, 8], "key": ["", "", "night/x.jpg"]})


def _mask(marked: int) -> np.ndarray:
    mask = np.zeros((4, 6), np.uint8)
    mask[0, :marked] = 255
    return mask


def _write(root: Path, masks: dict[str, np.ndarray]) -> Path:
    for name, mask in masks.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(root / f"{name}.png"), mask)
    return root


@pytest.mark.parametrize("form", ["folder", "npz"])
def test_a_drives_own_mask_comes_before_one_for_all_and_images_go_by_name(form: str, tmp_path: Path) -> None:
    masks = {"a/7": _mask(1), "7": _mask(2), "night/x": _mask(3)}
    if form == "folder":
        path = _write(tmp_path / "masks", masks)
    else:
        path = tmp_path / "masks.npz"
        np.savez(path, **masks)
    found = Masks(path).read(PLACES, 4, 6)
    assert found.sum((1, 2)).tolist() == [1, 2, 3]
    assert found[0, 0, 0]
    assert found.dtype.is_floating_point is False


def test_a_frame_without_a_mask_is_unknown(tmp_path: Path) -> None:
    found = Masks(_write(tmp_path, {"a/7": _mask(1)})).read(PLACES, 4, 6)
    assert found.sum((1, 2)).tolist() == [1, 0, 0]


def test_what_does_not_fit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mask a/7 is 6x4, the model's input 160x80; cut and resize"):
        Masks(_write(tmp_path / "m", {"a/7": _mask(1)})).read(PLACES, 80, 160)
    (tmp_path / "m" / "a" / "7.png").write_bytes(b"no png")
    with pytest.raises(DataError, match="no PNG that can be read"):
        Masks(tmp_path / "m").read(PLACES, 4, 6)
    (tmp_path / "empty").mkdir()
    for path, message in (
        (tmp_path / "empty", "holds no mask"),
        (tmp_path / "absent", "no such file"),
        (tmp_path / "m" / "a" / "7.png", "no .npz .*give a folder of PNG masks"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            Masks(path)
        assert "\n" not in str(caught.value)
    np.savez(tmp_path / "flat.npz", x=np.zeros(3))
    with pytest.raises(DataError, match=r"x is float64 of shape \(3,\); expected \[H, W\]"):
        Masks(tmp_path / "flat.npz")
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    with pytest.raises(DataError, match=r"no \.npz"):
        Masks(tmp_path / "objects.npz")
