"""Verdicts as sentences: which words a comparison earns, what is shown by default, why nothing can be said."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driving_xai.evaluation.judgement import beforehand, judge, pair_of
from driving_xai.evaluation.summary import compare_pair
from driving_xai.evaluation.verdicts import Against, SoFar, Verdict, is_headline, verdicts_of
from driving_xai.metrics.quantities import PROBABILITY, STEERING_ERROR
from driving_xai.metrics.registry import FAMILIES, METRICS, build
from driving_xai.metrics.statistics import BlockBootstrap
from tests.driving_xai.report.made import make_rows, make_summary


def pair(low: float | None, high: float | None, p: float | None) -> dict:
    rank_biserial = None if p is None else math.copysign(0.8, high)
    return {"value": {"low": low, "high": high}, "p_holm": p, "rank_biserial": rank_biserial}


@pytest.mark.parametrize(
    ("compared", "faithful", "expected"),
    [
        (pair(1, 3, 0.01), "high", "better"),
        (pair(1, 3, 0.01), "low", "worse"),
        (pair(-3, -1, 0.05), "low", "better"),
        (pair(1, 3, 0.06), "high", "not shown"),
        (pair(-1, 3, 0.01), "high", "not shown"),
        (pair(0, 3, 0.01), "high", "not shown"),
        (pair(None, None, None), "high", "unknown"),
        (pair(1, 3, None), "high", "unknown"),
    ],
)
def test_better_takes_the_interval_and_the_test(compared, faithful, expected):
    assert judge(compared, faithful=faithful, level=0.95) == expected


def verdict(*against: Against, kind: str = "curve", faithful: str = "high", **more: object) -> Verdict:
    about = {"kind": kind, "faithful": faithful}
    return Verdict(
        method="lime", measure="m", reference="r", about=about, value=231.0, against=against, **more
    )


RANDOM, MIDDLE = "random ones", "those in the middle of the frame"


@pytest.mark.parametrize(
    ("random", "middle", "said"),
    [
        ("better", "better", f"matter more than {RANDOM} (area 231 against 15, p 0.047) and {MIDDLE} (against"),
        ("better", "not shown", ", but there is no evidence that they matter more than those in the middle"),
        ("better", "worse", ", but they matter less than those in the middle"),
        ("worse", "worse", f"The highlighted pixels matter less than {RANDOM}"),
        ("worse", "not shown", ", and there is no evidence that they matter more than those in the middle"),
        ("not shown", "not shown", f"No evidence that the highlighted pixels matter more than {RANDOM}"),
        ("not shown", "better", f"The highlighted pixels matter more than {MIDDLE}"),
        ("unknown", "unknown", f"Too little was scored to tell whether the highlighted pixels matter more than {RANDOM} or {MIDDLE}: why."),
    ],
)  # fmt: skip
def test_the_sentence_of_two_controls(random, middle, said):
    found = verdict(
        Against("random", random, 15.0, 0.047),
        Against("centre-prior", middle, 220.0, 0.5),
        why_unknown="why",
    )
    assert said in found.sentence
    assert found.beats_all == (random == middle == "better")


JUDGEMENTS = ["better", "worse", "better by interval", "worse by interval", "not shown", "unknown"]


@given(st.lists(st.sampled_from(JUDGEMENTS), min_size=1, max_size=4), st.sampled_from(["high", "low"]))
def test_every_control_is_named_once_in_one_sentence(judgements, faithful):
    found = verdict(
        *(Against(f"c{at}", each, 1.0, 0.5) for at, each in enumerate(judgements)), faithful=faithful
    ).sentence
    assert all(found.count(f"those of c{at}") == 1 for at in range(len(judgements)))
    assert found == found[0].upper() + found[1:].removesuffix(".") + "."
    assert ("no evidence" in found.lower()) == ("not shown" in judgements)


@pytest.mark.parametrize("name", METRICS)
def test_only_measures_that_edit_pixels_say_that_pixels_matter(name):
    """Each metric by its own description: what it does not compare it does not claim."""
    edits = {"pixels and patches", "additivity and imputation"}
    (family,) = [family for family, names in FAMILIES.items() if name in names]
    about = build(name).describe(STEERING_ERROR if family in edits else PROBABILITY)
    said = verdict(Against("random", "better", 0.5, 0.01), kind=about["kind"]).sentence
    assert ("pixels matter" in said) == (family in edits and about["kind"] != "additivity")
    assert ("says nothing of the model" in said) == (family == "complexity")
    assert "scores by this measure" not in said, "each family has a claim of its own"


def test_other_kinds_of_measures_claim_other_things():
    better = Against("random", "better", 0.5, 0.01)
    assert "lie on the known causes more than random ones" in verdict(better, kind="localisation").sentence
    assert "The map follows LIME's order" in verdict(better, kind="rank correlation").sentence
    assert "when shown alone more than random ones" in verdict(better, kind="shown pixels").sentence
    worse = better._replace(judgement="worse")
    assert "hiding pixels worse than a random map" in verdict(worse, kind="additivity").sentence
    neither = better._replace(judgement="not shown")
    assert verdict(neither, kind="complexity").sentence.startswith(
        "No evidence that the map is concentrated more than a random map (score 231 against 0.5, p 0.010). "
    )
    assert verdict(better, kind="my own").sentence.startswith("The map scores by this measure better than a")
    assert "where low is good" in verdict(better, faithful="low").sentence
    untested = better._replace(judgement="better by interval", p=None)
    assert "by the interval, untested" in verdict(untested).sentence


def test_constant_maps_and_missing_controls_are_said():
    assert "highlights nothing" in verdict(Against("random", "better", 1.0, 0.01), constant=True).sentence
    assert verdict().sentence == "Nothing was scored to compare with."


def test_the_truth_is_shown_only_where_there_is_nothing_else():
    keys = [("deletion", "truth"), ("deletion", "clean"), ("auroc", "cause"), ("x", "truth")]
    assert [is_headline(*key, keys) for key in keys] == [False, True, True, True]


def summary_of(frames: int, gains: dict[str, float], **more: object) -> dict:
    return make_summary(make_rows(gains, frames=frames, drive="road", measures=("deletion",)), **more)


def test_sentences_follow_from_a_summary():
    gains = {"grad-cam": 4.0, "lime": 0.0, "random": 0.0, "centre-prior": -4.0}
    found = {each.method: each for each in verdicts_of(summary_of(200, gains))}
    assert set(found) == {"grad-cam", "lime"}
    assert {each.reference for each in found.values()} == {"clean"}
    assert [each.judgement for each in found["grad-cam"].against] == ["better", "better"]
    assert "no evidence that they matter more than random ones" in found["lime"].sentence
    both = verdicts_of(summary_of(200, gains), headline=False)
    assert len(both) == 4


def test_a_short_drive_says_how_much_is_needed():
    gains = {"grad-cam": 4.0, "random": 0.0, "centre-prior": 0.0}
    (found,) = verdicts_of(summary_of(40, gains))
    assert "2 s of driving were scored, and 4 s are needed (8 blocks of 0.5 s)" in found.sentence
    (images,) = verdicts_of(summary_of(40, gains, data={"seconds_apart": None}))
    assert "40 frames are fewer than 8 blocks of 10" in images.sentence


def test_what_no_test_could_show_is_said():
    """Nine blocks and three methods with two controls: 6 x 2 / 2^9 is small enough; with nine methods it is not."""
    controls = {"random": 0.0, "centre-prior": 0.0}
    few = verdicts_of(summary_of(90, {"a": 9.0, "b": 9.0, "c": 9.0, **controls}))
    assert all(each.beats_all for each in few)
    many = verdicts_of(summary_of(90, {**{f"m{at}": 9.0 for at in range(9)}, **controls}))
    assert not any(each.beats_all for each in many)
    assert all(
        "With 9 blocks of frames and 18 comparisons no difference could" in each.sentence for each in many
    )


def test_it_is_said_before_the_work_what_cannot_be_shown():
    """As it is after it: nine methods in nine blocks, three methods in seven."""
    many = list(beforehand(90, 10, 0.05, comparisons=18))
    assert many[0].startswith("too short for so many methods: with 9 blocks and 18 comparisons")
    assert list(beforehand(90, 10, 0.05, comparisons=6)) == []
    assert next(beforehand(79, 10, 0.05, comparisons=6)).startswith("too short for a verdict: 3.95 s")


def test_a_pair_is_turned_so_that_the_method_comes_first():
    rows = make_rows({"a": 1.0, "b": 0.0}, frames=100, drive="road", measures=("deletion",))
    pairs = [each for each in make_summary(rows)["comparisons"] if each["reference"] == "clean"]
    (there,) = [pair_of(pairs, *names) for names in [("a", "b")]]
    back = pair_of(pairs, "b", "a")
    assert (back["method"], back["other"]) == ("b", "a")
    assert back["value"]["mean"] == -there["value"]["mean"]
    assert (back["value"]["low"], back["value"]["high"]) == (
        -there["value"]["high"],
        -there["value"]["low"],
    )
    assert pair_of(pairs, "a", "c") is None


@pytest.mark.parametrize(
    ("difference", "half_width", "high", "expected"),
    [
        (10.0, 4.0, True, "better"),
        (10.0, 4.0, False, "worse"),
        (-10.0, 4.0, False, "better"),
        (4.0, 4.0, True, "not shown"),
        (10.0, math.nan, True, "unknown"),
    ],
)
def test_what_is_seen_so_far(difference, half_width, high, expected):
    found = SoFar(
        value=20.0,
        random=10.0,
        difference=difference,
        half_width=half_width,
        driven_s=12.7,
        block_s=5.0,
        higher_is_faithful=high,
    )
    assert found.judgement == expected
    assert ("40 s" in found.sentence) == (expected == "unknown")
    assert len(found.short) < 45, "it stands in a plot of 256 pixels"


def test_words_never_claim_what_chance_may_do():
    """Twenty pairs of methods without a difference: at most a few are called better."""
    claimed = 0
    for seed in range(20):
        rows = make_rows({"a": 0.0, "random": 0.0}, frames=200, drive="d", measures=("deletion",), seed=seed)
        claimed += sum("No evidence" not in each.sentence for each in verdicts_of(make_summary(rows)))
    assert claimed <= 3


def test_a_mean_that_most_blocks_contradict_is_not_shown():
    """42 blocks at about -1 and eight at about 20: the interval is above zero, and the test speaks for below."""
    draw = np.random.default_rng(3)
    blocks = np.concatenate([draw.normal(-1, 0.3, 42), draw.normal(20, 2, 8)])
    values = pd.DataFrame({"method": draw.permutation(blocks), "random": 0.0})
    pair = compare_pair(values, "method", "random", BlockBootstrap(block=1))
    pair["p_holm"] = pair["p"]
    assert pair["value"]["low"] > 0
    assert pair["p"] < 0.05
    assert pair["rank_biserial"] < 0
    assert judge(pair, faithful="high", level=0.95) == judge(pair, faithful="low", level=0.95) == "not shown"
    pair["rank_biserial"] *= -1
    assert judge(pair, faithful="high", level=0.95) == "better"
