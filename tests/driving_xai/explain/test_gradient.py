"""Gradients against captum, against closed forms, and as properties that no batching may change."""

from __future__ import annotations

import contextlib

import pytest
import torch
from torch import nn

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.gradient import Gradient, IntegratedGradients, SmoothGrad
from driving_xai.targets import left, magnitude, output, right

with contextlib.suppress(ModuleNotFoundError):  # The test on a GPU does without.
    import captum.attr

EXACT = {"rtol": 1e-10, "atol": 1e-13}
METHODS = [
    Gradient(),
    Gradient(times="input"),
    SmoothGrad(samples=5, seed=3, batch_size=4),
    IntegratedGradients(steps=5, batch_size=4),
]
NAMES = ["gradient", "gradient-x-input", "smoothgrad", "integrated-gradients"]


@pytest.mark.parametrize("column", [0, 1])
def test_gradient_equals_captums_saliency(smooth, frames, column):
    peer = captum.attr.Saliency(smooth).attribute(frames.clone().requires_grad_(), target=column, abs=False)
    for channels, expected in (("sum", peer.sum(1)), ("abs", peer.abs().sum(1))):
        ours = Gradient(channels=channels)(smooth, frames, output(column))
        torch.testing.assert_close(ours, expected, **EXACT)


def test_gradient_times_input_equals_captum(smooth, frames):
    peer = captum.attr.InputXGradient(smooth).attribute(frames.clone().requires_grad_(), target=1)
    ours = Gradient(times="input")(smooth, frames, output(1))
    torch.testing.assert_close(ours, peer.sum(1).detach(), **EXACT)


@pytest.mark.parametrize(
    ("rule", "peers"),
    [
        ("gauss-legendre", "gausslegendre"),
        ("left", "riemann_left"),
        ("right", "riemann_right"),
        ("middle", "riemann_middle"),
    ],
)
def test_integrated_gradients_equal_captum(smooth, frames, rule, peers):
    peer, gap = captum.attr.IntegratedGradients(smooth).attribute(
        frames, baselines=0.0, target=0, n_steps=7, method=peers, return_convergence_delta=True
    )
    found = IntegratedGradients(steps=7, rule=rule).attribute(smooth, frames, left)
    # captum takes the points of Gauss-Legendre from float32 text of NumPy's; see the tolerance.
    torch.testing.assert_close(found.saliency, peer.sum(1), rtol=1e-7, atol=1e-9)
    torch.testing.assert_close(found.total - found.change, gap, rtol=1e-5, atol=1e-8)


def test_trapezoid_weights_add_up_to_one_where_captums_do_not(smooth, frames):
    peer = captum.attr.IntegratedGradients(smooth).attribute(
        frames, baselines=0.0, target=0, n_steps=8, method="riemann_trapezoid"
    )
    ours = IntegratedGradients(steps=8, rule="trapezoid")(smooth, frames, left)
    torch.testing.assert_close(ours, peer.sum(1) * 8 / 7, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("baseline", ["black", "mean", "blur"])
def test_integrated_gradients_are_complete(smooth, frames, baseline):
    found = IntegratedGradients(steps=40, fill=baseline).attribute(smooth, frames, left)
    assert found.change.abs().min() > 1e-3
    torch.testing.assert_close(found.saliency.sum((1, 2)), found.change, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(found.total, found.change, rtol=1e-8, atol=1e-10)


def test_integrated_gradients_of_a_linear_model_are_weight_times_difference(linear, frames):
    model = linear(bias=0.7)
    found = IntegratedGradients(steps=1, fill="mean")(model, frames, right)
    difference = frames - frames.mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, -(model.weight.detach() * difference).sum(1), **EXACT)


def test_an_incomplete_attribution_is_refused_where_asked(frames):
    class Step(nn.Module):
        def forward(self, frames):
            bright = frames.mean((1, 2, 3))[:, None]
            return (bright > 0.3).to(frames) + 0.1 * bright

    with pytest.raises(
        ValueError, match=r"attributions add up to .* max_gap allows a difference of .* times the change"
    ):
        IntegratedGradients(max_gap=0.01)(Step().eval(), frames, left)
    assert IntegratedGradients()(Step().eval(), frames, left).isfinite().all()


def test_smoothgrad_equals_captums_noise_tunnel_given_its_noise(smooth, frames, monkeypatch):
    """Ours draws; captum gets the same draw in place of its own."""
    explain = SmoothGrad(samples=6, noise_std=0.2, noisy="free", channels="sum", seed=5)
    noisy = []
    handle = smooth.register_forward_pre_hook(lambda _model, inputs: noisy.append(inputs[0].detach()))
    ours = explain(smooth, frames, output(1))
    handle.remove()
    drawn = noisy[1] - frames.repeat_interleave(6, 0)
    monkeypatch.setattr(torch, "normal", lambda _mean, _deviation: drawn)
    peer = captum.attr.NoiseTunnel(captum.attr.Saliency(smooth)).attribute(
        frames.clone().requires_grad_(), nt_type="smoothgrad", nt_samples=6, stdevs=0.2, target=1, abs=False
    )
    torch.testing.assert_close(ours, peer.sum(1), **EXACT)


def test_noise_is_normal_with_a_share_of_each_frames_range(linear):
    frames = torch.rand(2, 3, 12, 16, dtype=torch.float64)
    frames[1] = 0.4 + 0.1 * frames[1]
    model, seen = linear(), []
    model.register_forward_pre_hook(lambda _model, inputs: seen.append(inputs[0].detach()))
    SmoothGrad(samples=100, noise_std=0.15, noisy="free", batch_size=200)(model, frames, left)
    noise = seen[1].unflatten(0, (2, 100)) - frames[:, None]
    spread = frames.amax((1, 2, 3)) - frames.amin((1, 2, 3))
    # 57,600 draws: a standard deviation is known to 0.3 %, a mean to 0.4 % of it.
    torch.testing.assert_close(noise.std((1, 2, 3, 4)), 0.15 * spread, rtol=0.02, atol=0)
    assert (noise.mean((1, 2, 3, 4)).abs() < 0.02 * 0.15 * spread).all()


def test_noisy_pixels_are_cut_to_what_a_model_takes(linear, frames):
    model, seen = linear(), {}
    for noisy in ("free", "cut"):
        handle = model.register_forward_pre_hook(
            lambda _model, inputs, noisy=noisy: seen.update({noisy: inputs[0].detach()})
        )
        SmoothGrad(samples=4, noise_std=0.5, noisy=noisy)(model, frames, left)
        handle.remove()
    assert seen["free"].min() < 0
    assert torch.equal(seen["cut"], seen["free"].clamp(0, 1))


def test_smoothgrad_without_noise_is_the_gradient(smooth, frames):
    torch.testing.assert_close(
        SmoothGrad(samples=2, noise_std=0)(smooth, frames, left), Gradient()(smooth, frames, left), **EXACT
    )


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_batches_and_order_change_nothing(smooth, frames, explain):
    together = explain(smooth, frames, left)
    alone = torch.cat([explain(smooth, frame[None], left) for frame in frames])
    torch.testing.assert_close(together, alone, **EXACT)
    torch.testing.assert_close(explain(smooth, frames.flip(0), left), together.flip(0), **EXACT)
    for batch_size in (1, 7, 100):
        if hasattr(explain, "batch_size"):
            other = type(explain)(**{**vars(explain), "batch_size": batch_size})
            torch.testing.assert_close(other(smooth, frames, left), together, **EXACT)


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_the_side_is_that_of_the_clean_frame(smooth, frames, explain):
    """`magnitude` must not change its mind at a noisy copy or along the path."""
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


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_each_instant_keeps_its_own_past(instant, explain, untouched):
    model, view, frames = instant
    with untouched(model, frames):
        together = explain(view, frames, magnitude)
    for b in range(2):
        past = type(view.state)(*(part[b : b + 1] for part in view.state))
        alone = explain(model.at(past), frames[b : b + 1], magnitude)
        # Noise is the frame's own, and so is the past: nothing of the other drive enters.
        torch.testing.assert_close(together[b : b + 1], alone, rtol=1e-8, atol=1e-12)
    assert together.abs().sum() > 0


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_the_callers_grad_mode_does_not_matter(smooth, frames, explain, mode):
    expected = explain(smooth, frames, left)
    with mode():
        found = explain(smooth, frames.clone(), left)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert not found.requires_grad


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_a_failure_leaves_everything_as_it_was(smooth, frames, explain, untouched):
    def failing(scores):
        raise KeyError("from the target")

    with untouched(smooth, frames), pytest.raises(KeyError, match="from the target"):
        explain(smooth, frames, failing)


@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_training_mode_and_broken_weights_are_refused(smooth, frames, explain):
    smooth.encoder.append(nn.Dropout(0.5))
    with pytest.raises(UnsupportedModelError, match=r"\(Dropout\) is in training mode; call eval\(\)"):
        explain(smooth, frames, left)
    smooth.eval()
    with torch.no_grad():
        smooth.head[1].weight[0, 0] = torch.nan
    with pytest.raises(ValueError, match="got NaN or infinity"):
        explain(smooth, frames, left)


def test_a_target_without_a_gradient_is_refused(smooth, frames):
    with pytest.raises(UnsupportedModelError, match="no gradient with respect to the frames"):
        Gradient()(smooth, frames, lambda scores: scores[:, 0].detach())


@pytest.mark.parametrize(
    "options",
    [{"samples": 0}, {"noise_std": -0.1}, {"batch_size": 0}, {"noise_std": float("nan")}],
)
def test_smoothgrad_refuses_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        SmoothGrad(**options)


@pytest.mark.parametrize("options", [{"steps": 0}, {"steps": 1, "rule": "trapezoid"}, {"batch_size": 0}])
def test_integrated_gradients_refuse_impossible_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        IntegratedGradients(**options)


class Recurrent(nn.Module):
    """A CNN-LSTM with the kind of layer that has no backward pass in cuDNN's eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, 2)
        self.lstm = nn.LSTM(4, 5, batch_first=True)
        self.head = nn.Linear(5, 1)

    def forward(self, frames):
        return self.head(self.lstm(self.first(frames).tanh().mean((2, 3))[:, None])[0][:, 0])


def test_recurrent_layers_leave_cudnn_and_convolutions_do_not(frames):
    model, used = Recurrent().double().eval(), []
    for layer in (model.first, model.lstm):
        layer.register_forward_hook(lambda *_: used.append(torch.backends.cudnn.enabled))
    assert Gradient()(model, frames, left).abs().sum() > 0
    assert used == [True, False]
    assert torch.backends.cudnn.enabled


@pytest.mark.gpu
@pytest.mark.parametrize("explain", METHODS, ids=NAMES)
def test_recurrent_layers_go_backward_in_eval_mode_on_cuda(frames, explain):
    torch.manual_seed(0)
    model = Recurrent().double().eval()
    expected = explain(model, frames, left)
    found = explain(model.cuda(), frames.cuda(), left).cpu()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9 * expected.abs().max().item())
