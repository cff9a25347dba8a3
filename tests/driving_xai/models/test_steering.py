"""The steering model: what attention can and cannot change, streaming, colour, instants."""

import colorsys
from collections.abc import Callable

import pytest
import torch

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.steering import Evidence, SpatialAttention, SteeringConfig, SteeringModel, rgb_to_hsv

SMALL = {"hidden_size": 12, "dropout": 0.5}


def model_of(**keywords) -> SteeringModel:
    torch.manual_seed(0)
    return SteeringModel(SteeringConfig(**{**SMALL, **keywords})).eval()


def drive(batch: int = 1, steps: int = 4) -> torch.Tensor:
    return torch.rand(batch, steps, 3, 80, 160, generator=torch.Generator().manual_seed(1))


def permuted_attention(monkeypatch: pytest.MonkeyPatch, change: Callable) -> None:
    attend = SpatialAttention.forward
    monkeypatch.setattr(
        SpatialAttention, "forward", lambda self, projected, hidden: change(attend(self, projected, hidden))
    )


@pytest.mark.parametrize("change", ["shuffle", "uniform", "one-hot"])
@pytest.mark.parametrize("channels", ["split", "shared"])
@pytest.mark.parametrize(
    "keywords",
    [
        {"output": "gated"},
        {"output": "linear", "bits": None, "sign_estimator": "tanh"},
        {"output": "context", "attention_scale": "sum-to-one", "sign_estimator": "identity"},
    ],
    ids=["gated", "linear", "context"],
)
def test_sign_attention_never_reaches_the_prediction(monkeypatch, change, channels, keywords) -> None:
    """The paper's attention only weighs signs, and a positive weight changes no sign."""
    model, frames = model_of(attention="sign", channels=channels, **keywords), drive()
    with torch.enable_grad():  # Without gradients such attention is not even computed for the prediction.
        clean, clean_map, _ = model(frames)
        order = torch.randperm(200, generator=torch.Generator().manual_seed(2))
        changes = {
            "shuffle": lambda a: a[:, order],
            "uniform": lambda a: torch.full_like(a, 1 / 200),
            "one-hot": lambda a: torch.zeros_like(a).index_fill(1, torch.tensor([7]), 1.0),
        }
        permuted_attention(monkeypatch, changes[change])
        changed, changed_map, _ = model(frames)
    assert torch.equal(clean, changed)
    assert not torch.equal(clean_map, changed_map)


@pytest.mark.parametrize(
    "keywords",
    [
        {"attention": "soft"},
        *({"sign_role": role} for role in ("gate", "multiplicative", "stochastic")),
        *({"sign_role": role, "sign_threshold": 0.01} for role in ("ternary", "centred")),
    ],
    ids=lambda keywords: next(iter(keywords.values())),
)
def test_forward_acting_attention_reaches_the_prediction(monkeypatch, keywords) -> None:
    model, frames = model_of(temperature=0.1, **keywords), drive()
    with torch.no_grad():
        clean, _, _ = model(frames)
        permuted_attention(monkeypatch, lambda a: a.flip(1))
        changed, _, _ = model(frames)
    assert not torch.allclose(clean, changed)


@pytest.mark.parametrize("attention", ["soft", "sign"])
def test_uniform_attention_is_what_forcing_it_gives(monkeypatch, attention) -> None:
    """The control: its map is 1 / L everywhere, and a network told to attend so predicts the same."""
    keywords, frames = {"attention": attention, "sign_role": "multiplicative"}, drive()
    control = model_of(attention_weights="uniform", **keywords)
    learned = model_of(**keywords)
    learned.load_state_dict(control.state_dict(), strict=False)
    permuted_attention(monkeypatch, lambda a: torch.full_like(a, 1 / 200))
    with torch.no_grad():
        scores, maps, _ = control(frames)
        torch.testing.assert_close(learned(frames)[0], scores)
    torch.testing.assert_close(maps, torch.full_like(maps, 1 / 200))
    torch.testing.assert_close(control.at(None).attention(frames[:, 0]), maps[:, 0])


@pytest.mark.parametrize("estimator", ["clipped", "identity", "tanh"])
def test_sign_attention_learns_although_it_does_not_act(estimator) -> None:
    """Its only gradient is the straight-through one."""
    model = model_of(attention="sign", sign_estimator=estimator).train()
    model(drive())[0].sum().backward()
    assert model.attend.reduce.weight.grad.abs().sum() > 0


@pytest.mark.parametrize("attention", ["sign", "soft", "none"])
def test_a_window_that_is_cut_once_has_the_gradients_of_one_cut_frame_by_frame(
    monkeypatch, attention
) -> None:
    def gradients() -> list[torch.Tensor]:
        model = model_of(attention=attention).train()
        scores, _, _ = model(drive(batch=2))
        return list(torch.autograd.grad(scores.square().sum(), list(model.parameters()), allow_unused=True))

    together = gradients()
    monkeypatch.setattr(
        Evidence,
        "by_frame",
        lambda window: (window.map(lambda part, t=t: part[:, t]) for t in range(window.features.shape[1])),
    )
    one_by_one = gradients()
    assert sum(each is not None for each in together) > 10
    for one, other in zip(together, one_by_one, strict=True):
        assert one is other is None or torch.equal(one, other)


@pytest.mark.parametrize("output", ["gated", "linear", "context"])
@pytest.mark.parametrize("channels", ["split", "shared"])
def test_without_gradients_a_window_is_what_its_frames_give_one_after_the_other(output, channels) -> None:
    model, frames = model_of(output=output, channels=channels).double(), drive(batch=2).double()
    with torch.enable_grad():
        taken = list(model.steps(frames, None))
    with torch.no_grad():
        together = list(model.steps(frames, None))
        instants = [model.at(taken[t][2])(frames[:, t + 1]) for t in range(3)]
    for one, other in zip(taken, together, strict=True):
        torch.testing.assert_close((*one[:2], *one[2]), (*other[:2], *other[2]), rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(
        torch.cat(instants), torch.cat([scores for scores, _, _ in taken[1:]]), rtol=1e-12, atol=1e-14
    )


@pytest.mark.parametrize("colour", ["hsv", "rgb"])
def test_a_pixel_is_converted_by_itself(colour) -> None:
    model = model_of(colour=colour)
    model.input_mean, model.input_std = torch.rand(3, 1, 1), torch.rand(3, 1, 1) + 0.5
    frames, other = drive(steps=2)[0].split(1)
    taken = torch.rand(1, 1, 80, 160, generator=torch.Generator().manual_seed(2)) < 0.5
    view, mixed = model.at(None), torch.where(taken, other, frames)
    expected = torch.where(taken, view.converted(other), view.converted(frames))
    assert torch.equal(view.converted(mixed), expected)
    assert torch.equal(view.of_converted(expected), view(mixed))


def gradient_of(model: SteeringModel, frames: torch.Tensor) -> torch.Tensor:
    frames = frames.clone().requires_grad_()
    return torch.autograd.grad(model.at(None)(frames).sum(), frames)[0]


@pytest.mark.parametrize("role", ["training", "gate", "multiplicative"])
@pytest.mark.parametrize("output", ["gated", "linear"])
def test_gradients_in_eval_mode_pass_attention_only_where_it_acts(monkeypatch, role, output) -> None:
    """The prediction of the paper's role is the same for every attention: with it held, so is the gradient."""
    model, frame = model_of(attention="sign", sign_role=role, output=output), drive()[:, 0]
    actual = gradient_of(model, frame)
    straight = gradient_of(model.differentiated("straight-through"), frame)
    assert not torch.allclose(actual, straight)
    permuted_attention(monkeypatch, lambda a: a.detach())
    held = gradient_of(model, frame)
    assert torch.equal(held, gradient_of(model.differentiated("straight-through"), frame))
    assert torch.equal(actual, held) == (role == "training")


def test_the_derivative_changes_no_prediction_and_no_other_model() -> None:
    model, frame = model_of(attention="sign"), drive()[:, 0]
    other = model.differentiated("straight-through")
    assert torch.equal(model.at(None)(frame), other.at(None)(frame))
    assert (model.attention_derivative, other.attention_derivative) == ("actual", "straight-through")
    with pytest.raises(UnsupportedModelError, match="has no signs"):
        model_of(attention="soft").differentiated("straight-through")
    for role in ("ternary", "centred", "stochastic"):
        with pytest.raises(UnsupportedModelError, match=f"{role}' has one derivative only"):
            model_of(attention="sign", sign_role=role).differentiated("straight-through")


@pytest.mark.parametrize("attention", ["none", "soft", "sign"])
@pytest.mark.parametrize("output", ["gated", "linear", "context"])
def test_steps_and_instants_agree_with_the_window(attention, output) -> None:
    model, frames = model_of(attention=attention, output=output), drive(batch=2)
    with torch.no_grad():
        scores, maps, _ = model(frames)
        state = None
        for t in range(frames.shape[1]):
            instant = model.at(state)(frames[:, t])
            stepped, attended, state = model.step(frames[:, t], state)
            torch.testing.assert_close(stepped[:, 0], scores[:, t])
            torch.testing.assert_close(instant[:, 0], scores[:, t])
            torch.testing.assert_close(attended, maps[:, t])


def test_an_instant_repeats_its_states_contiguously() -> None:
    model, frames = model_of(), drive(batch=2, steps=2)
    with torch.no_grad():
        _, _, state = model.step(frames[:, 0], None)
        variants = frames[:, 1].repeat_interleave(3, dim=0)
        together = model.at(state)(variants)
        alone = model.at(state)(frames[:, 1])
    torch.testing.assert_close(together[:, 0], alone[:, 0].repeat_interleave(3))
    with pytest.raises(ValueError, match="3 frames for 2 states"):
        model.at(state)(frames[:1, 1].repeat(3, 1, 1, 1))


def test_maps_sum_to_one_and_the_first_is_that_of_the_mean_state() -> None:
    model = model_of(attention="soft")
    with torch.no_grad():
        _, maps, _ = model(drive(batch=2))
        first = model.at(None).attention(drive(batch=2)[:, 0])
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 4))
    torch.testing.assert_close(first, maps[:, 0])


def test_the_map_of_per_channel_attention_is_that_of_the_channels_that_act() -> None:
    """Of 64 channels, the half that becomes the magnitude is never weighed: it is not in the map either."""
    model = model_of(attention="sign", channels="split", energy="per-channel", sign_role="gate").eval()
    windows = drive(batch=2)
    with torch.no_grad():
        scores, maps, _ = model(windows)
        model.attend.from_features.weight[model.feature_channels :] *= -5
        unused = model(windows)
        model.attend.from_features.weight[: model.feature_channels] *= -5
        used = model(windows)
    assert torch.equal(unused[0], scores)
    torch.testing.assert_close(unused[1], maps)
    assert not torch.allclose(used[1], maps, rtol=1e-3)
    torch.testing.assert_close(maps.sum((2, 3)), torch.ones(2, 4))


def test_a_model_without_attention_says_so() -> None:
    with pytest.raises(UnsupportedModelError, match="attention 'none'"):
        model_of(attention="none").at(None).attention(drive()[:, 0])


def test_hsv_matches_the_standard_library() -> None:
    generator = torch.Generator().manual_seed(3)
    frames = torch.rand(1, 3, 6, 7, generator=generator)
    frames[0, :, 0, 0] = 0.0
    frames[0, :, 0, 1] = 0.4
    frames[0, :, 0, 2] = torch.tensor([1.0, 0.0, 0.0])
    converted = rgb_to_hsv(frames)
    for y in range(6):
        for x in range(7):
            expected = torch.tensor(colorsys.rgb_to_hsv(*frames[0, :, y, x].tolist()))
            torch.testing.assert_close(converted[0, :, y, x], expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("encoder", "sizes"),
    [
        ("table-1", [(40, 80), (20, 40), (10, 20), (10, 20), (10, 20)]),
        ("table-1-kernels", [(40, 80), (20, 40), (10, 20), (10, 20), (10, 20)]),
        ("pseudo-code", [(39, 79), (19, 39), (10, 20), (10, 20), (10, 20)]),
    ],
)
def test_encoder_sizes_are_those_of_table_1_and_of_the_pseudo_code(encoder, sizes) -> None:
    model, features, seen = model_of(encoder=encoder), drive()[:, 0], []
    for layer in model.encoder:
        features = layer(features)
        if isinstance(layer, torch.nn.Conv2d):
            seen.append(tuple(features.shape[2:]))
    assert seen == sizes
    assert (features < 0).any(), "a ReLU at the end would leave no sign to attend to"


def test_lower_temperature_concentrates_attention() -> None:
    peaks = []
    for temperature in (10.0, 1.0, 0.1):
        with torch.no_grad():
            _, maps, _ = model_of(attention="soft", temperature=temperature)(drive())
        peaks.append(maps.amax().item())
    assert peaks == sorted(peaks)
    assert peaks[-1] > 2 * peaks[0]


def test_the_scalar_energy_is_nearly_uniform() -> None:
    """tanh bounds the literal scalar to a range of 2, so no position gets more than e^2 times another."""
    with torch.no_grad():
        _, maps, _ = model_of(attention="soft", energy="scalar")(drive())
    assert maps.max() / maps.min() < 7.39
    assert maps.max() < 0.036


@pytest.mark.parametrize(
    "keywords",
    [
        {"energy": "per-channel"},
        {"energy": "scalar"},
        {"bits": None},
        {"bits": 2, "quantizer_range": "learned"},
        {"bits": 24, "quantizer_range": "percentile"},
        {"sign_role": "stochastic"},
    ],
)
def test_options_train(keywords) -> None:
    model = model_of(attention="sign", **keywords).train()
    scores, _, _ = model(drive())
    scores.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)


def test_folding_the_normalisation_changes_nothing_but_rounding() -> None:
    model, frames = model_of(attention="soft").train(), drive(batch=2)
    with torch.no_grad():
        model(frames)  # Moves the running statistics away from their start.
        model.eval()
        scores, maps, _ = model(frames)
        folded_scores, folded_maps, _ = model.fold_normalisation()(frames)
    assert not any(isinstance(layer, torch.nn.BatchNorm2d) for layer in model.modules())
    torch.testing.assert_close(folded_scores, scores, rtol=1e-3, atol=1e-5)
    torch.testing.assert_close(folded_maps, maps, rtol=1e-3, atol=1e-6)
