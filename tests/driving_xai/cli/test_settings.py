"""Settings from defaults, a file and the command line, and what is said of mistakes in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest

from driving_xai.cli.console import SettingsError
from driving_xai.cli.settings import resolve


@dataclass(frozen=True, kw_only=True)
class Inner:
    attention: Literal["none", "soft", "sign"] = "sign"
    bits: int | None = 10


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: Inner = field(default_factory=Inner)
    crop: Inner | None = None
    epochs: int = 30
    rate: float = 1e-4
    flip: bool = True
    names: tuple[str, ...] = ()
    folder: Path = Path()
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"epochs is {self.epochs}; expected 0 or more")


def written(folder: Path, text: str) -> Path:
    file = folder / "recipe.toml"
    file.write_text(text)
    return file


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = written(
        tmp_path, 'epochs = 5\nrate = 1\nnames = ["a", "b"]\n[model]\nattention = "soft"\nbits = "none"\n'
    )
    found = resolve(Recipe, file, options={"epochs": 7, "model.attention": None}, assignments=["folder=x/y"])
    assert found == Recipe(
        epochs=7, rate=1.0, names=("a", "b"), folder=Path("x/y"), model=Inner(attention="soft", bits=None)
    )
    assert type(found.rate) is float, "1 in TOML is a whole number; the field is not"


def test_nothing_given_is_the_defaults() -> None:
    assert resolve(Recipe) == Recipe()


def test_an_assignment_is_toml_or_else_plain_text() -> None:
    found = resolve(
        Recipe,
        assignments=[
            "flip=false",
            "model.attention=none",
            "crop.bits=6",
            "options.camera=left",
            "options.n=[1, 2]",
        ],
    )
    assert found == Recipe(
        flip=False, model=Inner(attention="none"), crop=Inner(bits=6), options={"camera": "left", "n": [1, 2]}
    )


def test_none_is_a_choice_where_the_field_has_it_as_a_word() -> None:
    assert resolve(Recipe, assignments=["model.attention=none"]).model.attention == "none"
    assert resolve(Recipe, assignments=["crop=none"]).crop is None


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch = 3", "epoch is no setting; did you mean epochs?"),
        ("[model]\natention = 'soft'", "model.atention is no setting; did you mean model.attention?"),
        ("[crop]\nbit = 3", "crop.bit is no setting; did you mean crop.bits?"),
        ("qqq = 3", "qqq is no setting; there are model, crop, epochs"),
        ("epochs = true", "epochs is True; expected a whole number"),
        ("epochs = 3.5", "epochs is 3.5; expected a whole number"),
        ("rate = true", "rate is True; expected a number"),
        ("flip = 1", "flip is 1; expected true or false"),
        ("names = 'a'", "names is 'a'; expected a list"),
        ("names = [1]", "names[0] is 1; expected text"),
        ("model = 3", "model is 3; expected a table"),
        ("[model]\nattention = 'hard'", "model.attention is 'hard'; expected one of none, soft, sign"),
        ("[model]\nbits = 'ten'", "model.bits is 'ten'; expected a whole number"),
        ("options = 3", "options is 3; expected a table"),
        ("epochs = -1", "epochs is -1; expected 0 or more"),
        ("epochs = ", "not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        resolve(Recipe, written(tmp_path, text))
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("epochs", "--set got 'epochs'; expected NAME=VALUE"),
        ("epochs.x=3", "epochs is a value"),
    ],
)
def test_a_mistake_in_an_assignment_is_named(tmp_path: Path, assignment: str, said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        resolve(Recipe, written(tmp_path, "epochs = 3"), assignments=[assignment])


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(SettingsError, match="--config"):
        resolve(Recipe, tmp_path / name)


def test_every_recipe_survives_a_round_through_its_own_defaults() -> None:
    """Each field's annotation is one that settings understand."""
    from dataclasses import asdict

    from data_prep.pipeline import PrepConfig
    from driving_xai.faithfulness.score import ScoreConfig
    from driving_xai.training.steering import SteeringTraining

    prep = PrepConfig(reader="udacity-csv", source=Path("x"))
    for config in (SteeringTraining(), ScoreConfig(methods=("grad-cam",)), prep):
        assert resolve(type(config), options=asdict(config)) == config
