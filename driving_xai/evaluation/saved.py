"""What saved results and sanity checks must hold, checked once when they are read.

The hashes in `results.json` vouch for the tables, but nothing vouches for the file itself, which may have been
edited or damaged. What readers of results use is described here; everything else may be of any kind.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from data_prep.documents import read_json
from data_prep.errors import quoted
from data_prep.values import Level, PositiveCount, Resamples, Seed
from driving_xai.errors import DataError
from driving_xai.evaluation.fills import AT

MOST_PER_SECOND = 1000
"""Pictures; no replay writes as many."""

_Count = Annotated[int, Ge(0), Lt(2**53)]
_Number = Annotated[float, Ge(-1e100), Le(1e100)]
_Share = Annotated[float, Ge(0), Le(1)]
_Sha256 = Annotated[str, MinLen(64), MaxLen(64)]
_Picture = Annotated[list[str | _Count], MinLen(3), MaxLen(3)]
"""Drive, frame, and the number of the picture in the video."""


_ABSENT: Any = None
"""The default of what may be left out, but not be null."""


class _Section(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False, extra="allow")


class _Interval(_Section):
    mean: _Number | None
    low: _Number | None
    high: _Number | None
    reason: str = _ABSENT

    @model_validator(mode="after")
    def _has_both_ends(self) -> _Interval:
        if (self.low is None) != (self.high is None) or (self.mean is None and self.low is not None):
            raise ValueError("an interval has both ends and a mean, or no end")
        return self


class _Measure(_Section):
    kind: str
    faithful: Literal["high", "low"]
    unit: str | None = None
    normalised_unit: str | None = None
    fractions: list[_Share] = _ABSENT
    patch_px: int = _ABSENT
    masked: str = _ABSENT


class _Score(_Section):
    method: str
    measure: str
    reference: str
    frames: _Count
    degenerate: _Count
    value: _Interval
    without_value: _Count = _ABSENT
    normalised: _Interval = _ABSENT
    base_corrected: _Interval = _ABSENT
    chance: _Number = _ABSENT
    curve: list[_Number] = _ABSENT


class _Difference(_Section):
    method: str
    control: str
    measure: str
    reference: str
    frames: _Count
    value: _Interval


class _Comparison(_Section):
    method: str
    other: str
    measure: str
    reference: str
    frames: _Count
    value: _Interval
    blocks: _Count | None
    p: _Share | None
    p_holm: _Share | None
    rank_biserial: _Number | None
    cohens_dz: _Number | None
    cliffs_delta: _Number | None
    reason: str = _ABSENT


class _Place(_Section):
    method: str
    rank: _Number
    low: _Number
    high: _Number
    first: _Share


class _Ranks(_Section):
    measure: str
    reference: str
    frames: _Count
    places: list[_Place] | None


class _Margin(_Section):
    control: str
    mean: _Number
    low: _Number | None
    high: _Number | None
    p_holm: _Share | None
    rank_biserial: _Number | None


class _Loss(_Margin):
    fill: str


class _Headline(_Section):
    measure: str
    reference: str
    method: str
    fills: Annotated[list[str], MinLen(2)]
    statistic: Literal["base_corrected", "value"]
    fill: str | None
    control: str | None
    margin: _Interval
    loss: _Loss | None
    p_holm: _Share | None
    rank_biserial: _Number | None
    blocks: _Count | None
    comparisons: _Count
    mean: _Number | None
    controls: dict[str, _Number | None]
    by_fill: dict[str, _Margin]


class _Data(_Section):
    scored: _Count
    seconds_apart: Annotated[float, Gt(0), Le(1e9)] | None = None
    drives: list[str] = _ABSENT


class _Plan(_Section):
    config: dict[str, Any]
    checkpoint_sha256: str | None = None


class _Prediction(_Section):
    unit: str
    error: _Interval = _ABSENT


class _Protocol(_Section):
    references: dict[str, str] = _ABSENT


class _Intervals(_Section):
    block: PositiveCount
    resamples: Resamples
    level: Level
    seed: Seed


class _Video(_Section):
    file: str
    sha256: _Sha256
    frame_rate: Annotated[str, MaxLen(40)]
    pictures: list[_Picture] = _ABSENT
    run_starts: list[_Count] = _ABSENT
    starts_s: list[Annotated[float, Ge(0), Le(1e9)]] | None = None


class _Files(_Section):
    """No others: results that came from elsewhere must not reach for what lies around them."""

    model_config = ConfigDict(extra="forbid")

    table: _Sha256 = Field(alias="per_frame.parquet")
    maps: _Sha256 = Field(default=_ABSENT, alias="maps.h5")


class _Summary(_Section):
    plan: _Plan
    model: dict[str, Any]
    data: _Data
    protocol: _Protocol
    measures: dict[str, _Measure]
    methods: list[str]
    controls: list[str]
    prediction: _Prediction
    scores: list[_Score]
    differences: list[_Difference]
    comparisons: list[_Comparison]
    ranks: list[_Ranks]
    fills: list[_Headline] = _ABSENT
    intervals: _Intervals
    versions: dict[str, Any]
    hardware: dict[str, Any]
    video: _Video | None = None
    files: _Files


class _Mean(_Section):
    check: str
    method: str
    beside: str
    quantity: str
    frames: _Count
    value: _Interval


class _SanityFiles(_Section):
    model_config = ConfigDict(extra="forbid")

    table: _Sha256 = Field(alias="sanity.parquet")


class _SanityPlan(_Section):
    checkpoint_sha256: str


class _SanityData(_Section):
    frames: _Count = _ABSENT


class _Sanity(_Section):
    plan: _SanityPlan
    data: _SanityData
    means: list[_Mean]
    files: _SanityFiles


_Checked = TypeVar("_Checked", bound=_Section)


def read_results(path: Path, *, schema: str) -> dict[str, Any]:
    """The content of a `results.json`, as it stands there.

    Args:
        path: the file.
        schema: its version.

    Raises:
        DataError: it cannot be read, is of another version, or what readers use of it cannot be; the message
            names the first place that is wrong.
        FileNotFoundError: there is none.
    """
    content = _read(path, schema, "score again")
    found = _checked(_Summary, content, path, "score again")
    _require_consistent(found, path)
    return content


def read_sanity(path: Path, *, schema: str) -> dict[str, Any]:
    """The content of a `sanity.json`; see `read_results`."""
    content = _read(path, schema, "check again")
    found = _checked(_Sanity, content, path, "check again")
    keys = [(each.check, each.method, each.beside, each.quantity) for each in found.means]
    _require_once(keys, path, "means", "check again")
    return content


def _read(path: Path, schema: str, cure: str) -> dict[str, Any]:
    try:
        content = read_json(path)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (OSError, ValueError) as error:
        raise DataError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or error}); {cure}"
        ) from None
    found = content.get("schema") if isinstance(content, dict) else None
    if found != schema:
        raise DataError(f"{path}: schema {quoted(found)}, expected {schema!r}; {cure} with this version")
    return content


def _checked(kind: type[_Checked], content: dict[str, Any], path: Path, cure: str) -> _Checked:
    try:
        return kind.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        if first["type"] == "missing":
            raise DataError(f"{path}: lacks {place}; {cure}") from None
        raise DataError(f"{path}: {place} is {quoted(first['input'])} ({first['msg']}); {cure}") from None


def _require_consistent(found: _Summary, path: Path) -> None:
    """Raises DataError where sections contradict each other."""
    scored: dict[tuple[str, str], int] = {}
    for each in found.scores:
        if each.measure not in found.measures:
            raise DataError(f"{path}: scores name {quoted(each.measure)}, which measures lacks; score again")
        points = len(each.curve or ())
        if points and scored.setdefault((each.measure, each.reference), points) != points:
            raise DataError(f"{path}: curves of {each.measure} differ in their number of points; score again")
    _require_once([(each.method, each.measure, each.reference) for each in found.scores], path, "scores")
    for pair in found.differences:
        if pair.control not in found.controls:
            raise DataError(
                f"{path}: differences name {quoted(pair.control)}, which is no control; score again"
            )
    _require_once(
        [(each.method, each.control, each.measure, each.reference) for each in found.differences],
        path,
        "differences",
    )
    if isinstance(found.fills, list):
        _require_headlines(found, path)
    if found.video is not None:
        _require_rate(found.video.frame_rate, path)
        for picture in found.video.pictures or ():
            if [type(part) for part in picture] != [str, int, int]:
                raise DataError(f"{path}: video.pictures holds {quoted(picture)}; replay again")


def _require_headlines(found: _Summary, path: Path) -> None:
    for each in found.fills:
        if unknown := [fill for fill in each.fills if f"{each.measure}{AT}{fill}" not in found.measures]:
            raise DataError(
                f"{path}: fills name {quoted(unknown[0])} of {quoted(each.measure)}, which measures lacks; score again"
            )
    _require_once([(each.measure, each.reference, each.method) for each in found.fills], path, "fills")


def _require_rate(text: str, path: Path) -> None:
    try:
        # As replays write it: never with an exponent, whose power would be computed.
        rate = Fraction(text) if set(text) <= set("0123456789/") else Fraction(0)
    except (ValueError, ZeroDivisionError):
        rate = Fraction(0)
    if not 0 < rate <= MOST_PER_SECOND:
        raise DataError(
            f"{path}: video.frame_rate is {quoted(text)}; expected over 0 and at most {MOST_PER_SECOND}; replay again"
        )


def _require_once(keys: Sequence[Hashable], path: Path, section: str, cure: str = "score again") -> None:
    if (
        twice := next((key for key in keys if keys.count(key) > 1), None)
        if len(set(keys)) < len(keys)
        else None
    ):
        raise DataError(f"{path}: {section} has {quoted(twice)} twice; {cure}")
