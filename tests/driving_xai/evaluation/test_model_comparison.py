"""Two models on the same frames: paired differences, what is claimed of them, and what is not compared."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from driving_xai.evaluation.model_comparison import compare_models
from driving_xai.evaluation.results import Results
from driving_xai.metrics.comparison import block_means
from tests.driving_xai.report.made import make_rows, make_summary

GAINS = {"grad-cam": 3.0, "lime": 0.0, "random": 0.0, "centre-prior": 0.0}
NAMES = ("old", "new")


def results(
    gains: dict[str, float] | None = None, *, seed: int = 0, error: float = 1.0, **more: Any
) -> Results:
    """Of a model whose areas all lie `shift` higher and whose error is `error` on average."""
    shift = more.pop("shift", 0.0)
    rows = make_rows(
        gains or GAINS, frames=more.pop("frames", 160), drive="road", measures=("deletion",), seed=seed
    )
    noise = np.random.default_rng(seed).normal(scale=0.2, size=len(rows))
    rows = rows.assign(
        value=rows["value"] + shift, base_corrected=rows["base_corrected"] + shift, error=error + noise
    )
    rows["error"] = rows.groupby("frame")["error"].transform("first")
    return Results(summary=make_summary(rows, **more), per_frame=rows)


def found(first: Results, second: Results) -> dict[str, Any]:
    return {each.name: each for each in compare_models(first, second, NAMES).differences}


ABOVE = "{} by deletion, against the unmodified prediction above random"


def test_a_method_counts_by_how_far_it_is_above_random_of_its_own_model():
    """The second model reacts twenty more to any edit, by whatever method: that is no better explanation."""
    compared = found(results(), results({**GAINS, "grad-cam": 1.0}, seed=1, shift=20.0))
    assert list(compared) == ["error of the model", *(ABOVE.format(name) for name in ("grad-cam", "lime"))]
    grad_cam, lime = (compared[ABOVE.format(name)] for name in ("grad-cam", "lime"))
    assert (grad_cam.judgement, lime.judgement) == ("better", "not shown")
    assert grad_cam.means == pytest.approx((3.0, 1.0), abs=0.1)
    assert grad_cam.sentence(*NAMES).startswith(
        "The pixels that grad-cam highlights matter more for old than for new, counted above random pixels (3"
    )
    assert lime.sentence(*NAMES).startswith(
        "No evidence that the pixels that lime highlights matter differently"
    )


def test_a_comparison_is_json_with_every_number_and_sentence():
    compared = compare_models(results(), results({**GAINS, "grad-cam": 1.0}, seed=1), NAMES)
    told = json.loads(json.dumps(compared.as_json(), allow_nan=False))
    assert (told["first"], told["second"], told["frames"]) == (*NAMES, compared.frames)
    assert [each["sentence"] for each in told["differences"]] == compared.sentences
    assert [each["p_holm"] for each in told["differences"]] == [
        each.pair["p_holm"] for each in compared.differences
    ]


def test_the_numbers_are_those_of_the_pairs_by_hand():
    first, second = results(error=1.0), results(seed=3, error=2.0)
    error = found(first, second)["error of the model"]
    ours, theirs = (each.per_frame.drop_duplicates("frame")["error"].to_numpy() for each in (first, second))
    assert error.means == pytest.approx((ours.mean(), theirs.mean()))
    assert error.pair["value"]["mean"] == pytest.approx((ours - theirs).mean())
    means = block_means(ours - theirs, 10)
    assert error.pair["p"] == pytest.approx(stats.wilcoxon(means, method="exact").pvalue)
    assert error.pair["p_holm"] == pytest.approx(3 * error.pair["p"]), "with two methods three are compared"
    assert error.judgement == "better", "a small error is good"
    assert error.sentence(*NAMES).startswith(
        "The error of old is smaller than that of new (1 against 2 deg, p"
    )
    turned = found(second, first)["error of the model"]
    assert turned.judgement == "worse"


def test_frames_of_one_result_only_are_left_out_and_said():
    first, second = results(), results(seed=1)
    every_other = second.per_frame[second.per_frame["frame"] % 2 == 0]
    compared = compare_models(first, Results(summary=second.summary, per_frame=every_other), NAMES)
    assert compared.frames == 80
    assert compared.notes == ("80 of 160 frames are in both results.",)
    assert {each.pair["frames"] for each in compared.differences} == {80}
    assert {each.pair["blocks"] for each in compared.differences} == {16}, "blocks last as long as before"


def test_a_control_on_every_tenth_frame_is_enough():
    """As a replay scores it."""
    both = []
    for seed in (0, 1):
        whole = results(seed=seed, frames=400)
        rows = whole.per_frame
        thin = rows[(rows["method"] != "random") | (rows["frame"] % 10 == 0)]
        both.append(Results(summary=whole.summary, per_frame=thin))
    lime = found(*both)[ABOVE.format("lime")]
    assert (lime.pair["frames"], lime.pair["blocks"], lime.judgement) == (40, 40, "not shown")


def test_too_few_frames_tell_nothing():
    compared = compare_models(results(frames=40), results(frames=40, seed=1), NAMES)
    assert {each.judgement for each in compared.differences} == {"unknown"}
    assert all(each.startswith("Too little was scored to tell") for each in compared.sentences)


def renamed(of: Results, **columns: Any) -> Results:
    return Results(summary=of.summary, per_frame=of.per_frame.assign(**columns))


def test_other_drives_are_not_compared():
    compared = compare_models(results(), renamed(results(seed=1), drive="elsewhere"), NAMES)
    assert (compared.differences, len(compared.notes)) == ((), 1)
    assert "share no frames" in compared.notes[0]


def test_the_same_names_in_other_shards_have_to_be_of_the_same_recording():
    """Frames are called alike in many drives; what was recorded tells whether they are the same."""
    first, second = results(), results(seed=1)
    plan = {**second.summary["plan"], "shards_sha256": "other"}
    again = Results(summary={**second.summary, "plan": plan}, per_frame=second.per_frame)
    assert compare_models(first, again, NAMES).differences
    elsewhere = compare_models(first, renamed(again, truth=again.per_frame["truth"] + 1), NAMES)
    assert "may be of different drives" in elsewhere.notes[0]
    unknown = compare_models(renamed(first, truth=np.nan), renamed(again, truth=np.nan), NAMES)
    assert "may be of different drives" in unknown.notes[0]


def test_images_are_the_same_by_their_files_in_whatever_row_they_lie():
    def images(seed: int) -> Results:
        of = results(seed=seed)
        keys = [f"{frame}.jpg" for frame in of.per_frame["frame"]]
        moved = of.per_frame["frame"] + 1000 * seed
        return renamed(of, key=keys, frame=moved, time_ns=pd.NA)

    assert compare_models(images(0), images(1), NAMES).frames == 160


def test_a_measure_with_other_settings_is_not_compared():
    first, second = results(), results(seed=1)
    about = {"deletion": {**second.summary["measures"]["deletion"], "fill": "blur"}}
    other = Results(summary={**second.summary, "measures": about}, per_frame=second.per_frame)
    compared = compare_models(first, other, NAMES)
    assert [each.name for each in compared.differences] == ["error of the model"]
    assert compared.notes == ("deletion was measured with other settings and is not compared.",)
