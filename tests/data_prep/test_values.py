"""Typed values: what each type takes, in which words the rest is refused, and recipes that check themselves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from data_prep.values import (
    BareText,
    Checked,
    Ge,
    Interval,
    InvalidValue,
    Lt,
    MinLen,
    build,
    checked,
    keyword_types,
    nearest,
)


@pytest.mark.parametrize(
    ("hint", "value", "taken"),
    [
        (int, -3, -3),
        (int, BareText("05"), 5),
        (int, "05", 5),
        (float, "2.5", 2.5),
        (int | None, "5", 5),
        (str | int, "5", "5"),
        (int | str, "5", "5"),
        (Literal["auto", "32", "bf16"], 32, "32"),
        (Literal["32", 32], 32, 32),
        (float, 1, 1.0),
        (float, BareText(".5"), 0.5),
        (str, BareText(".5"), ".5"),
        (Path, "a/b", Path("a/b")),
        (Path, Path("a"), Path("a")),
        (int | None, "none", None),
        (str | None, "none", None),
        (Literal["none", "soft"], "none", "none"),
        (Literal[1, 2], 2, 2),
        (Literal["a"] | float, 2, 2.0),
        (tuple[str, ...], ["a"], ("a",)),
        (tuple[int, float], [1, 2], (1, 2.0)),
        (tuple[int, int] | int, 3, 3),
        (tuple[tuple[int, int], ...], [[1, 2], [3, 4]], ((1, 2), (3, 4))),
        (Mapping[str, Mapping[str, Any]], {"snna": {"samples": 3}}, {"snna": {"samples": 3}}),
        (dict[str, float], {"a": 1}, {"a": 1.0}),
        (Annotated[int | None, Ge(1)], None, None),
        (Annotated[float, Interval(gt=0, le=1)], 1, 1.0),
    ],
)
def test_what_fits_is_taken_as_the_type_it_has(hint, value, taken) -> None:
    found = checked(hint, value, "x")
    assert found == taken
    assert type(found) is type(taken)


@pytest.mark.parametrize(
    ("hint", "value", "said"),
    [
        (int, True, "x is True; expected a whole number"),
        (int, 3.0, "x is 3.0; expected a whole number"),
        (int, "3.5", "x is '3.5'; expected a whole number"),
        (int, 2**70, "x is 1180591620717411303424; expected a whole number of less than 2**32"),
        (float, "nan", "x is 'nan'; expected a number"),
        (Literal["auto", "32"], 16, "x is 16; expected one of auto, 32"),
        (Literal["auto", "1"], True, "x is True; expected one of auto, 1"),
        (int, 2**32, "x is 4294967296; expected a whole number"),
        (float, True, "x is True; expected a number"),
        (float, math.inf, "x is inf; expected a number"),
        (float, math.nan, "x is nan; expected a number"),
        (float, BareText("nan"), "x is 'nan'; expected a number"),
        (bool, 1, "x is 1; expected true or false"),
        (str, 3, "x is 3; expected text"),
        (Path, 3, "x is 3; expected a path"),
        (Literal[1, 2], True, "x is True; expected one of 1, 2"),
        (Literal[1, 2], 1.0, "x is 1.0; expected one of 1, 2"),
        (Literal["a", "b"], "c", "x is 'c'; expected one of a, b"),
        (int | None, "ten", "x is 'ten'; expected a whole number or none"),
        (tuple[int, int], [1], "x is [1]; expected a list [a whole number, a whole number]"),
        (tuple[int, int], [1, True], "x is [1, True]; expected a list [a whole number, a whole number]"),
        (tuple[str, ...], "a", "x is 'a'; expected a list"),
        (tuple[str, ...], ["a", 1], "x[1] is 1; expected text"),
        (tuple[str, ...] | None, ["a", 1], "x[1] is 1; expected text"),
        (Mapping[str, Mapping[str, Any]], {"snna": 3}, "x.snna is 3; expected a table"),
        (dict[str, Any], 3, "x is 3; expected a table"),
        (Annotated[int, Ge(1)], 0, "x is 0; expected 1 or more"),
        (Annotated[int, Ge(1)], True, "x is True; expected a whole number"),
        (Annotated[int | None, Ge(1)], 0, "x is 0; expected 1 or more"),
        (Annotated[float, Interval(gt=0, le=1e6)], 0, "x is 0; expected over 0 and at most 1,000,000"),
        (Annotated[float, Ge(0), Lt(0.5)], 0.5, "x is 0.5; expected 0 or more and under 0.5"),
        (Annotated[float, Ge(1), "where 1 is off"], 0.5, "x is 0.5; expected 1 or more, where 1 is off"),
        (Annotated[tuple[str, ...], MinLen(1)], [], "x is []; expected 1 or more of them"),
        (tuple[Annotated[int, Ge(1)], ...], [1, 0], "x[1] is 0; expected 1 or more"),
        (str | None, ["\n" * 9000], "expected text or none"),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(hint, value, said) -> None:
    with pytest.raises(InvalidValue) as caught:
        checked(hint, value, "x")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 200


@dataclass(frozen=True, kw_only=True)
class Inner(Checked):
    bits: Annotated[int | None, Ge(1)] = 10
    attention: Literal["none", "soft"] = "soft"


@dataclass(frozen=True, kw_only=True)
class Outer(Checked):
    model: Inner = field(default_factory=lambda: Inner(bits=6))
    sizes: tuple[int, ...] = ()
    rate: Annotated[float, Interval(gt=0)] = 0.5
    folder: Path | None = None
    least: int = 0
    most: int = 9

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.least > self.most:
            raise ValueError(f"least {self.least} is over most {self.most}; expected it at most")


def test_a_recipe_made_in_python_is_checked_and_converted_too() -> None:
    made = Outer(sizes=[1, 2], rate=1, folder="x")
    assert (made.sizes, made.rate, made.folder) == ((1, 2), 1.0, Path("x"))
    assert type(made.rate) is float
    assert hash(made) == hash(Outer(sizes=(1, 2), rate=1.0, folder=Path("x")))
    assert replace(made, rate=2.0).sizes == (1, 2)
    assert list(asdict(made)) == ["model", "sizes", "rate", "folder", "least", "most"]
    with pytest.raises(InvalidValue, match="rate is 0; expected over 0"):
        Outer(rate=0)
    with pytest.raises(InvalidValue, match="rate is -1; expected over 0"):
        replace(made, rate=-1)
    with pytest.raises(ValueError, match="least 10 is over most 9"):
        Outer(least=10)


def test_a_recipe_raises_the_error_of_its_package() -> None:
    class Refused(ValueError):
        pass

    @dataclass(frozen=True, kw_only=True)
    class Own(Checked, error=Refused):
        epochs: int = 0

    with pytest.raises(Refused, match="epochs is 'a'; expected a whole number"):
        Own(epochs="a")


def test_a_table_changes_what_it_names_and_a_fault_in_it_has_its_whole_name() -> None:
    assert build(Outer, {"model": {"attention": "none"}}).model == Inner(bits=6, attention="none")
    for table, said in (
        ({"model": {"bits": 0}}, "model.bits is 0; expected 1 or more"),
        ({"model": {"bit": 0}}, r"model.bit is no setting; did you mean model.bits\?"),
        ({"model": 3}, "model is 3; expected a table"),
        ({"modell": {}}, r"modell is no setting; did you mean model\?"),
    ):
        with pytest.raises(InvalidValue, match=said):
            build(Outer, table)


def _read(kind: type, value: object) -> object:
    try:
        return kind(value) if isinstance(value, str) else value
    except ValueError:
        return value


@example("0")
@example("1.5")
@example("nan")
@example(str(2**32))
@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.lists(st.integers())))
def test_a_value_is_taken_by_few_types_and_checking_twice_changes_nothing(value: object) -> None:
    """The rules against a naive table of Python's own types; text that reads as a number is one."""
    naive = {
        bool: type(value) is bool,
        int: type(whole := _read(int, value)) is int and abs(whole) < 2**32,
        float: type(real := _read(float, value)) in (int, float) and abs(real) <= 1.7976931348623157e308,
        str: type(value) is str,
        tuple[int, ...]: type(value) is list and all(abs(each) < 2**32 for each in value),
    }
    for hint, fits in naive.items():
        try:
            found = checked(hint, value, "x")
        except InvalidValue:
            assert not fits, hint
        else:
            assert fits, hint
            assert checked(hint, found, "x") == found


def test_the_options_of_a_function_are_what_text_can_say() -> None:
    class Explainer:
        def __init__(
            self, *, layer: object, shape: Literal["grid"] | object = "grid", rate: float | None = None
        ) -> None: ...

    def reader(source: Path, *, seed: int = 0, share: Annotated[float, Ge(0)] = 0.5) -> None: ...

    assert keyword_types(reader, apart=("seed",)) == {"share": Annotated[float, Ge(0)]}
    assert keyword_types(Explainer, reader).keys() == {"shape", "rate", "seed", "share"}


def test_a_name_without_a_near_one_is_told_all_there_are() -> None:
    assert nearest("qqq", ["epochs", "seed"]) == "there are epochs, seed"
    assert nearest("qqq", []) == "there are none"
