"""Saved brush cases: a region of one frame, how the outputs change without it, and without the same area elsewhere.

A case is a folder: `case.json` with the numbers, `frame.png` the model's input, `mask.png` the region in white, and the
frame without it, a picture for each fill. Nothing is believed when it is read back: shapes, ranges and hashes are checked.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, get_args

import numpy as np
import PIL.Image
from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from jaxtyping import Bool, UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.documents import read_json
from data_prep.errors import quoted
from data_prep.geometry import encode_png
from data_prep.schema import Image
from data_prep.shards.atomic import read_bounded, replacing, sha256_of
from data_prep.shards.manifest import canonical_json
from driving_xai.errors import DataError
from driving_xai.fills import Fill
from driving_xai.metrics.regions import PLACES

SCHEMA = "driving-xai-brush-case/1"
CASE, FRAME, MASK = "case.json", "frame.png", "mask.png"
MOST_CASES = 999
"""In one folder."""
MOST_PLACES = 1000
LONGEST_NOTE = 400
_MOST_JSON_BYTES = 8 * 2**20
_MOST_PNG_BYTES = 64 * 2**20
_NAME = re.compile(r"case-\d{3}")

_Text = Annotated[str, MaxLen(300)]
_Number = Annotated[float, Ge(-1e30), Le(1e30)]
_Side = Annotated[int, Gt(0), Le(16384)]
_Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Values = Annotated[list[_Number], MinLen(1), MaxLen(64)]
_Offset = Annotated[list[Annotated[int, Gt(-16384), Lt(16384)]], MinLen(2), MaxLen(2)]


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="forbid", frozen=True)


class Removed(_Section):
    """The outputs of a frame without a region, in the case's unit."""

    here: _Values
    elsewhere: Annotated[list[_Values], MaxLen(MOST_PLACES)]
    """Without the same area, for each of the case's offsets."""


class Case(_Section):
    """One painted region and what it does, as `case.json` holds it."""

    schema_: Literal["driving-xai-brush-case/1"] = Field(alias="schema")
    checkpoint_sha256: _Sha256 | None
    source: _Text
    drive: _Text
    frame: Annotated[int, Ge(0), Lt(2**53)]
    key: _Text
    """Name of a labelled image; empty for frames of a drive."""
    time_s: _Number
    """In the drive."""
    memory: bool
    """Whether the model had a state from the frames before, which was left as it was."""
    height: _Side
    width: _Side
    pixels: Annotated[int, Gt(0)]
    """Painted."""
    seed: Annotated[int, Ge(0), Lt(2**32)]
    """Of the other places."""
    offsets: Annotated[list[_Offset], MaxLen(MOST_PLACES)]
    """Of the other places: rows down and columns to the right. None where the frame has no room."""
    outputs: Annotated[list[_Text], MinLen(1), MaxLen(64)]
    predicted: Annotated[list[bool], MinLen(1), MaxLen(64)]
    """Of each output: whether the model predicts it for this frame."""
    unit: Annotated[str, MaxLen(20)]
    """Of the outputs' values; empty for probabilities."""
    before: _Values
    """Of the frame as it is."""
    fills: Annotated[dict[Fill, Removed], MinLen(1)]
    note: Annotated[str, MaxLen(LONGEST_NOTE)] = ""
    files: dict[str, _Sha256] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _fits_together(self) -> Case:
        count = len(self.outputs)
        values = [self.before, *(row for each in self.fills.values() for row in (each.here, *each.elsewhere))]
        if len(self.predicted) != count or any(len(row) != count for row in values):
            raise ValueError("a value for each output is expected everywhere")
        if any(len(each.elsewhere) != len(self.offsets) for each in self.fills.values()):
            raise ValueError("a row for each offset is expected")
        if self.pixels > self.height * self.width:
            raise ValueError("more pixels are painted than the frame has")
        if any(abs(down) >= self.height or abs(right) >= self.width for down, right in self.offsets):
            raise ValueError("an offset leaves the frame")
        return self

    @property
    def effects(self) -> list[Effect]:
        """The change of each output under each fill, beside the control's."""
        return [
            Effect(
                output=name,
                fill=fill,
                before=self.before[at],
                after=found.here[at],
                change=found.here[at] - self.before[at],
                elsewhere=tuple(abs(row[at] - self.before[at]) for row in found.elsewhere),
            )
            for at, name in enumerate(self.outputs)
            for fill, found in ((fill, self.fills[fill]) for fill in get_args(Fill) if fill in self.fills)
        ]

    @property
    def shown(self) -> list[str]:
        """The predicted outputs; where none is predicted, the one that changes most."""
        found = [
            name for name, is_predicted in zip(self.outputs, self.predicted, strict=True) if is_predicted
        ]
        return found or [max(self.effects, key=lambda each: abs(each.change)).output]

    @property
    def sentences(self) -> list[str]:
        """What the case shows for each output that counts."""
        selected = "" if any(self.predicted) else f" {_SELECTED}"
        return [
            sentence_of([each for each in self.effects if each.output == name], self.unit) + selected
            for name in self.shown
        ]


_SELECTED = "No output is predicted; this one was selected as it changes most, which favours the region over the other places."


class Effect(NamedTuple):
    """How one output changes without the region, and without the same area elsewhere."""

    output: str
    fill: Fill
    before: float
    after: float
    change: float
    elsewhere: tuple[float, ...]
    """The size of the change at each other place."""

    @property
    def exceeded(self) -> int:
        """Other places at which the change is smaller than the region's."""
        return sum(size < abs(self.change) for size in self.elsewhere)


def sentence_of(effects: list[Effect], unit: str) -> str:
    """What one output's changes under the fills say, with the control's; a verdict takes all `PLACES`.

    Example:
        >>> sentence_of([Effect("wheel", "black", 2.0, 5.0, 3.0, (0.5, 0.1, 0.9))], "°")
        'Wheel changes without it by +3.0° (black); without the same area at 3 other places by 0.1 to 0.9°. A verdict takes 19 other places; of these 3 it matters more than 3 (black).'
    """
    changes = ", ".join(f"{_said(each.change, unit, signed=True)} ({each.fill})" for each in effects)
    name, places = effects[0].output, len(effects[0].elsewhere)
    name = name[:1].upper() + name[1:]
    if not places:
        return (
            f"{name} changes without it by {changes}; the frame has no room to move the area elsewhere, so there is "
            "no control."
        )
    low = min(size for each in effects for size in each.elsewhere)
    high = max(size for each in effects for size in each.elsewhere)
    span = f"{_said(low, unit).removesuffix(unit)} to {_said(high, unit)}"
    said = (
        f"{name} changes without it by {changes}; without the same area at {places} other places by {span}."
    )
    return f"{said} {_verdict(effects, places)}"


def _verdict(effects: list[Effect], places: int) -> str:
    counts = ", ".join(f"{each.exceeded} ({each.fill})" for each in effects)
    if places < PLACES:  # Ahead of all n others by chance alone in one of n + 1 cases.
        return f"A verdict takes {PLACES} other places; of these {places} it matters more than {counts}."
    if min(each.exceeded for each in effects) == places:
        return "It matters more than all of them" + (", whatever the fill." if len(effects) > 1 else ".")
    if max(each.exceeded for each in effects) == places:
        return f"It depends on the fill: it matters more than {counts} of the {places} places."
    return f"No evidence that it matters more than other places: more than {counts} of {places}."


def _said(value: float, unit: str, *, signed: bool = False) -> str:
    digits = 1 if unit else 2
    return f"{value:{'+' if signed else ''}.{digits}f}{unit}".replace("-", "−")


class SavedCase(NamedTuple):
    """A case as it was read back."""

    path: Path
    case: Case
    frame: UInt8[np.ndarray, "H W 3"]
    mask: Bool[np.ndarray, "H W"]


def save_case(
    folder: Path, case: Case, frame: Image, mask: Bool[np.ndarray, "H W"], without: Mapping[Fill, Image]
) -> Path:
    """Writes a case into a folder of its own, `case-001` and so on; `case.json` comes last.

    Args:
        folder: of cases; made where it is not there.
        case: its `files` are filled in.
        frame: the model's input.
        mask: the region.
        without: the frame without it, for each fill.

    Raises:
        DataError: the folder cannot be written, or is full.
    """
    pictures = {FRAME: encode_png(frame), MASK: encode_png(np.where(mask, 255, 0).astype(np.uint8))}
    pictures |= {f"{fill}.png": encode_png(picture) for fill, picture in without.items()}
    try:
        own = _new_folder(folder)
        for name, content in pictures.items():
            with replacing(own / name) as temporary:
                temporary.write_bytes(content)
        hashes = {name: sha256_of(own / name) for name in pictures}
        finished = case.model_copy(update={"files": hashes})
        with replacing(own / CASE) as temporary:
            temporary.write_bytes(canonical_json(finished.model_dump(by_alias=True)))
    except OSError as error:
        raise DataError(f"{folder}: cannot be written ({error.strerror}); check the folder") from None
    return own


def _new_folder(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(1, MOST_CASES + 1):
        own = folder / f"case-{number:03d}"
        try:
            own.mkdir()
        except FileExistsError:
            continue
        return own
    raise DataError(f"{folder}: holds {MOST_CASES} cases already; choose another folder")


def holds_cases(folder: Path) -> bool:
    """Whether a folder holds saved cases."""
    return next(_folders(folder), None) is not None


def _folders(folder: Path) -> Iterator[Path]:
    if folder.is_dir():
        yield from (
            each
            for each in sorted(folder.iterdir())
            if _NAME.fullmatch(each.name) and (each / CASE).is_file()
        )


def load_cases(folder: Path) -> list[SavedCase]:
    """Reads and checks the cases of a folder, in their order; folders whose `case.json` was never written are left out.

    Raises:
        DataError: a case is damaged, or was changed since it was saved.
    """
    return [_load(each) for each in _folders(folder)]


def _load(own: Path) -> SavedCase:
    path = own / CASE
    try:
        case = Case.model_validate(read_json(path, most=_MOST_JSON_BYTES))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"])) or "the case"
        raise DataError(
            f"{path}: {place} is {quoted(first['input'])} ({first['msg']}); save the case again"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{path}: {error}; save the case again") from None
    if not {FRAME, MASK} <= set(case.files):
        raise DataError(f"{path}: names no {FRAME} and {MASK}; save the case again")
    frame, mask = (_picture(own, name, mode, case) for name, mode in ((FRAME, "RGB"), (MASK, "L")))
    if not np.isin(mask, (0, 255)).all() or np.count_nonzero(mask) != case.pixels:
        raise DataError(f"{own / MASK}: does not show the {case.pixels} painted pixels; save the case again")
    return SavedCase(own, case, frame, mask > 0)


def _picture(own: Path, name: str, mode: str, case: Case) -> np.ndarray:
    path = own / name
    try:
        content = read_bounded(path, most=_MOST_PNG_BYTES)
        if sha256_of(path) != case.files[name]:
            raise DataError(f"{path}: differs from the hash in {CASE}; save the case again")
        with PIL.Image.open(io.BytesIO(content), formats=["PNG"]) as picture:
            if picture.mode != mode or picture.size != (case.width, case.height):
                raise DataError(
                    f"{path}: is {picture.mode} {picture.size[0]}x{picture.size[1]}, expected {mode} "
                    f"{case.width}x{case.height}; save the case again"
                )
            return np.array(picture)
    except DataError:
        raise
    except (OSError, ValueError, SyntaxError) as error:
        raise DataError(
            f"{path}: cannot be read ({' '.join(str(error).split())[:120]}); save the case again"
        ) from None
