"""Brush cases in the report: each with its picture, its sentence and the control, and no text becomes markup."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from driving_xai.errors import DataError
from driving_xai.report.brush_cases import read_case_folders, section
from tests.driving_xai.evaluation.test_brush_cases import FRAME, MASK, case_of, saved


def test_a_case_shows_what_was_painted_and_what_came_of_it(tmp_path: Path) -> None:
    saved(tmp_path, case_of(note="</script><b>sign</b>", drive="<i>drive</i>"))
    text = str(section(read_case_folders([tmp_path])))
    assert "Stop changes without it by −0.70 (black), −0.50 (mean)" in text
    assert text.count("larger than at 3 of 3 other places") == 2, "the predicted output under two fills"
    assert "<b>sign" not in text
    assert "<i>drive" not in text
    assert "what the model remembered of earlier frames" in text
    coded = text.split("data:image/jpeg;base64,")[1].split('"')[0]
    with PIL.Image.open(io.BytesIO(base64.b64decode(coded))) as picture:
        pixels = np.array(picture.resize((8, 6), PIL.Image.Resampling.BOX)).astype(int)
    expected = 0.4 * FRAME[MASK] + 0.6 * np.array([214, 36, 127])
    assert np.abs(pixels[MASK] - expected).mean() < 40, "the paint lies on the painted pixels"


def test_without_cases_there_is_no_section_and_damaged_ones_are_refused(tmp_path: Path) -> None:
    assert str(section([])) == ""
    own = saved(tmp_path)
    (own / "case.json").write_text("{}")
    with pytest.raises(DataError, match="save the case again"):
        read_case_folders([tmp_path])
