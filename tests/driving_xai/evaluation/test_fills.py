"""Several fills in one run: each as in a run of its own, and the worst of them as the headline."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from driving_xai.evaluation.api import evaluate
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.fills import headlines, under_fills
from driving_xai.evaluation.run import score
from driving_xai.metrics.faithfulness import Deletion
from driving_xai.report.page import write_page
from driving_xai.report.sources import load_sources

FILLS = ("black", "mean", "blur")
SETTINGS = {"methods": ("soft-attention", "gradient"), "block_s": 0.1, "every": 3, "resamples": 20}


@pytest.fixture(scope="module")
def results(steering, shards, tmp_path_factory):
    """Of all fills in one run, and of each in its own."""
    root, checkpoint = tmp_path_factory.mktemp("fills"), steering()
    measures = ("deletion", "insertion", "auroc")
    together = score(
        checkpoint, shards, root / "all", ScoreConfig(measures=measures, fills=FILLS, **SETTINGS)
    )
    alone = {
        fill: score(checkpoint, shards, root / fill, ScoreConfig(measures=measures, fill=fill, **SETTINGS))
        for fill in FILLS
    }
    return root / "all", together, alone


def test_each_fill_is_that_of_a_run_of_its_own(results):
    _, together, alone = results
    curves = ("deletion", "insertion")
    assert set(together.summary["measures"]) == {
        *(f"{name}@{fill}" for name in curves for fill in FILLS),
        "auroc",
    }
    for fill, own in alone.items():
        for measure in curves:
            assert together.summary["measures"][f"{measure}@{fill}"] == own.summary["measures"][measure]
            ours, theirs = (
                each.per_frame.query("measure == @name").drop(columns="measure").reset_index(drop=True)
                for each, name in ((together, f"{measure}@{fill}"), (own, measure))
            )
            # To the last bit, though fills stand in one run: passes are shared within a fill.
            pd.testing.assert_frame_equal(
                ours.drop(columns="curve"), theirs.drop(columns="curve"), check_exact=True
            )
            assert (np.stack(ours["curve"]) == np.stack(theirs["curve"])).all()
        assert "fills" not in own.summary
        assert "fills" not in own.summary["plan"]["config"]


def test_the_headline_is_the_worst_fill_with_the_controls_under_it(results):
    _, together, alone = results
    for found in together.summary["fills"]:
        by_fill, beside = {}, {}
        for fill, own in alone.items():
            means = {
                each["method"]: each["base_corrected"]["mean"]
                for each in own.summary["scores"]
                if (each["measure"], each["reference"]) == (found["measure"], found["reference"])
            }
            by_fill[fill], beside[fill] = means[found["method"]], means
        # A faithful deletion raises the error, a faithful insertion lowers it.
        worst = (min if found["measure"] == "deletion" else max)(by_fill, key=by_fill.get)
        assert found["by_fill"] == by_fill
        assert (found["fill"], found["mean"]) == (worst, by_fill[worst])
        assert found["controls"] == {name: beside[worst][name] for name in ("random", "centre-prior")}
    assert [
        tuple(each[key] for key in ("measure", "reference", "method")) for each in together.summary["fills"]
    ] == [
        (measure, reference, method)
        for measure in ("deletion", "insertion")
        for reference in ("truth", "clean")
        for method in SETTINGS["methods"]
    ]


def test_low_is_worst_where_high_is_good_and_an_unknown_mean_has_no_worst():
    def scored(fill: str, mean: float | None) -> dict:
        name = {"measure": f"pid-8@{fill}", "reference": "target", "method": "rise"}
        return {**name, "value": {"mean": mean, "low": None, "high": None}}

    named = under_fills(["pid-8"], ["black", "blur"])
    for faithful, worst in (("high", "blur"), ("low", "black")):
        about = {name: {"faithful": faithful} for name in named}
        (found,) = headlines(
            [scored("black", 0.5), scored("blur", 0.1)], measures=about, named=named, controls=()
        )
        assert (found["fill"], found["statistic"]) == (worst, "value")
    (found,) = headlines(
        [scored("black", 0.5), scored("blur", None)], measures=about, named=named, controls=()
    )
    assert found["fill"] is None


def test_the_page_shows_the_headline_and_a_board_for_each_fill(results, tmp_path):
    folder, together, _ = results
    write_page(load_sources([folder]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert text.count("under the fill that suits it least") == 1
    for found in together.summary["fills"]:
        assert f"<td>{found['fill']}</td>" in text
    assert all(f"deletion@{fill}" in text for fill in FILLS)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fills": ("black",)}, "expected two or more"),
        ({"fills": ("mean", "mean")}, "expected two or more, each once"),
        ({"fills": ("black", "grey")}, "got fill 'grey'"),
        ({"fills": ("black", "mean"), "fill": "blur"}, "give one of them"),
        ({"fills": ("black", "mean"), "measures": ("auroc",)}, "which no measure of this run takes"),
    ],
)
def test_fills_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(methods=("gradient",), **settings)


def test_objects_keep_their_own_fill(steering, shards):
    with pytest.raises(ValueError, match="objects have their own"):
        evaluate(steering(), shards, methods=("gradient",), metrics=[Deletion()], fill=("black", "blur"))
    found = evaluate(
        steering(),
        shards,
        methods=("gradient",),
        metrics=["insertion", Deletion(fill="mean")],
        fill=("black", "blur"),
        every=10,
    )
    assert set(found.summary["measures"]) == {"insertion@black", "insertion@blur", "deletion"}
    assert found.summary["measures"]["deletion"]["fill"] == "mean"
    assert {each["measure"] for each in found.summary["fills"]} == {"insertion"}
