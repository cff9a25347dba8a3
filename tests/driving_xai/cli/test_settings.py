"""Settings from defaults, a file and the command line, and what is said of mistakes in them."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest

from driving_xai import cli
from driving_xai.cli.console import SettingsError
from driving_xai.cli.settings import resolve
from driving_xai.experiments.registry import EXPERIMENTS, imported
from driving_xai.experiments.zhu_table1 import ZhuTable1


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
        ("rate = nan", "rate is nan; expected a number"),
        ("rate = -inf", "rate is -inf; expected a number"),
        ("rate = 1" + 400 * "0", "expected a number"),
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


@dataclass(frozen=True, kw_only=True)
class Experiment:
    recipe: Recipe = field(
        default_factory=lambda: Recipe(
            epochs=4, rate=0.5, model=Inner(attention="soft", bits=3), crop=Inner(bits=5)
        )
    )


def test_a_table_changes_what_it_names_in_the_recipes_own_default(tmp_path: Path) -> None:
    own = Experiment().recipe
    assert resolve(Experiment, assignments=["recipe.epochs=9"]).recipe == replace(own, epochs=9)
    file = written(tmp_path, "[recipe.model]\nbits = 6\n[recipe.crop]\nattention = 'none'\n")
    assert resolve(Experiment, file).recipe == replace(
        own, model=Inner(attention="soft", bits=6), crop=Inner(attention="none", bits=5)
    )
    assert resolve(Experiment, assignments=["recipe.crop=none"]).recipe == replace(own, crop=None)
    with pytest.raises(SettingsError, match="epochs is -1"):
        resolve(Experiment, assignments=["recipe.epochs=-1"])


def recipes_of_the_command_line() -> Iterator[type[Any]]:
    """Every class that a command hands to `settings.resolve`: read from the commands' source, and of experiments,
    whose one command takes them from a table, from that."""
    found = {each.__name__: each for each in (imported(one.recipe) for one in EXPERIMENTS.values())}
    for file in sorted(Path(cli.__file__).parent.rglob("*.py")):
        tree = ast.parse(file.read_text())
        homes = {
            alias.name: node.module
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom) and node.module
            for alias in node.names
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "settings.resolve":
                name = ast.unparse(node.args[0])
                if name != "imported(experiment.recipe)":
                    found[name] = getattr(importlib.import_module(homes[name]), name)
    yield from found.values()


RECIPES = list(recipes_of_the_command_line())
NEEDED = {"reader": "udacity-csv", "source": Path("x"), "methods": ("grad-cam@own",)}
"""Of fields whose default is none, or serves only beside another field, by their names."""


def values_of(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting's dotted name and value; None as it is given."""
    for each in fields(config):
        value = getattr(config, each.name)
        if is_dataclass(value):
            yield from values_of(value, f"{prefix}{each.name}.")
        else:
            yield prefix + each.name, "none" if value is None else value


def test_the_recipes_of_the_command_line_are_found() -> None:
    assert {"An", "Iida", "Table1", "ActionTraining", "ClassifierTraining", "PrepConfig"} <= {
        recipe.__name__ for recipe in RECIPES
    }


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.__name__)
def test_a_setting_given_its_own_default_changes_nothing(recipe: type[Any]) -> None:
    """Nothing beside it either; and every annotation is one that settings understand."""
    needed = {each.name: NEEDED[each.name] for each in fields(recipe) if each.name in NEEDED}
    if recipe is ZhuTable1:
        needed["checkpoint"] = "model"
    whole = recipe(**needed)
    for name, value in values_of(whole):
        assert resolve(recipe, options={**needed, name: value}) == whole, name
    assert resolve(recipe, options={**needed, **dict(values_of(whole))}) == whole


def test_a_preset_lies_under_the_file_and_the_command_line(tmp_path) -> None:
    preset = {"epochs": 3, "rate": 1.0, "model": {"attention": "soft", "bits": None}}
    file = tmp_path / "recipe.toml"
    file.write_text("rate = 2.0\n[model]\nbits = 4\n")
    found = resolve(Recipe, file, preset=preset, options={"epochs": 5})
    assert (found.epochs, found.rate, found.model) == (5, 2.0, Inner(attention="soft", bits=4))
    assert resolve(Recipe, preset=preset, assignments=["model.bits=2"]).model == Inner(
        attention="soft", bits=2
    )
    assert preset == {"epochs": 3, "rate": 1.0, "model": {"attention": "soft", "bits": None}}
