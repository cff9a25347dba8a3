"""Removal pursuit against plain loops, on models with known answers, and what no batching may change."""

from __future__ import annotations

from collections import defaultdict
from itertools import product

import pytest
import torch

from driving_xai.errors import OptionError, UnsupportedModelError
from driving_xai.explain.registry import build
from driving_xai.explain.removal_pursuit import RemovalPursuit
from driving_xai.perturb import blank
from driving_xai.targets import left, magnitude, output, right


def slow_order(model, frame, target, *, fill, sign, steps, share, rest):
    """Greedy removal for one frame, one fill and one direction, then the rest; the order of its pixels."""
    _, height, width = frame.shape
    pixels, hidden, edited, order = height * width, blank(frame[None], fill)[0], frame.clone(), []
    places, sizes = list(product(range(height), range(width))), defaultdict(float)
    for step in range(1, steps + 1):
        leaf = edited.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(target(model(leaf[None]))[0], leaf)
        changes = {
            (i, j): sum(float(gradient[c, i, j] * (hidden[c, i, j] - frame[c, i, j])) for c in range(3))
            for i, j in places
        }
        mean = sum(map(abs, changes.values())) / pixels
        for place in places:
            sizes[place] += abs(changes[place]) / mean
        left = sorted(set(places) - set(order), key=lambda place: -sign * changes[place])
        for i, j in left[: round(share * pixels * step / steps) - len(order)]:
            order.append((i, j))
            edited[:, i, j] = hidden[:, i, j]
    if rest == "size":
        around = {
            (i, j): [sizes[k, m] for k in (i - 1, i, i + 1) for m in (j - 1, j, j + 1) if (k, m) in sizes]
            for i, j in places
        }
        changes, sign = {place: sum(each) / len(each) for place, each in around.items()}, 1
    return order + sorted(set(places) - set(order), key=lambda place: -sign * changes[place])


def order_of(saliency):
    places = saliency.flatten().argsort(descending=True).tolist()
    return [divmod(place, saliency.shape[1]) for place in places]


@pytest.mark.parametrize("fill", ["black", "mean", "blur"])
@pytest.mark.parametrize(("direction", "sign"), [("down", -1), ("up", 1)])
@pytest.mark.parametrize("rest", ["size", "estimate"])
def test_it_equals_plain_loops(smooth, frames, fill, direction, sign, rest):
    pursuit = RemovalPursuit(steps=4, share=0.5, fills=(fill,), direction=direction, rest=rest)
    ours = pursuit(smooth, frames, output(1))
    for frame, saliency in zip(frames, ours, strict=True):
        slow = slow_order(smooth, frame, output(1), fill=fill, sign=sign, steps=4, share=0.5, rest=rest)
        assert order_of(saliency) == slow


def test_either_keeps_the_direction_that_moved_further_before_the_trial_ended(smooth, frames):
    options = {"steps": 4, "share": 0.5}
    down, up = (RemovalPursuit(direction=way, **options)(smooth, frames, left) for way in ("down", "up"))
    ours = RemovalPursuit(trial_steps=2, **options)(smooth, frames, left)
    with torch.no_grad():
        for k, frame in enumerate(frames):
            moved = []
            for saliency, sign in ((down[k], -1), (up[k], 1)):
                gone = saliency > 1 - 48 / 192 + 1e-9  # Two of four steps over half of 192 pixels.
                edits = [
                    torch.where(gone, blank(frame[None], fill)[0], frame)
                    for fill in ("black", "mean", "blur")
                ]
                moved.append(sign * (left(smooth(torch.stack(edits))) - left(smooth(frame[None]))).mean())
            assert torch.equal(ours[k], up[k] if moved[1] > moved[0] else down[k])


def test_a_linear_model_is_ordered_by_what_removal_does(linear, frames):
    model = linear()
    shares = (model.weight.detach() * frames).sum(1)
    ours = RemovalPursuit(steps=5, fills=("black",), direction="down", rest="estimate")(model, frames, left)
    assert torch.equal(ours.flatten(1).argsort(descending=True), shares.flatten(1).argsort(descending=True))


def test_the_rest_of_a_linear_model_is_what_speaks_for_the_other_side(linear, frames):
    """Removed first: the quarter that pulls down most. By size the strongest pull upwards comes next, else last."""
    model = linear()
    shares = (model.weight.detach() * frames).sum(1).flatten(1)
    by_size, by_estimate = (
        RemovalPursuit(steps=5, fills=("black",), direction="down", rest=rest)(model, frames, left).flatten(1)
        for rest in ("size", "estimate")
    )
    first = by_size > 0.75
    assert torch.equal(first, by_estimate > 0.75), "the rest changes nothing of what is removed"
    assert torch.equal(by_size[first], by_estimate[first])
    against = shares.argsort(dim=1)[:, :10]
    assert (by_size.gather(1, against).mean(1) > by_estimate.gather(1, against).mean(1) + 0.3).all()


def test_left_and_right_give_the_same_order(smooth, frames):
    pursuit = RemovalPursuit(steps=4)
    assert torch.equal(pursuit(smooth, frames, left), pursuit(smooth, frames, right))


def test_regions_are_removed_whole_and_cut_at_the_edges(smooth, frames):
    ours = RemovalPursuit(steps=3, region_px=5)(smooth, frames, left)
    for i in range(0, 12, 5):
        for j in range(0, 16, 5):
            assert all(len(part.unique()) == 1 for part in ours[:, i : i + 5, j : j + 5])
    assert [len(each.unique()) for each in ours] == [12, 12, 12]


@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_batch_size_and_neighbours_change_nothing(smooth, frames, batch_size):
    whole = RemovalPursuit(steps=4)(smooth, frames, magnitude)
    parts = [RemovalPursuit(steps=4, batch_size=batch_size)(smooth, each[None], magnitude) for each in frames]
    assert torch.equal(torch.cat(parts), whole)


def test_a_drive_is_explained_at_its_instant(instant, untouched):
    model, view, frames = instant
    with untouched(model, frames):
        maps = RemovalPursuit(steps=3)(view, frames, magnitude)
    assert torch.equal(maps, RemovalPursuit(steps=3, batch_size=2)(view, frames, magnitude))


def test_every_step_is_one_call_and_all_of_them_cost_less_than_integrated_gradients(smooth, frames):
    seen = []

    def counting(each):
        seen.append(len(each))
        return smooth(each)

    RemovalPursuit()(counting, frames[:1], left)
    # The clean frame; its gradient; two directions of three fills; one direction.
    assert seen == [1, 1, 6, 6, *[3] * 9]
    ours = sum(seen)
    seen.clear()
    build("integrated-gradients")(counting, frames[:1], left)
    assert ours == 41 < sum(seen) == 52


def test_the_seed_orders_equal_estimates_only(smooth, linear, frames):
    orders = [RemovalPursuit(steps=3, seed=seed)(smooth, frames, left) for seed in (0, 1)]
    assert torch.equal(*orders)
    # A flat black frame: removal changes nothing, every estimate is zero.
    flat = torch.zeros_like(frames[:1])
    first, again, other = (RemovalPursuit(steps=3, seed=seed)(linear(), flat, left) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(first.unique()) == first.numel()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 0}, "steps 0"),
        ({"share": 0.0}, "share"),
        ({"share": float("nan")}, "share"),
        ({"fills": ()}, "fills"),
        ({"fills": ("black", "black")}, "each once"),
        ({"fills": ("pink",)}, "pink"),
        ({"direction": "left"}, "direction is 'left'"),
        ({"trial_steps": 12}, "trial_steps 12 of 12"),
        ({"region_px": 0}, "region_px 0"),
        ({"rest": "none"}, "rest is 'none'"),
        ({"batch_size": 0}, "batch_size 0"),
    ],
)
def test_bad_options(options, says):
    with pytest.raises(ValueError, match=says):
        RemovalPursuit(**options)


def test_options_by_name():
    built = build("removal-pursuit", steps=5, fills=["black", "blur"], direction="down")
    assert built == RemovalPursuit(steps=5, fills=("black", "blur"), direction="down")
    with pytest.raises(OptionError, match="share"):
        build("removal-pursuit", share=2.0)


def test_a_model_without_a_gradient_is_refused(frames):
    with pytest.raises(UnsupportedModelError, match="no gradient"):
        RemovalPursuit()(lambda each: torch.ones(len(each), 1, dtype=each.dtype), frames, left)


def test_a_direction_is_chosen_once_a_large_region_is_removed():
    """Of 8 regions the first two steps remove none; the target falls by what is dark and rises by its negative."""

    def model(frames):
        return frames.mean((2, 3))

    frames = torch.rand(2, 3, 80, 160, generator=torch.Generator().manual_seed(0)) + 0.1
    large = {"region_px": 40, "share": 0.25, "steps": 12, "fills": ("black",)}
    for sign, direction in ((1, "down"), (-1, "up")):
        found, expected = (
            RemovalPursuit(**large, direction=each)(model, frames, lambda scores, s=sign: s * scores[:, 0])
            for each in ("either", direction)
        )
        assert torch.equal(found, expected)
    with pytest.raises(OptionError, match="too few to remove in 12 steps"):
        RemovalPursuit(**(large | {"region_px": 80, "share": 0.2}))(model, frames, output(0))
