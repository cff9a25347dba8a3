"""Saved brush cases: what is written is read back, and nothing that was damaged or invented passes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_prep.shards.atomic import sha256_of
from driving_xai.errors import DataError
from driving_xai.evaluation.brush_cases import (
    MOST_CASES,
    Case,
    Removed,
    holds_cases,
    load_cases,
    save_case,
)


def case_of(**changes: Any) -> Case:
    """Two outputs, two fills, three other places; four painted pixels of a frame of 6 x 8."""
    fields: dict[str, Any] = {
        "checkpoint_sha256": "0" * 64,
        "source": "drive",
        "drive": "drive",
        "frame": 7,
        "key": "",
        "time_s": 0.35,
        "memory": True,
        "height": 6,
        "width": 8,
        "pixels": 4,
        "seed": 0,
        "offsets": [[0, 2], [2, 0], [2, 2]],
        "outputs": ["stop", "go"],
        "predicted": [True, False],
        "unit": "",
        "before": [0.9, 0.1],
        "fills": {
            "black": Removed(here=[0.2, 0.2], elsewhere=[[0.8, 0.1], [0.85, 0.1], [0.9, 0.5]]),
            "mean": Removed(here=[0.4, 0.1], elsewhere=[[0.9, 0.1], [0.9, 0.1], [0.95, 0.1]]),
        },
    }
    return Case.model_validate({"schema": "driving-xai-brush-case/1", **fields, **changes})


FRAME = np.random.default_rng(0).integers(0, 255, (6, 8, 3), dtype=np.uint8)
MASK = np.zeros((6, 8), bool)
MASK[1:3, 1:3] = True


def saved(folder: Path, case: Case | None = None) -> Path:
    return save_case(
        folder,
        case or case_of(),
        FRAME,
        MASK,
        {"black": np.where(MASK[..., None], 0, FRAME).astype(np.uint8)},
    )


def test_a_case_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    first, second = saved(tmp_path / "cases"), saved(tmp_path / "cases", case_of(note="the <b>sign</b>"))
    assert (first.name, second.name) == ("case-001", "case-002")
    assert {each.name for each in first.iterdir()} == {"case.json", "frame.png", "mask.png", "black.png"}
    assert holds_cases(tmp_path / "cases")
    found = load_cases(tmp_path / "cases")
    assert [each.case.note for each in found] == ["", "the <b>sign</b>"]
    np.testing.assert_array_equal(found[0].frame, FRAME)
    np.testing.assert_array_equal(found[0].mask, MASK)
    assert found[0].case.model_copy(update={"files": {}}) == case_of()


def test_an_effect_stands_with_the_spread_of_its_control() -> None:
    effects = {(each.output, each.fill): each for each in case_of().effects}
    black = effects["stop", "black"]
    assert black.change == pytest.approx(-0.7)
    assert black.elsewhere == pytest.approx((0.1, 0.05, 0.0))
    assert black.exceeded == len(black.elsewhere) == 3
    assert (effects["go", "black"].exceeded, effects["go", "mean"].exceeded) == (2, 0)


def nineteen(**changes: Any) -> Case:
    """As `case_of`, with the nineteen other places that a verdict takes."""
    more = 19 - 3
    fills = {
        "black": {
            "here": [0.2, 0.2],
            "elsewhere": [[0.8, 0.1], [0.85, 0.1], [0.9, 0.5], *[[0.9, 0.1]] * more],
        },
        "mean": {
            "here": [0.4, 0.1],
            "elsewhere": [[0.9, 0.1], [0.9, 0.1], [0.95, 0.1], *[[0.9, 0.1]] * more],
        },
    }
    return case_of(**{"offsets": [[0, 2]] * 19, "fills": fills, **changes})


def test_sentences_claim_no_more_than_the_control_allows() -> None:
    (strong,) = nineteen().sentences
    assert strong == (
        "Stop changes without it by −0.70 (black), −0.50 (mean); without the same area at 19 other places by 0.00 to "
        "0.10. It matters more than all of them, whatever the fill."
    )
    (mixed,) = nineteen(predicted=[False, True]).sentences
    assert mixed.endswith(
        "No evidence that it matters more than other places: more than 18 (black), 0 (mean) of 19."
    )
    black = {"here": [0.2, 0.2], "elsewhere": [*[[0.8, 0.1]] * 18, [0.1, 0.5]]}
    mean = {"here": [0.4, 0.1], "elsewhere": [[0.9, 0.1]] * 19}
    (depends,) = nineteen(fills={"black": black, "mean": mean}).sentences
    assert depends.endswith(
        "It depends on the fill: it matters more than 18 (black), 19 (mean) of the 19 places."
    )
    alone = {"black": {"here": [0.2, 0.2], "elsewhere": []}}
    (no_room,) = case_of(offsets=[], fills=alone).sentences
    assert no_room.endswith("the frame has no room to move the area elsewhere, so there is no control.")


@pytest.mark.parametrize("places", [1, 3, 18])
def test_fewer_places_than_a_verdict_takes_have_none(places: int) -> None:
    """A region without effect is ahead of one other place in one of two cases."""
    fills = {"black": {"here": [0.2, 0.2], "elsewhere": [[0.9, 0.1]] * places}}
    (found,) = case_of(offsets=[[0, 2]] * places, fills=fills).sentences
    assert found.endswith(
        f"A verdict takes 19 other places; of these {places} it matters more than {places} (black)."
    )


def test_an_output_that_was_selected_for_its_change_says_so() -> None:
    (found,) = nineteen(predicted=[False, False]).sentences
    assert found.startswith("Stop changes"), "the output that changes most"
    assert found.endswith("selected as it changes most, which favours the region over the other places.")
    assert "selected" not in nineteen().sentences[0]


def test_no_change_at_all_is_no_evidence() -> None:
    flat = {"black": {"here": [0.9, 0.1], "elsewhere": [[0.9, 0.1]] * 19}}
    assert "No evidence" in nineteen(fills=flat).sentences[0]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": "driving-xai-brush-case/2"}, "schema"),
        ({"before": [0.9]}, "a value for each output"),
        ({"before": [0.9, "0.1"]}, "before.1"),
        ({"offsets": [[0, 2]]}, "a row for each offset"),
        ({"offsets": [[0, 8], [2, 0], [2, 2]]}, "an offset leaves the frame"),
        ({"pixels": 49}, "more pixels are painted"),
        ({"pixels": 0}, "pixels"),
        ({"height": 10**9}, "height"),
        ({"fills": {}}, "fills"),
        ({"fills": {"pink": {"here": [1, 1], "elsewhere": []}}}, "fills.pink"),
        ({"surplus": 1}, "surplus"),
        ({"note": "x" * 401}, "note"),
        ({"files": {}}, "names no frame.png"),
        ({"pixels": 5}, "does not show the 5 painted pixels"),
        ({"width": 9}, "is RGB 8x6, expected RGB 9x6"),
    ],
)
def test_what_was_changed_by_hand_is_refused(tmp_path: Path, changes: dict[str, Any], says: str) -> None:
    path = saved(tmp_path) / "case.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    with pytest.raises(DataError, match=says) as refused:
        load_cases(tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b'{"time_s": NaN}', b"[" * 10**5])
def test_what_is_no_case_is_refused(tmp_path: Path, content: bytes) -> None:
    (saved(tmp_path) / "case.json").write_bytes(content)
    with pytest.raises(DataError, match="save the case again"):
        load_cases(tmp_path)


def test_damaged_pictures_are_refused(tmp_path: Path) -> None:
    own = saved(tmp_path)
    (own / "frame.png").write_bytes((own / "frame.png").read_bytes()[:-20] + b"x" * 20)
    with pytest.raises(DataError, match="differs from the hash"):
        load_cases(tmp_path)
    content = json.loads((own / "case.json").read_text())
    (own / "frame.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    content["files"]["frame.png"] = sha256_of(own / "frame.png")
    (own / "case.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"frame\.png: cannot be read"):
        load_cases(tmp_path)
    (own / "frame.png").unlink()
    with pytest.raises(DataError, match="save the case again"):
        load_cases(tmp_path)


def test_an_unfinished_case_is_left_out_and_a_full_folder_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "case-001").mkdir()
    assert not holds_cases(tmp_path)
    assert saved(tmp_path).name == "case-002"
    assert len(load_cases(tmp_path)) == 1
    assert not holds_cases(tmp_path / "elsewhere")
    assert MOST_CASES == 999
    monkeypatch.setattr("driving_xai.evaluation.brush_cases.MOST_CASES", 2)
    with pytest.raises(DataError, match="holds 2 cases already"):
        saved(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        saved(tmp_path / "file")
