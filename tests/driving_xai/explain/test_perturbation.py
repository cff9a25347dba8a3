"""Occlusion against captum, RISE against its definition, and what no batching may change."""

from __future__ import annotations

import captum.attr
import numpy as np
import pytest
import torch
from skimage.transform import resize
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.lime import LIME, Grid
from driving_xai.explain.perturbation import RISE, Occlusion
from driving_xai.perturb import blank
from driving_xai.targets import closeness, left, magnitude, output, right

EXACT = {"rtol": 1e-10, "atol": 1e-13}
METHODS = [
    Occlusion(window_px=(5, 6), stride_px=(3, 4), batch_size=4),
    RISE(samples=20, grid=3, seed=1, batch_size=4),
    LIME(segmentation=Grid(rows=2, columns=3), samples=20, seed=1, batch_size=4),
]
NAMES = ["occlusion", "rise", "lime"]


@pytest.mark.parametrize(
    ("window", "stride"), [((4, 4), (4, 4)), ((5, 7), (3, 4)), ((12, 3), (5, 1)), ((20, 20), (1, 2))]
)
def test_occlusion_equals_captum(smooth, frames, window, stride):
    inside = tuple(min(size, limit) for size, limit in zip(window, frames.shape[2:], strict=True))
    peer = captum.attr.Occlusion(smooth).attribute(
        frames,
        sliding_window_shapes=(3, *inside),
        strides=(3, *(min(pair) for pair in zip(stride, inside, strict=True))),
        baselines=0.0,
        target=1,
    )
    ours = Occlusion(window_px=window, stride_px=stride)(smooth, frames, output(1))
    # captum puts out float32.
    torch.testing.assert_close(ours.float(), peer[:, 0], rtol=1e-5, atol=1e-7)


def test_occlusion_shows_the_fill(smooth, frames):
    ours = Occlusion(window_px=(12, 16), stride_px=(12, 16), fill="mean")(smooth, frames, left)
    with torch.no_grad():
        fall = left(smooth(frames)) - left(smooth(blank(frames, "mean")))
    torch.testing.assert_close(ours, fall[:, None, None].expand(3, 12, 16), **EXACT)


def test_occlusion_of_a_linear_model_is_the_mean_over_windows_of_their_weights(linear, frames):
    model = linear(bias=3.0)
    shares = (model.weight.detach() * frames).sum(1)
    ours = Occlusion(window_px=(3, 3), stride_px=(1, 1))(model, frames, left)
    i, j = 6, 7
    windows = [
        shares[:, a : a + 3, b : b + 3].sum((1, 2)) for a in range(i - 2, i + 1) for b in range(j - 2, j + 1)
    ]
    torch.testing.assert_close(ours[:, i, j], torch.stack(windows).mean(0), **EXACT)


def _masks_of_rise(explain: RISE, height: int, width: int) -> np.ndarray:
    """One at a time, upsampled by scikit-image and cut out, as the paper describes it."""
    drawn = explain.draw(torch.zeros(1, 3, height, width, dtype=torch.float64))
    cells = [-(-height // explain.grid), -(-width // explain.grid)]
    masks = []
    for bits, down, across in zip(drawn.bits.numpy(), drawn.down, drawn.across, strict=True):
        size = [(explain.grid + 1) * cell for cell in cells]
        large = resize(bits.astype(float), size, order=1, mode="reflect", anti_aliasing=False)
        masks.append(large[down : down + height, across : across + width])
    return np.stack(masks)


@pytest.mark.parametrize("normalisation", ["expected", "observed", "centred"])
@pytest.mark.parametrize("grid", [1, 3, 5])
def test_rise_is_its_definition(smooth, frames, grid, normalisation):
    explain = RISE(samples=30, grid=grid, shown=0.4, normalisation=normalisation, fill="blur", seed=2)
    masks = torch.from_numpy(_masks_of_rise(explain, 12, 16))
    fill = blank(frames, "blur")
    expected = torch.zeros(3, 12, 16, dtype=torch.float64)
    for b in range(3):
        values = []
        for mask in masks:
            with torch.no_grad():
                values.append(smooth((frames[b] * mask + fill[b] * (1 - mask))[None])[0, 0])
            expected[b] += values[-1] * mask
        expected[b] /= 30 * 0.4 if normalisation == "expected" else masks.sum(0)
        expected[b] -= sum(values) / 30 if normalisation == "centred" else 0
    ours = explain(smooth, frames, left)
    torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-12)


def test_masks_show_their_share_everywhere_and_fall_anywhere():
    explain = RISE(samples=4000, grid=4, shown=0.3, seed=0)
    drawn = explain.draw(torch.zeros(1, 3, 20, 28, dtype=torch.float64))
    mean = drawn.summed(torch.ones(1, 4000, dtype=torch.float64))[0] / 4000
    # A pixel's mask has a standard deviation of at most sqrt(0.3 * 0.7); the largest of 560 stays below 4.5.
    assert (mean - 0.3).abs().max() < 4.5 * np.sqrt(0.21 / 4000)
    assert sorted(drawn.down.unique().tolist()) == list(range(5))
    assert sorted(drawn.across.unique().tolist()) == list(range(7))
    assert drawn.rendered(slice(0, 50)).amin() >= 0
    assert drawn.rendered(slice(0, 50)).amax() <= 1 + 1e-12


def test_observed_normalisation_gives_a_constant_target_a_constant_map(frames):
    class Constant(nn.Module):
        def forward(self, frames):
            return frames.new_full((len(frames), 1), 5.0)

    observed = RISE(samples=50, normalisation="observed")(Constant().eval(), frames, left)
    torch.testing.assert_close(observed, torch.full_like(observed, 5.0), **EXACT)
    assert RISE(samples=50)(Constant().eval(), frames, left).std() > 0.1


def test_rise_finds_the_one_region_that_matters(frames):
    class Corner(nn.Module):
        def forward(self, frames):
            return frames[:, :, :4, :4].mean((1, 2, 3))[:, None]

    saliency = RISE(samples=2000, grid=4, normalisation="observed")(Corner().eval(), frames, left)
    assert (saliency[:, :4, :4].amin((1, 2)) > saliency[:, 7:, 7:].amax((1, 2))).all()


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_batches_and_order_change_nothing(smooth, frames, explain):
    together = explain(smooth, frames, left)
    alone = torch.cat([explain(smooth, frame[None], left) for frame in frames])
    torch.testing.assert_close(together, alone, **EXACT)
    torch.testing.assert_close(explain(smooth, frames.flip(0), left), together.flip(0), **EXACT)
    for batch_size in (1, 7, 100):
        other = type(explain)(**{**vars(explain), "batch_size": batch_size})
        torch.testing.assert_close(other(smooth, frames, left), together, **EXACT)
    torch.testing.assert_close(explain(smooth, frames, left), together, rtol=0, atol=0)


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_no_pass_holds_more_edited_frames_than_asked(smooth, frames, explain):
    sizes = []
    smooth.register_forward_pre_hook(lambda _model, inputs: sizes.append(len(inputs[0])))
    type(explain)(**{**vars(explain), "batch_size": 9})(smooth, frames, left)
    assert max(sizes) == 9


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_the_side_is_that_of_the_clean_frame(smooth, frames, explain):
    chosen = explain(smooth, frames, magnitude)
    sides = smooth(frames)[:, 0].detach().sign()
    assert sides.unique().numel() == 2
    expected = torch.stack(
        [
            explain(smooth, frame[None], left if side > 0 else right)[0]
            for frame, side in zip(frames, sides, strict=True)
        ]
    )
    torch.testing.assert_close(chosen, expected, **EXACT)
    torch.testing.assert_close(explain(smooth, frames, right), -explain(smooth, frames, left), **EXACT)


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_closeness_is_that_to_each_frames_own_prediction(smooth, frames, explain):
    clean = smooth(frames).detach()
    together = explain(smooth, frames, closeness(clean))
    alone = [explain(smooth, frames[b : b + 1], closeness(clean[b : b + 1])) for b in range(3)]
    torch.testing.assert_close(together, torch.cat(alone), **EXACT)


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_each_instant_keeps_its_own_past(instant, explain, untouched):
    model, view, frames = instant
    with untouched(model, frames):
        together = explain(view, frames, magnitude)
    for b in range(2):
        past = type(view.state)(*(part[b : b + 1] for part in view.state))
        alone = explain(model.at(past), frames[b : b + 1], magnitude)
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-8, atol=1e-12)
    assert together.std() > 0
    assert not together.requires_grad


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_failure_training_mode_and_broken_weights(smooth, frames, explain, untouched):
    calls = []

    def fails_later(scores):
        calls.append(1)
        if len(calls) > 2:
            raise KeyError("from the target")
        return scores[:, 0]

    with untouched(smooth, frames), pytest.raises(KeyError, match="from the target"):
        explain(smooth, frames, fails_later)
    smooth.encoder.append(nn.BatchNorm2d(4).double())
    with pytest.raises(UnsupportedModelError, match=r"\(BatchNorm2d\) is in training mode; call eval\(\)"):
        explain(smooth, frames, left)
    smooth.eval()
    with torch.no_grad():
        smooth.head[1].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="got NaN or infinity"):
        explain(smooth, frames, left)


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (Occlusion, {"stride_px": (17, 8)}, "got window 16 px, stride 17 px"),
        (Occlusion, {"stride_px": (0, 8)}, "stride 0 px"),
        (Occlusion, {"batch_size": 0}, "batch_size 0"),
        (RISE, {"samples": 0}, "got samples 0"),
        (RISE, {"shown": 1.0}, "shown 1.0"),
        (LIME, {"samples": 1}, "got samples 1"),
        (LIME, {"kernel_width": 0.0}, "kernel_width 0.0"),
        (LIME, {"ridge": -1.0}, "ridge -1.0"),
    ],
)
def test_impossible_options_are_refused(method, options, message):
    with pytest.raises(ValueError, match=message):
        method(**options)
