"""The gallery's script makes a tile for each map."""

from __future__ import annotations

import runpy

import numpy as np
import torch

from tests.docs.documents import ROOT


def test_each_map_has_a_tile() -> None:
    script = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
    frame = torch.full((3, 80, 160), 0.5)
    maps = {f"method {number}": torch.rand(80, 160) for number in range(7)}
    picture = np.asarray(script["gallery"](frame, maps))
    height = 120 + script["HEAD_PX"]
    assert picture.shape == (2 * height, 5 * 240 + 4 * script["GAP_PX"], 3)
    assert (picture[script["HEAD_PX"] : height, :240] == 128).all(), (
        "the frame itself comes first, without heat"
    )
    assert (picture[height:, -240:] == 255).all(), "eight tiles leave two places of ten empty"


def test_what_is_committed_is_small() -> None:
    for picture in (ROOT / "docs" / "images").glob("gallery-*"):
        assert picture.stat().st_size < 300_000
