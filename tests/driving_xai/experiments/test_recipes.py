"""Recipes of experiments: each takes options of its methods, and none ignores a setting in silence."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from driving_xai.cli import settings
from driving_xai.data.splits import FoldOut, HoldOut
from driving_xai.errors import OptionError
from driving_xai.experiments.an import An
from driving_xai.experiments.baumhauer import Explanations
from driving_xai.experiments.iida import Iida
from driving_xai.experiments.networks import fitting
from driving_xai.experiments.recipes import planned, require_unset
from driving_xai.experiments.registry import EXPERIMENTS, imported
from driving_xai.experiments.steering_cv import CrossValidation
from driving_xai.experiments.tashiro import Tashiro
from driving_xai.experiments.zhu_accuracy import ZhuAccuracy

NEEDED = {"zhu-table1": {"checkpoint": "model"}}
BY_NO_METHOD = {
    "zhu-accuracy": "nothing is explained",
    "baumhauer-table1": "heads explain, by their own settings",
    "baumhauer-table2": "heads explain, by their own settings; those of LIME are patterns, kept and score",
    "baumhauer-mnist": "networks explain themselves",
    "an-table2": "nothing is explained",
    "baumhauer-l2x": "a network explains another, by settings of its own",
    "baumhauer-context": "heads explain, by their own settings",
}


def recipe_of(name: str, *assignments: str) -> Any:
    recipe = imported(EXPERIMENTS[name].recipe)
    return settings.resolve(recipe, options=NEEDED.get(name), assignments=assignments)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_experiment_takes_methods_and_their_options(name: str) -> None:
    has = {field.name for field in fields(imported(EXPERIMENTS[name].recipe))}
    if name in BY_NO_METHOD:
        assert not {"methods", "options"} & has
        with pytest.raises(settings.SettingsError, match="options is no setting"):
            recipe_of(name, "options.snna.samples=3")
        return
    assert {"methods", "options"} <= has
    chosen = recipe_of(name, 'methods=["lime@few"]', "options.lime@few.samples=9")
    assert (chosen.methods, chosen.options) == (("lime@few",), {"lime@few": {"samples": 9}})


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in BY_NO_METHOD])
@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (["options.occlusion.nope=1"], "is of no method of this run"),
        (['methods=["lime"]', "options.lime.nope=1"], r"options\.lime\.nope is no option"),
        (['methods=["lime"]', "options.lime.samples=many"], "expected a whole number"),
        (['methods=["lime"]', "options.lime@few.samples=3"], "is of no method of this run"),
        (['methods=["nope"]'], "got method 'nope'"),
        (['methods=["lime@a b"]'], "expected a label"),
        (['methods=["lime", "lime"]'], "call it lime@LABEL"),
    ],
)
def test_an_option_that_no_method_takes_is_refused(name: str, assignments: list[str], message: str) -> None:
    with pytest.raises((OptionError, settings.SettingsError), match=message):
        recipe_of(name, *assignments)


def test_options_of_a_method_that_fits_no_network_are_refused() -> None:
    given = {"methods": ("soft-attention-filtered",), "options": {"soft-attention-filtered": {}}}
    Tashiro(measured_on=("soft",), **given)
    with pytest.raises(OptionError, match=r"fits no network in measured_on \(sign\)"):
        Tashiro(measured_on=("sign",), **given)
    with pytest.raises(OptionError, match="no model of this run"):
        CrossValidation(attentions=("sign", "none"), **given)
    with pytest.raises(OptionError, match="no model of this run"):
        CrossValidation(score_every=0, methods=("lime",), options={"lime": {"samples": 9}})
    assert fitting(("lime", "sign-attention", "soft-attention@x"), "none") == ("lime",)


PRETEND = Path("shards")
IGNORED: list[tuple[str, Path | None, tuple[str, ...], str]] = [
    ("steering-cv", PRETEND, ("training.held_out.block=1",), "training.held_out.block is set"),
    ("steering-cv", PRETEND, ("training.model.attention=none",), "training.model.attention is set"),
    ("tashiro-fig6", PRETEND, ("training.seed=1",), "run i draws with seed i"),
    ("tashiro-fig6", PRETEND, ("training.model.attention=soft",), "each network has its own"),
    ("tashiro-fig6", PRETEND, ("blocks=[1, 2]", "training.held_out.block=1"), "held out in turn"),
    ("zhu-accuracy", PRETEND, ("training.held_out.fold=1",), "`folds` says it"),
    ("zhu-accuracy", PRETEND, ("folds=3", "training.held_out.folds=4"), "`folds` says it"),
    ("zhu-accuracy", PRETEND, ("training.held_out.val_fraction=0.2",), "where folds is 0"),
    ("an-table3", PRETEND, ("pictures=[9, 9, 9]",), "it is of the stand-in"),
    ("an-table4", PRETEND, ("clutter.noise=0.1",), "it is of the stand-in"),
    ("an-table3", None, ("checkpoint=model", "training.epochs=1"), "not trained again"),
    ("an-table3", None, ("checkpoint=model", "with_cbam=false"), "not trained again"),
    ("an-table3", None, ("training.seed=1",), "run i draws with seed i"),
    ("an-table2", PRETEND, ("pictures=[9, 9, 9]",), "it is of the stand-in"),
    ("an-table2", None, ('networks=["timm:resnet18", "timm:resnet34"]', "seeds=2"), "not trained again"),
    ("iida-table2", PRETEND, ("spots.noise=0.1",), "it is of the stand-in"),
    ("iida-table2", None, ("rise_masks=9", "options.rise.masks=9"), r"options\.rise\.samples is set too"),
    ("iida-table4", None, ("training.labn.bias_image=mask-only",), "Table 4 varies it"),
    ("iida-table4", None, ('methods=["lime"]',), "LABN alone"),
    ("baumhauer-table1", None, ("network.name=resnet18",), "the stand-in has a network of its own"),
    ("baumhauer-table1", PRETEND, ("stand_in.train=9",), "images are given"),
    ("baumhauer-table2", None, ("explanations.tau=0.2",), "no L2X is trained"),
    ("baumhauer-l2x", PRETEND, ("network.precision=fp32",), "no kept features"),
    ("baumhauer-l2x", PRETEND, ("learns=all",), "is frozen here"),
    ("baumhauer-context", None, ("explanations.tau=0.2",), "neither bla, concept nor sigmoid"),
    ("baumhauer-mnist", None, ('networks=["baseline", "bla"]', "tau=0.2"), "holds no l2x"),
    ("baumhauer-mnist", None, ('networks=["baseline", "l2x"]', "theta=0.2"), "neither bla nor bla-t"),
]


@pytest.mark.parametrize(("name", "data", "assignments", "message"), IGNORED)
def test_a_setting_without_effect_is_refused_before_any_work(
    name: str, data: Path | None, assignments: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    recipe = recipe_of(name, *assignments)
    with pytest.raises(OptionError, match=message):
        imported(EXPERIMENTS[name].run)(data, tmp_path / "out", recipe, device="cpu", on_progress=None)
    assert not (tmp_path / "out").exists()


def test_every_experiment_is_among_those_with_refused_settings_or_has_none() -> None:
    """zhu-table1 hands all it has to `score`, which refuses by itself; see test_zhu_table1."""
    tested = {name for name, *_ in IGNORED} | {name for name, each in EXPERIMENTS.items() if each.unread}
    assert set(EXPERIMENTS) - tested == {"zhu-table1"}


def test_a_plan_changes_with_every_setting_that_decides_but_seeds() -> None:
    """Without chosen methods a plan is that of before there was a choice."""
    for usual in (An(), Iida()):
        assert not {"seeds", "methods", "options"} & planned(usual).keys()
        assert planned(replace(usual, seeds=3)) == planned(usual)
        assert planned(replace(usual, methods=("lime",)))["methods"] == ("lime",)
        assert planned(replace(usual, options={"grad-cam": {"layer": "x"}}))["options"]
    assert planned(Explanations(tau=0.3)) != planned(Explanations())


def test_only_what_differs_from_the_default_counts_as_set() -> None:
    require_unset(CrossValidation(score_every=3), {"training.held_out.block": "it is replaced"})
    held_out = HoldOut(block=1, gap_s=0.1)
    recipe = CrossValidation(training=replace(CrossValidation().training, held_out=held_out))
    with pytest.raises(OptionError, match=r"held_out\.block is set, but it is replaced; leave it out"):
        require_unset(recipe, {"training.held_out.block": "it is replaced"})
    require_unset(ZhuAccuracy(folds=3), {"training.held_out": "it is FoldOut() by default"})
    assert ZhuAccuracy().training.held_out == FoldOut()
