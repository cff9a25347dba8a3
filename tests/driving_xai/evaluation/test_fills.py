"""Several fills in one run: each as in a run of its own, and the worst of them as the headline."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from driving_xai.cli import tables
from driving_xai.evaluation.api import evaluate
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.fill_margins import headlines, judge_headline, sentence
from driving_xai.evaluation.fills import under_fills
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


def test_the_headline_is_the_smallest_margin_over_the_best_control(results):
    """A slow twin: every margin by itself, from the runs of one fill each."""
    _, together, alone = results
    for found in together.summary["fills"]:
        margins = {}
        for fill, own in alone.items():
            rows = own.per_frame.query("measure == @found['measure'] and reference == @found['reference']")
            values = rows.pivot(index="frame", columns="method", values="base_corrected")
            # A faithful deletion raises the error, a faithful insertion lowers it.
            sign = 1 if found["measure"] == "deletion" else -1
            for control in ("random", "centre-prior"):
                difference = values[found["method"]] - values[control]
                margins[fill, control] = sign * float(difference.mean())
        fill, control = min(margins, key=margins.get)
        assert (found["fill"], found["control"]) == (fill, control)
        assert found["margin"]["mean"] == pytest.approx(margins[fill, control])
        for each in FILLS:
            least = min(margins[each, name] for name in ("random", "centre-prior"))
            assert found["by_fill"][each]["mean"] == pytest.approx(least)
    assert [
        tuple(each[key] for key in ("measure", "reference", "method")) for each in together.summary["fills"]
    ] == [
        (measure, reference, method)
        for measure in ("deletion", "insertion")
        for reference in ("truth", "clean")
        for method in SETTINGS["methods"]
    ]


def made(margins: dict[str, dict[str, tuple[float, float, float, float]]], *, faithful: str = "high") -> dict:
    """A summary of one method under several fills: by fill and control mean, low, high and p of the difference."""
    name = {"reference": "target", "method": "rise"}
    names = {f"pid-8@{fill}": fill for fill in margins}
    pairs = [
        {"measure": measure, **name, "other": control, "blocks": 12, "p": p}
        | {"value": {"mean": mean, "low": low, "high": high}}
        | {"rank_biserial": None if p is None else math.copysign(0.8, mean)}
        | dict.fromkeys(("p_holm", "cohens_dz", "cliffs_delta"))
        for measure, fill in names.items()
        for control, (mean, low, high, p) in margins[fill].items()
    ]
    scores = [
        {"measure": measure, "reference": "target", "method": method, "value": {"mean": 1.0}}
        for measure in names
        for method in ("rise", *next(iter(margins.values())))
    ]
    about = {measure: {"kind": "curve", "faithful": faithful} for measure in names}
    controls = list(next(iter(margins.values())))
    summary = {"scores": scores, "comparisons": pairs, "measures": about, "controls": controls}
    summary["intervals"] = {"level": 0.95}
    summary["fills"] = headlines(summary, under_fills(["pid-8"], list(margins)))
    return summary


def test_a_large_area_under_a_fill_where_random_is_large_too_is_not_the_best_fill():
    """The raw mean cannot choose the fill: what counts is the distance from the controls under it."""
    found = made(
        {
            "black": {"random": (9.0, 5.0, 12.0, 0.001), "centre-prior": (8.0, 4.0, 11.0, 0.001)},
            "blur": {"random": (4.0, 3.0, 5.0, 0.001), "centre-prior": (2.0, 1.0, 3.0, 0.004)},
        }
    )
    (entry,) = found["fills"]
    assert (entry["fill"], entry["control"]) == ("blur", "centre-prior")
    assert entry["margin"] == {"mean": 2.0, "low": 1.0, "high": 12.0}
    assert entry["p_holm"] == pytest.approx(0.004)
    assert entry["comparisons"] == 4
    assert judge_headline(entry, 0.95) == "better"
    assert sentence(entry, found) == (
        "The highlighted pixels matter more than every control's under each fill (black and blur): the smallest "
        "margin is 2 above those in the middle of the frame, under blur (over all fills and controls 1 to 12, largest p "
        "0.004)."
    )


def test_every_margin_has_to_be_shown_not_only_the_smallest():
    """The smallest is clear, another is not: nothing is claimed of all fills."""
    found = made(
        {
            "black": {"random": (9.0, -5.0, 30.0, 0.3)},
            "blur": {"random": (2.0, 1.0, 3.0, 0.001)},
        }
    )
    (entry,) = found["fills"]
    assert (entry["fill"], entry["margin"]["low"], entry["p_holm"]) == ("blur", -5.0, 0.3)
    assert judge_headline(entry, 0.95) == "not shown"
    assert sentence(entry, found).startswith("No evidence that the highlighted pixels matter more than every")


def test_low_is_turned_where_low_is_good_and_one_loss_is_enough():
    found = made(
        {"black": {"random": (-9.0, -12.0, -5.0, 0.001)}, "blur": {"random": (2.0, 1.0, 3.0, 0.001)}},
        faithful="low",
    )
    (entry,) = found["fills"]
    assert entry["margin"] == {"mean": -2.0, "low": -3.0, "high": 12.0}
    assert judge_headline(entry, 0.95) == "worse"
    assert sentence(entry, found) == (
        "Under blur the highlighted pixels matter less than random ones (margin −2, −3 to −1, p 0.002)."
    )


def test_a_loss_has_its_own_numbers_and_is_said_before_a_smaller_margin_that_is_not_shown():
    found = made(
        {"black": {"random": (-9.0, -30.0, 5.0, 0.3)}, "blur": {"random": (-2.0, -3.0, -1.0, 0.001)}}
    )
    (entry,) = found["fills"]
    assert (entry["fill"], entry["p_holm"]) == ("black", 0.3)
    assert entry["loss"] == {"fill": "blur", "control": "random", "mean": -2.0, "low": -3.0, "high": -1.0} | {
        "p_holm": 0.002,
        "rank_biserial": -0.8,
    }
    assert judge_headline(entry, 0.95) == "worse"
    assert "(margin −2, −3 to −1, p 0.002)" in sentence(entry, found)


@pytest.mark.parametrize("other", [{}, {"random": (2.0, None, None, None)}])
def test_a_loss_is_said_where_another_fill_has_too_few_blocks(other):
    found = made({"blur": {"random": (-2.0, -3.0, -1.0, 0.001)}, "black": other})
    (entry,) = found["fills"]
    assert entry["margin"]["low"] is None
    assert judge_headline(entry, 0.95) == "worse"
    assert sentence(entry, found).startswith("Under blur the highlighted pixels matter less than random ones")


@pytest.mark.parametrize("faithful", ["high", "low"])
def test_a_margin_whose_test_speaks_against_it_is_not_shown(faithful):
    found = made({fill: {"random": (2.0, 1.0, 3.0, 0.001)} for fill in ("black", "blur")}, faithful="high")
    sign = 1 if faithful == "high" else -1
    for pair in found["comparisons"]:
        low, high = sorted((sign * pair["value"]["low"], sign * pair["value"]["high"]))
        pair["value"] = {"mean": sign * pair["value"]["mean"], "low": low, "high": high}
        pair["rank_biserial"] *= sign if pair["measure"] == "pid-8@blur" else -sign
    for about in found["measures"].values():
        about["faithful"] = faithful
    (entry,) = headlines(found, under_fills(["pid-8"], ["black", "blur"]))
    assert (entry["rank_biserial"], entry["by_fill"]["blur"]["rank_biserial"]) == (-0.8, 0.8)
    assert judge_headline(entry, 0.95) == "not shown"


def test_the_interval_covers_the_smallest_true_margin():
    """Four equal true margins: the smallest found lies below them, and its own upper end too often as well."""
    draw, hits, trials = np.random.default_rng(0), 0, 400
    for _ in range(trials):
        means = draw.normal(1.0, 1.0, 4)
        margins = {
            f"f{at}": {"random": (mean, mean - 1.96, mean + 1.96, 0.2)} for at, mean in enumerate(means)
        }
        (entry,) = made(margins)["fills"]
        hits += entry["margin"]["low"] <= 1.0 <= entry["margin"]["high"]
    assert hits / trials > 0.93
    assert np.mean(draw.normal(0, 1, (10_000, 4)).min(1) + 1.96 < 0) > 0.08, (
        "of the smallest margin's own end"
    )


def test_p_is_corrected_for_all_fills_methods_and_controls():
    """Two of one p under 0.05 each do not pass together."""
    twice = {"random": (2.0, 1.0, 3.0, 0.03), "centre-prior": (2.0, 1.0, 3.0, 0.03)}
    found = made({"black": twice, "blur": twice})
    assert found["fills"][0]["p_holm"] == pytest.approx(0.12)
    assert judge_headline(found["fills"][0], 0.95) == "not shown"


def test_a_fill_without_values_has_no_headline_and_says_why():
    found = made({"black": {"random": (2.0, 1.0, 3.0, 0.03)}, "blur": {}})
    (entry,) = found["fills"]
    assert (entry["fill"], entry["margin"]["mean"]) == (None, None)
    assert "no frame has both values" in sentence(entry, found)


def test_the_page_shows_the_headline_and_a_board_for_each_fill(results, tmp_path):
    folder, _, _ = results
    write_page(load_sources([folder]), tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    unmodified, truth = (
        text.index(f"{kind}deletion, against the {what}, under every fill")
        for kind, what in (("<h3>", "unmodified prediction"), ("<summary>", "recorded truth"))
    )
    assert unmodified < truth, (
        "what follows the model's own error comes second, folded away, with its warning"
    )
    assert "contain the model" in text[truth : truth + 400]
    assert all(f"deletion@{fill}" in text for fill in FILLS)


def test_the_terminal_shows_the_headline_without_the_truth_or_with_its_warning(results):
    folder, together, _ = results
    shown, truth = (
        "\n".join(tables.results(together.summary, folder, against=against))
        for against in ("unmodified", "truth")
    )
    assert "deletion, against the unmodified prediction, under every fill:" in shown
    assert "clean" not in shown
    assert "recorded truth, under every fill" not in shown
    assert "deletion, against the recorded truth, under every fill:" in truth
    assert "contain the model" in truth


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fills": ("black",)}, "expected two or more"),
        ({"fills": ("mean", "mean")}, "expected two or more, each once"),
        ({"fills": ("black", "grey")}, r"fills\[1\] is 'grey'; expected one of black, mean, blur"),
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
