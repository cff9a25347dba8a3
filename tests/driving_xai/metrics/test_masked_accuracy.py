"""Accuracy under masks by every rule, order, fill and choice of blocks, against one edited frame at a time."""

from __future__ import annotations

import json
import math
from itertools import product

import h5py
import numpy as np
import pytest
import torch

from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.results import SUMMARY
from driving_xai.evaluation.run import score
from driving_xai.explain.vit.smoothing import SNNA
from driving_xai.metrics.aupc import Masking, accuracies
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.curves import rank
from driving_xai.metrics.quantities import PROBABILITY
from driving_xai.metrics.registry import build
from driving_xai.metrics.token_masks import token_deletion
from driving_xai.targets import chosen_output, output
from tests.driving_xai.explain.transformers import TappedViT, masked_scores

SIZE, GRID, PATCH_PX = (20, 36), (5, 9), 4


@pytest.fixture(scope="module")
def case() -> tuple[EvalBatch, RankedMaps]:
    """Three frames, two maps of each; thresholds of the three rules lie among the scores."""
    model = TappedViT(img_size=SIZE, patch_size=PATCH_PX, depth=2, embed_dim=12, num_heads=2)
    drawn = torch.Generator().manual_seed(3)
    frames = torch.rand(3, 3, *SIZE, dtype=torch.float64, generator=drawn)
    with torch.no_grad():
        model.head.weight *= 4
        model.head.bias -= model(frames).mean(0) - 0.3
        clean = model(frames)
    saliency = torch.rand(3, 2, *SIZE, generator=drawn)
    ranks = rank(saliency.flatten(0, 1), drawn).unflatten(0, (3, 2))
    batch = EvalBatch(
        rows=np.arange(3),
        model=model,
        frames=frames,
        clean=clean,
        target=output(0),
        targets=["action 0"] * 3,
        quantity=PROBABILITY,
        references={},
        known={},
        ground_truth_mask=None,
        labels=(torch.rand(3, 4, generator=drawn) > 0.5).float(),
    )
    return batch, RankedMaps(saliency, ranks, torch.zeros(3, 2, dtype=torch.bool))


def _measured(case: tuple[EvalBatch, RankedMaps], name: str, masking: Masking) -> torch.Tensor:
    ((reference, found),) = build(name, masking=masking, batch_size=7).measure(*case)
    assert reference == "labels"
    return found["curve"]


def _filled(frame: torch.Tensor, fill: str) -> torch.Tensor:
    return {"black": torch.zeros(3), "mean": frame.mean((1, 2))}[fill].to(frame).view(3, 1)


def _predicted(scores: list[float], rule: str) -> list[bool]:
    if rule == "softmax":
        return [math.exp(each) / sum(map(math.exp, scores)) > 0.5 for each in scores]
    return [1 / (1 + math.exp(-each)) > 0.5 if rule == "sigmoid" else each > 0.5 for each in scores]


def _scores_of(model: TappedViT, frame, values: torch.Tensor, part: str, masking: Masking, share: float):
    """One frame with one share of its parts masked, in an order that is sorted anew."""
    order = sorted(range(len(values)), key=values.tolist().__getitem__, reverse=True)
    gone = (order if masking.order == "most-first" else order[::-1])[: round(share * len(order))]
    masked = torch.zeros(len(order), dtype=torch.bool)
    masked[gone] = True
    if part != "pixel":
        name = "attention-all-blocks" if (part, masking.attention_blocks) == ("attention", "all") else part
        return masked_scores(model, frame, masked, name)
    edited = torch.where(masked, _filled(frame, masking.fill), frame.flatten(1)).view_as(frame)
    return model(edited[None])[0]


def _slow(case: tuple[EvalBatch, RankedMaps], part: str, masking: Masking) -> torch.Tensor:
    batch, maps = case
    found = torch.zeros(3, 2, 10, dtype=torch.float64)
    for row, method, point in np.ndindex(*found.shape):
        saliency = maps.saliency[row, method]
        cells = saliency.view(GRID[0], PATCH_PX, GRID[1], PATCH_PX).mean((1, 3))
        values = (saliency if part == "pixel" else cells).flatten()
        scores = _scores_of(batch.model, batch.frames[row], values, part, masking, point * 0.2 / 9)
        truth = (batch.labels[row] == 1).tolist()
        right = [a == b for a, b in zip(_predicted(scores.tolist(), masking.rule), truth, strict=True)]
        found[row, method, point] = sum(right) / 4
    return found


@pytest.mark.parametrize("order", ["most-first", "least-first"])
@pytest.mark.parametrize("rule", ["sigmoid", "logit", "softmax"])
@torch.no_grad()
def test_every_rule_and_order_is_that_of_one_frame_at_a_time(case, rule, order):
    for part, more in (
        ("pixel", {"fill": "mean"}),
        ("pixel", {"fill": "black"}),
        ("token", {}),
        ("attention", {"attention_blocks": "first"}),
        ("attention", {"attention_blocks": "all"}),
    ):
        masking = Masking(rule=rule, order=order, **more)
        name = "aupc" if part == "pixel" else f"aupc-{part}"
        assert torch.equal(_measured(case, name, masking), _slow(case, part, masking)), (part, more)


@pytest.mark.parametrize("part", ["token", "attention"])
@torch.no_grad()
def test_own_cells_are_ranked_as_they_are_and_a_picture_by_its_means(case, part):
    """The first method's cells lie on the patches; the second's are of another grid, and are not taken."""
    batch, maps = case
    drawn = torch.Generator().manual_seed(11)
    own = torch.rand(3, *GRID, generator=drawn)
    cells = (own, torch.rand(3, 2, 2, generator=drawn))
    found = _measured((batch, maps._replace(cells=cells)), f"aupc-{part}", Masking())
    pictured = own.repeat_interleave(PATCH_PX, 1).repeat_interleave(PATCH_PX, 2)
    # Blocks have their cells as means: the twin, which knows means only, then ranks the cells.
    expected = _slow(
        (batch, maps._replace(saliency=torch.stack([pictured, maps.saliency[:, 1]], 1))), part, Masking()
    )
    assert torch.equal(found, expected)
    assert not torch.equal(found[:, 0], _slow(case, part, Masking())[:, 0])


@torch.no_grad()
def test_a_run_ranks_an_explainers_tokens_and_given_maps_as_they_are_given(actions, streets, tmp_path):
    checkpoint, measure = actions(), "aupc-token"
    config = ScoreConfig(
        methods=("snna", "gradient"),
        measures=(measure, "aupc"),
        split="all",
        every=10,
        resamples=10,
        save_maps=True,
    )
    found = score(checkpoint, streets, tmp_path / "own", config)
    assert found.summary["measures"][measure]["ranked"] == {
        "snna": "own cells",
        "gradient": "means of the map over cells",
        "random": "means of the map over cells",
        "centre-prior": "means of the map over cells",
    }
    assert "ranked" not in found.summary["measures"]["aupc"]
    model, images = checkpoint.model, LabelledImages(streets)
    explain = SNNA()
    for row in found.select(method="snna", measure=measure, reference="labels").itertuples():
        frame = images.frames(np.array([row.frame]))
        grid, tokens = explain.tokens(model, frame, [chosen_output(model(frame))])
        order = rank(tokens[0, :, grid.prefix :], torch.Generator().manual_seed(0))
        scores = token_deletion(model, frame, order, vit=model.vit)
        curve = accuracies(scores, images.labels(model.outputs.names)[[row.frame]])[0]
        np.testing.assert_allclose(row.curve, curve, atol=1e-6)
    # The same maps from a file are maps on pixels.
    with h5py.File(tmp_path / "own" / "maps.h5", "r+") as file:
        file.move("maps/snna", "maps/mine")
        del file["maps/gradient"]
    given = ScoreConfig(
        maps=str(tmp_path / "own" / "maps.h5"), measures=(measure,), split="all", every=10, resamples=10
    )
    again = score(checkpoint, streets, tmp_path / "given", given)
    assert again.summary["measures"][measure]["ranked"]["mine"] == "means of the given map over cells"
    theirs = again.select(method="mine", measure=measure, reference="labels")["curve"]
    ours = found.select(method="snna", measure=measure, reference="labels")["curve"]
    assert not np.array_equal(np.stack(theirs), np.stack(ours))


@pytest.mark.parametrize(
    ("name", "change"),
    [
        *product(("aupc", "aupc-token", "aupc-attention"), ({"rule": "logit"}, {"rule": "softmax"})),
        *product(("aupc", "aupc-token", "aupc-attention"), ({"order": "least-first"},)),
        ("aupc", {"fill": "black"}),
        ("aupc-attention", {"attention_blocks": "all"}),
    ],
)
@torch.no_grad()
def test_every_setting_changes_the_curves_it_is_of(case, name, change):
    assert not torch.equal(_measured(case, name, Masking(**change)), _measured(case, name, Masking()))


def test_the_description_says_what_was_done():
    def said(name: str, **settings: str) -> dict[str, object]:
        found = build(name, masking=Masking(**settings)).describe(PROBABILITY)
        return {each: found.get(each) for each in ("rule", "order", "fill", "attention_blocks", "faithful")}

    assert said("aupc") == {
        "rule": "predicted where the sigmoid is over 1/2",
        "order": "most salient first",
        "fill": "mean",
        "attention_blocks": None,
        "faithful": "low",
    }
    assert said("log-odds-attention", rule="softmax", order="least-first", attention_blocks="all") == {
        "rule": "predicted where the softmax is over 1/2",
        "order": "least salient first",
        "fill": None,
        "attention_blocks": "all",
        "faithful": "high",
    }
    assert said("log-odds", fill="black")["fill"] == "black"


@pytest.mark.parametrize(
    ("masking", "measures", "message"),
    [
        (
            {"rule": "argmax"},
            ("aupc",),
            "got rule 'argmax' for masks, expected one of: sigmoid, logit, softmax",
        ),
        ({"order": "least"}, ("aupc",), "got order 'least' .* most-first, least-first"),
        ({"fill": "white"}, ("aupc",), "got fill 'white' .* black, mean, blur"),
        ({"rule": "logit"}, ("deletion",), "got rule 'logit' for masks, which no measure .* any of: aupc, "),
        ({"fill": "black"}, ("aupc-token", "deletion"), "got fill 'black' .* add any of: aupc, log-odds$"),
        ({"attention_blocks": "all"}, ("aupc",), "add any of: aupc-attention, log-odds-attention$"),
    ],
)
def test_what_cannot_be_or_changes_nothing_is_refused(masking, measures, message):
    with pytest.raises(ValueError, match=message):
        ScoreConfig(methods=("snna",), measures=measures, masking=Masking(**masking))


def test_a_run_with_another_masking_is_another_run(actions, streets, tmp_path):
    checkpoint = actions()
    plain = {"methods": ("raw-attention",), "measures": ("aupc",), "split": "all", "every": 20}
    default = score(checkpoint, streets, tmp_path / "default", ScoreConfig(**plain))
    assert "masking" not in json.loads((tmp_path / "default" / SUMMARY).read_text())["plan"]["config"]
    black = ScoreConfig(**plain, masking=Masking(fill="black"))
    with pytest.raises(DataError, match="scored with another masking; give another folder"):
        score(checkpoint, streets, tmp_path / "default", black, resume=True)
    found = score(checkpoint, streets, tmp_path / "black", black)
    assert found.summary["measures"]["aupc"]["fill"] == "black"
    assert found.summary["plan"]["config"]["masking"]["fill"] == "black"
    assert found.summary["plan"]["config"]["fill"] == default.summary["plan"]["config"]["fill"] == "black"
    assert default.summary["measures"]["aupc"]["fill"] == "mean"
    with pytest.raises(DataError, match="scored with another masking; give another folder"):
        score(checkpoint, streets, tmp_path / "black", ScoreConfig(**plain), resume=True)
