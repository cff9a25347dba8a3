"""The example that scores maps of one's own."""

from __future__ import annotations

import runpy
from pathlib import Path

import h5py
import numpy as np
import pytest

from driving_xai.evaluation.run import ScoreConfig, score

EXAMPLE = Path(__file__).parents[2] / "docs" / "examples" / "own_maps.py"


def test_maps_of_one_s_own_are_scored_as_named_ones_are(streets, actions, tmp_path) -> None:
    saved = actions()
    how = {"measures": ("auroc",), "split": "all", "every": 10}
    named = score(saved, streets, tmp_path / "named", ScoreConfig(methods=("snna",), save_maps=True, **how))
    runpy.run_path(str(EXAMPLE))["write"](
        saved.path, streets, tmp_path / "named" / "maps.h5", tmp_path / "parts.h5"
    )
    with h5py.File(tmp_path / "named" / "maps.h5") as ours, h5py.File(tmp_path / "parts.h5") as theirs:
        np.testing.assert_allclose(theirs["maps/snna"], ours["maps/snna"], rtol=1e-4, atol=1e-7)
        assert len(theirs["maps"]) == 7
        assert not np.allclose(theirs["maps/snna"], theirs["maps/snna, no smoothing"])
    maps = ScoreConfig(maps=str(tmp_path / "parts.h5"), **how)
    parts = score(saved, streets, tmp_path / "parts", maps)
    first, again = (
        next(each["value"]["mean"] for each in results.summary["scores"] if each["method"] == "snna")
        for results in (named, parts)
    )
    assert again == pytest.approx(first, abs=1e-4)
