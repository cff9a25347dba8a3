"""What the page's script draws: frames along time, their values, the frames worth looking at."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64

from driving_xai.evaluation.maps_file import MapFile
from driving_xai.evaluation.results import MAPS
from driving_xai.report import words
from driving_xai.report.edited import what_is_edited
from driving_xai.report.pictures import heat, stills
from driving_xai.report.sources import Board, Source
from driving_xai.report.thinning import rows_to_draw
from driving_xai.report.timeline import Drive, Pick, Video, drives, picks, shown_of

_STILL_WIDTH_PX, _MAP_WIDTH_PX = 400, 320
_KNOWN = ("prediction", "truth", "error")
_MOST_NUMBERS = 150_000
"""Of a result's lines that a page draws, some 6 bytes each."""
_CURVE_KEY = ["drive", "camera", "frame", "key", "target", "method"]


@dataclass(frozen=True, kw_only=True)
class _Filmed:
    """A drive with the pictures that show it."""

    drive: Drive
    video: int | None
    numbers: Sequence[int | None]
    """Of the pictures in the video, a row each; None for a frame that is in none."""
    rate: float
    starts_s: Sequence[float] | None = None
    """When each picture begins; None where that is at multiples of the period."""


class Charts:
    """Collects the content of a page's charts as JSON values."""

    def __init__(self, shown: Sequence[Video], *, controls: Sequence[str], frames: int) -> None:
        """Starts empty.

        Args:
            shown: the videos of the page, by whose places they are named.
            controls: of all results, in the order in which their lines are told apart.
            frames: best and worst frames of each score and method, at most.
        """
        self._shown, self._controls, self._frames = shown, controls, frames
        self._wanted: dict[tuple[int, int], int] = {}
        self._maps: list[str] = []
        self._drawn: dict[tuple[str, str, int, int], int] = {}

    def result(self, source: Source) -> dict[str, Any]:
        """One source's drives, scores and frames worth looking at."""
        filmed = [self._filmed(drive) for drive in drives(source.results.without_curves)]
        boards = source.boards
        with _saved_maps(source) as saved:
            chosen = self._picks(source, boards, filmed, saved)
        drawn = _rows_to_draw(filmed, chosen)
        return {
            "label": source.label,
            "unit": str(source.summary["prediction"].get("unit", "")),
            "methods": list(dict.fromkeys(each.method for board in boards for each in board.standings)),
            "controls": list(self._controls),
            "boards": [_of_board(board) for board in boards],
            "drives": [_of_drive(each, rows) for each, rows in zip(filmed, drawn, strict=True)],
            "picks": chosen,
        }

    def maps(self) -> list[str]:
        """The saved maps that the results so far refer to, as JPEGs in base64."""
        return self._maps

    def stills(self) -> list[str]:
        """The pictures that the results so far refer to, as JPEGs in base64."""
        made: dict[tuple[int, int], bytes] = {}
        for at, video in enumerate(self._shown):
            numbers = [number for of, number in self._wanted if of == at]
            first_s = video.starts_s[0] if video.starts_s else 0.0
            found = stills(video.path, numbers, width=_STILL_WIDTH_PX, first_s=first_s)
            made |= {(at, number): jpeg for number, jpeg in found.items()}
        return [base64.b64encode(made.get(key, b"")).decode("ascii") for key in self._wanted]

    def _filmed(self, drive: Drive) -> _Filmed:
        """Finds the video that shows most of a drive's frames."""
        stamps = shown_of(drive.frames)
        numbers = [[video.pictures.get(stamp) for stamp in stamps] for video in self._shown]
        counts = [sum(number is not None for number in each) for each in numbers]
        if not any(counts):
            return _Filmed(drive=drive, video=None, numbers=[None] * len(stamps), rate=1.0)
        best = int(np.argmax(counts))
        shown = self._shown[best]
        return _Filmed(
            drive=drive,
            video=best,
            numbers=numbers[best],
            rate=float(shown.frame_rate),
            starts_s=shown.starts_s,
        )

    def _picks(
        self, source: Source, boards: Sequence[Board], filmed: Sequence[_Filmed], saved: MapFile | None
    ) -> dict[str, dict[str, list[dict[str, Any]]]]:
        """By score and method, the frames to look at, with their curves."""
        found = {
            (board.key, each.method): picks(
                [one.drive for one in filmed],
                board.key,
                each.method,
                higher_is_faithful=board.higher_is_faithful,
                count=self._frames,
            )
            for board in boards
            for each in board.standings
            if not each.is_control
        }
        picked = {
            int(filmed[pick.drive].drive.frames["frame"].iloc[pick.row])
            for of in found.values()
            for pick in of
        }
        rows = source.results.curves_of(picked)
        chosen: dict[str, dict[str, list[dict[str, Any]]]] = {}
        for board in boards:
            of_board = rows[(rows["measure"] == board.measure) & (rows["reference"] == board.reference)]
            curves = of_board.drop_duplicates(_CURVE_KEY).set_index(_CURVE_KEY)["curve"].to_dict()
            chosen[board.key] = {
                method: [
                    self._pick(pick, filmed[pick.drive], board, method, curves)
                    | {"map": self._map(pick, filmed[pick.drive], method, saved)}
                    for pick in of_method
                ]
                for (key, method), of_method in found.items()
                if key == board.key
            }
        return chosen

    def _map(self, pick: Pick, filmed: _Filmed, method: str, saved: MapFile | None) -> int | None:
        if saved is None or method not in saved.methods:
            return None
        key = (str(saved.path), method, pick.drive, pick.row)
        if key not in self._drawn:
            (saliency,) = saved.read(method, filmed.drive.frames.iloc[[pick.row]])
            self._drawn[key] = len(self._maps)
            self._maps.append(base64.b64encode(heat(saliency, width=_MAP_WIDTH_PX)).decode("ascii"))
        return self._drawn[key]

    def _pick(
        self,
        pick: Pick,
        filmed: _Filmed,
        board: Board,
        method: str,
        curves: dict[tuple[Any, ...], Any],
    ) -> dict[str, Any]:
        frame, number = filmed.drive.frames.iloc[pick.row], filmed.numbers[pick.row]
        key = tuple(frame[name] for name in _CURVE_KEY[:-1])
        lines = {name: curves.get((*key, name)) for name in (method, *self._controls)}
        still = None
        if filmed.video is not None and number is not None:
            still = self._wanted.setdefault((filmed.video, number), len(self._wanted))
        return {
            "kind": pick.kind,
            "drive": pick.drive,
            "row": pick.row,
            "value": _numbers([filmed.drive.corrected[board.key][method].iloc[pick.row]])[0],
            "curves": {name: _numbers(line) for name, line in lines.items() if line is not None},
            "still": still,
            "video": filmed.video,
        }


@contextmanager
def _saved_maps(source: Source) -> Iterator[MapFile | None]:
    """The maps that `score --save-maps` left beside the results."""
    path = source.path / MAPS
    if MAPS not in source.summary["files"]:
        yield None
        return
    saved = MapFile(path)
    try:
        yield saved
    finally:
        saved.close()


def _of_board(board: Board) -> dict[str, Any]:
    return {
        "key": board.key,
        "name": words.board(board),
        "corrected": board.about["kind"] == "curve",
        "unit": board.unit,
        "faithful": board.about.get("faithful"),
        "curve": {
            "fractions": list(board.fractions),
            "height": board.height,
            "over": what_is_edited(board.about),
        },
    }


def _rows_to_draw(
    filmed: Sequence[_Filmed], chosen: Mapping[str, Mapping[str, Sequence[dict[str, Any]]]]
) -> list[Int64[np.ndarray, " rows"]]:
    """The rows of each drive that are drawn; picks are among them, and then name them by their new places."""
    total = sum(len(each.drive.frames) for each in filmed)
    picked = [pick for of_board in chosen.values() for of_method in of_board.values() for pick in of_method]
    drawn = []
    for number, each in enumerate(filmed):
        frames = each.drive.frames
        lines = [table[method].to_numpy() for table in each.drive.values.values() for method in table]
        lines += [frames[name].to_numpy(np.float64) for name in _KNOWN if name in frames.columns]
        rows = rows_to_draw(
            lines,
            frames["segment"].fillna(0).to_numpy(),
            most=_MOST_NUMBERS * len(frames) // (total * max(1, len(lines))),
            always={pick["row"] for pick in picked if pick["drive"] == number},
        )
        for pick in picked:
            if pick["drive"] == number:
                pick["row"] = int(np.searchsorted(rows, pick["row"]))
        drawn.append(rows)
    return drawn


def _of_drive(filmed: _Filmed, rows: Int64[np.ndarray, " rows"]) -> dict[str, Any]:
    """A drive with the frames that are drawn."""
    frames = filmed.drive.frames.iloc[rows]
    thinned = len(rows) < len(filmed.drive.frames)
    drawn = f" ({len(rows):,} of {len(filmed.drive.frames):,} frames drawn)" if thinned else ""
    known = {name: _numbers(frames[name]) for name in _KNOWN if name in frames.columns}
    return {
        "name": filmed.drive.name + drawn,
        "across": filmed.drive.across,
        "at": _numbers(frames["at"] + _ahead_s(filmed), digits=7),
        "names": _names(frames),
        "segment": [int(each) for each in frames["segment"].fillna(0)],
        **{name: values for name, values in known.items() if any(each is not None for each in values)},
        "values": {
            key: {method: _numbers(table[method].iloc[rows]) for method in table}
            for key, table in filmed.drive.values.items()
        },
        "video": filmed.video,
        "pictures": None if filmed.video is None else [filmed.numbers[row] for row in rows],
    }


def _names(frames: pd.DataFrame) -> list[str]:
    """What a person calls each row: an image by its file, a frame by its number; and its target, if they differ."""
    found = [
        key or f"frame {int(number)}" for key, number in zip(frames["key"], frames["frame"], strict=True)
    ]
    if frames["target"].nunique() < 2:
        return found
    return [f"{name}, {target}" for name, target in zip(found, frames["target"], strict=True)]


def _ahead_s(filmed: _Filmed) -> float:
    """How long the video plays before the first frame that has a score, so that both count alike."""
    first = filmed.numbers[0] if filmed.drive.across == "s" else None
    if first is None:
        return 0.0
    return first / filmed.rate if filmed.starts_s is None else filmed.starts_s[first]


def _numbers(values: Iterable[Any] | pd.Series, *, digits: int = 4) -> list[float | None]:
    """Rounded to what a chart can show; None where unknown."""
    return [
        float(f"{value:.{digits}g}") if math.isfinite(value) else None
        for value in (float(each) for each in values)
    ]
