"""Attention explainers against their equations with whole matrices, and what they leave alone."""

from __future__ import annotations

import threading
from functools import partial

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.grid import Cells, to_frame_grid
from driving_xai.explain.registry import fitted
from driving_xai.explain.vit import tiles
from driving_xai.explain.vit.capture import check_vit
from driving_xai.explain.vit.flow import (
    AttentionExplainer,
    AttentionGradient,
    GenericAttention,
    NormAttention,
    RawAttention,
    Rollout,
)
from driving_xai.explain.vit.gradient import attention_gradients
from driving_xai.explain.vit.smoothing import SNNA, AttentionIG, integrated_gradients
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.targets import output
from tests.driving_xai.explain.transformers import Dense, TappedViT, dense, product, relevance_factors

MODELS = {
    "plain": {"taps": 4},
    "deep, one tap": {"depth": 6, "taps": 1},
    "one block, two heads": {"depth": 1, "num_heads": 2, "taps": 1},
    "registers, LayerScale": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.7, "taps": 3},
    "qk-norm": {"qk_norm": True},
    "other patches": {"patch_size": 4, "img_size": (12, 20)},
}


def _model(name: str) -> TappedViT:
    return TappedViT(**MODELS[name])


def _frames(model: TappedViT, count: int = 3) -> torch.Tensor:
    size = model.vit.patch_embed.img_size
    return torch.rand(count, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def _map(model: TappedViT, tokens: torch.Tensor) -> torch.Tensor:
    """A row of tokens on the frame grid."""
    embed = model.vit.patch_embed
    grid = tokens[model.vit.num_prefix_tokens :].view(1, *embed.grid_size)
    stride = embed.patch_size[0]
    return to_frame_grid(grid, torch.empty(1, 3, *embed.img_size), Cells((stride - 1) / 2, stride))[0]


def _check(explainer: AttentionExplainer, model: TappedViT, expected, columns=(0, 2)) -> None:
    """Several targets of several frames, each against the twin's tokens for one frame and target."""
    frames = _frames(model)
    found = explainer.explain_each(model, frames, [output(column) for column in columns])
    for frame, maps in zip(frames, found, strict=True):
        for column, saliency in zip(columns, maps, strict=True):
            twin = _map(model, expected(dense(model, model.normalised(frame), column)))
            torch.testing.assert_close(saliency, twin, rtol=1e-10, atol=1e-12 * twin.abs().max().item())


@pytest.mark.parametrize("memory", ["keep", "recompute"])
@pytest.mark.parametrize("order", ["flow", "literal"])
@pytest.mark.parametrize("norms", ["key", "query", "none"])
@pytest.mark.parametrize("name", MODELS)
def test_norm_relevance_is_the_product_of_whole_matrices(name, norms, order, memory):
    model = _model(name)
    explainer = SNNA(samples=0, norms=norms, product=order, memory=memory, tile_rows=12)
    _check(explainer, model, lambda found: product(relevance_factors(found, norms), order))


@pytest.mark.parametrize("order", ["flow", "literal"])
@pytest.mark.parametrize("name", MODELS)
def test_generic_attention_is_the_product_of_whole_matrices(name, order):
    model = _model(name)
    explainer = GenericAttention(product=order)
    _check(explainer, model, lambda found: product(relevance_factors(found, "none"), order))


@pytest.mark.parametrize("name", MODELS)
def test_rollout_is_the_product_of_whole_matrices(name):
    def expected(found: Dense):
        identity = torch.eye(found.attention[0].shape[-1], dtype=torch.float64)
        return product([(identity + a.mean(0)) / 2 for a in found.attention], "flow")

    model = _model(name)
    _check(Rollout(tile_rows=7), model, expected)


def test_a_head_that_is_not_there_is_refused():
    heads = _model("plain").vit.blocks[-1].attn.num_heads
    with pytest.raises(UnsupportedModelError, match=f"head is {heads}, and the last block has heads 0 to"):
        fitted("raw-attention", _model("plain"), options={"head": heads})
    with pytest.raises(ValueError, match="head"):
        RawAttention(head=-1)


@pytest.mark.parametrize("name", MODELS)
def test_the_last_blocks_attention_norm_and_gradient(name):
    model = _model(name)
    _check(RawAttention(), model, lambda found: found.attention[-1][:, 0].mean(0))
    last = model.vit.blocks[-1].attn.num_heads - 1
    _check(RawAttention(head=last), model, lambda found: found.attention[-1][last, 0])
    _check(
        NormAttention(),
        model,
        lambda found: torch.einsum("hn,hnd->nd", found.attention[-1][:, 0], found.values[-1]).norm(dim=-1),
    )
    _check(
        NormAttention(form="heads"),
        model,
        lambda found: (found.attention[-1][:, 0] * found.values[-1].norm(dim=-1)).mean(0),
    )
    _check(
        AttentionGradient(form="last-block"),
        model,
        lambda found: (found.attention[-1] * found.gradient[-1])[:, 0].mean(0),
    )
    _check(
        AttentionGradient(),
        model,
        lambda found: sum(
            (a * gradient).clamp(min=0).mean(0)[0] for a, gradient, _ in zip(*found, strict=True)
        ),
    )


@pytest.mark.parametrize("smoothing", ["positive", "signed"])
@pytest.mark.parametrize("batch_size", [1, 7])
def test_snna_masks_by_the_gradient_averaged_over_the_noise_each_frame_was_given(smoothing, batch_size):
    model = _model("registers, LayerScale")
    explainer = SNNA(samples=3, smoothing=smoothing, batch_size=batch_size)
    frame = _frames(model, 1)
    found = explainer(model, frame, output(1))[0]
    clean, *noisy = _given(explainer, model, frame)
    assert len(noisy) == 3
    assert not torch.equal(noisy[0], noisy[1])
    spread = (torch.stack(noisy) - clean).std() / (clean.max() - clean.min())
    assert 0.13 < spread.item() < 0.17
    gradients = torch.stack([dense(model, each, 1).gradient[-1][:, 0] for each in noisy]).mean(0)
    mask = (gradients.clamp(min=0) if smoothing == "positive" else gradients).mean(0)
    relevance = product(relevance_factors(dense(model, clean, 1), "key"), "flow")
    twin = _map(model, relevance * mask)
    torch.testing.assert_close(found, twin, rtol=1e-10, atol=1e-12 * twin.abs().max().item())


def _given(explainer: AttentionExplainer, model: TappedViT, frame: torch.Tensor) -> list[torch.Tensor]:
    """What the transformer's first layer is given, pass by pass, behind the explainer's own hook."""
    seen: list[torch.Tensor] = []
    layer = model.vit.patch_embed.proj
    handle = layer.register_forward_pre_hook(lambda _layer, inputs: seen.extend(inputs[0].detach()))
    try:
        explainer(model, frame, output(1))
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("batch_size", [1, 4])
def test_attention_ig_masks_by_the_gradient_averaged_along_the_path(batch_size):
    model = _model("qk-norm")
    explainer = AttentionIG(steps=5, batch_size=batch_size)

    def expected(found: Dense):
        return product(relevance_factors(found, "none"), "flow")

    frame = _frames(model, 1)
    inputs = model.normalised(frame)[0]
    gradients = [dense(model, inputs * alpha, 3).gradient[-1][:, 0] for alpha in (0, 0.25, 0.5, 0.75, 1)]
    mask = torch.stack(gradients).mean(0).clamp(min=0).mean(0)
    twin = _map(model, expected(dense(model, inputs, 3)) * mask)
    found = explainer(model, frame, output(3))[0]
    torch.testing.assert_close(found, twin, rtol=1e-10, atol=1e-12 * twin.abs().max().item())


def test_integrated_gradients_of_the_pixels_are_captums():
    captum = pytest.importorskip("captum.attr")
    model = _model("plain")
    frames = _frames(model, 2)
    found = integrated_gradients(model.vit, model, frames, [output(0), output(2)], steps=8, batch_size=4)
    reference = captum.IntegratedGradients(lambda inputs: model.head(torch.cat(model.cls(inputs), 1)))
    for column, ours in zip((0, 2), found, strict=True):
        theirs = reference.attribute(
            model.normalised(frames), target=column, n_steps=8, method="riemann_middle"
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
    pixels = AttentionIG(steps=8, mask="pixels")(model, frames, output(2))
    generic = GenericAttention()(model, frames, output(2))
    torch.testing.assert_close(pixels, generic * found[1].sum(1), rtol=1e-9, atol=1e-12)


EXPLAINERS = {
    "raw-attention": RawAttention,
    "rollout": Rollout,
    "attention-gradient": AttentionGradient,
    "norm-attention": NormAttention,
    "generic-attention": GenericAttention,
    "attention-ig": partial(AttentionIG, steps=4),
    "snna": partial(SNNA, samples=2),
}


@pytest.mark.parametrize("name", EXPLAINERS)
def test_batches_and_targets_together_equal_one_by_one(name):
    model = _model("registers, LayerScale")
    frames, targets = _frames(model), [output(column) for column in range(4)]
    explainer = EXPLAINERS[name]()
    together = explainer.explain_each(model, frames, targets)
    for row, frame in enumerate(frames):
        for column, target in enumerate(targets):
            alone = explainer(model, frame[None], target)[0]
            torch.testing.assert_close(together[row, column], alone, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("name", EXPLAINERS)
@pytest.mark.parametrize("failing", [False, True])
def test_the_model_is_left_as_it_was(name, failing):
    model, frames = _model("plain"), _frames(_model("plain"), 1)
    model.vit.blocks[1].mlp.fc1.weight.requires_grad_(False)
    weights = {key: (value.clone(), value.requires_grad) for key, value in model.named_parameters()}
    given = frames.clone()

    explainer = EXPLAINERS[name]()
    if failing:

        def judge(frames):
            raise KeyError(model(frames).shape)

        with pytest.raises(KeyError):
            explainer(_View(model, judge), frames, output(0))
    else:
        assert not explainer(model, frames, output(0)).requires_grad
    assert torch.equal(frames, given)
    for key, value in model.named_parameters():
        assert torch.equal(value, weights[key][0])
        assert (value.requires_grad, value.grad) == (weights[key][1], None)
    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module.training
    assert torch.is_grad_enabled()


def test_the_models_fused_attention_stays_on(monkeypatch):
    model = _model("plain")
    calls = []
    fused = torch.nn.functional.scaled_dot_product_attention

    def counted(*arguments, **options):
        calls.append(1)
        return fused(*arguments, **options)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", counted)
    SNNA(samples=3)(model, _frames(model, 1), output(0))
    assert len(calls) == (1 + 3) * len(model.vit.blocks)
    assert all(block.attn.fused_attn for block in model.vit.blocks)


class _Largest(TorchDispatchMode):
    """Remembers the size of the largest tensor that any operation, backward ones included, puts out."""

    elements = 0

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        found = operation(*arguments, **(options or {}))
        for tensor in tree_leaves(found):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return found


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_no_matrix_of_all_tokens_exists(memory):
    largest = []
    for size in ((64, 128), (128, 256)):
        model = TappedViT(img_size=size, embed_dim=12, depth=2)
        frames = torch.rand(1, 3, *size, dtype=torch.float64)
        with _Largest() as probe:
            SNNA(samples=1, memory=memory, tile_rows=16)(model, frames, output(0))
        tokens = 1 + size[0] * size[1] // 64
        largest.append((tokens, probe.elements))
    (few, small), (many, large) = largest
    assert large < many**2
    # Linear in the tokens; a quadratic part would show as sixteen times as much.
    assert large / small < 1.1 * many / few


def test_noise_depends_on_the_frame_and_the_seed_alone():
    model = _model("plain")
    frames = _frames(model)
    first = SNNA(samples=2, seed=1)(model, frames, output(0))
    assert not torch.allclose(first, SNNA(samples=2, seed=2)(model, frames, output(0)))
    turned = SNNA(samples=2, seed=1)(model, frames.flip(0), output(0)).flip(0)
    torch.testing.assert_close(turned, first, rtol=1e-10, atol=1e-14)
    none = SNNA(samples=2, noise_std=0.0)(model, frames, output(0))
    once = SNNA(samples=1, noise_std=0.0)(model, frames, output(0))
    torch.testing.assert_close(none, once, rtol=1e-10, atol=1e-14)


def test_another_thread_may_run_the_model_meanwhile():
    model = _model("plain")
    frames = _frames(model, 1)
    explainer = SNNA(samples=1)
    alone = explainer(model, frames, output(0))
    scores = []

    def beside_another(frames):
        other = threading.Thread(target=lambda: scores.append(model(frames * 0.5)))
        other.start()
        other.join()
        return model(frames)

    torch.testing.assert_close(
        explainer(_View(model, beside_another), frames, output(0)), alone, rtol=0, atol=0
    )
    torch.testing.assert_close(scores[0].detach(), model(frames * 0.5).detach(), rtol=0, atol=0)
    assert len(scores) == 2


def test_frames_of_an_inference_pass_and_float32_serve():
    model = _model("plain")
    exact = GenericAttention()(model, _frames(model), output(0))
    with torch.inference_mode():
        frames = _frames(model).clone()
        found = GenericAttention()(model, frames, output(0))
    torch.testing.assert_close(found, exact, rtol=1e-12, atol=0)
    single = GenericAttention()(model.float(), frames.float(), output(0))
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), exact, rtol=2e-4, atol=1e-4 * exact.max().item())


def test_maps_of_cut_and_of_resized_frames_lie_on_the_frame():
    model = _model("plain")
    frames = _frames(model, 1)
    whole = RawAttention()(model, frames, output(0))
    wider = nn.functional.pad(frames, (0, 5, 0, 3))
    cut = RawAttention()(_View(model, lambda given: model(given[..., :24, :40])), wider, output(0))
    torch.testing.assert_close(cut[..., :24, :40], whole, rtol=1e-10, atol=0)
    large = frames.repeat_interleave(2, 2).repeat_interleave(2, 3)
    halved = RawAttention()(_View(model, lambda given: model(given[..., ::2, ::2])), large, output(0))
    tokens = dense(model, model.normalised(frames)[0], 0).attention[-1][:, 0, 1:].mean(0).view(1, 1, 3, 5)
    twin = nn.functional.interpolate(tokens, size=(48, 80), mode="bilinear")[0]
    torch.testing.assert_close(halved, twin, rtol=1e-10, atol=0)


class _View:
    """A function that calls a network."""

    def __init__(self, network, function):
        self.network, self.function = network, function

    def __call__(self, frames):
        return self.function(frames)


class _Pooled(TappedViT):
    def forward(self, frames):
        return self.head(self.vit.forward_features(self.normalised(frames)).mean(1).repeat(1, self.taps))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (_Pooled(), "reads other tokens than CLS, for example their mean; expected a head on the CLS token"),
        (TappedViT().train(), "in training mode; call eval"),
        (TappedViT(class_token=False, global_pool="avg"), "has no CLS token"),
        (TappedViT(scale_attn_norm=True), "normalises or gates its heads' outputs.*use generic-attention"),
    ],
)
def test_a_model_whose_relevance_would_mislead_is_refused(model, message):
    with pytest.raises(UnsupportedModelError, match=message):
        SNNA(samples=1)(model, _frames(model, 1), output(0))


@pytest.mark.parametrize("name", EXPLAINERS)
def test_the_table_of_methods_finds_the_transformer(name):
    model = _model("plain")
    explainer = fitted(name, model, seed=3, batch_size=2)
    found = explainer(model, _frames(model), output(1))
    assert found.isfinite().all()
    options = {"seed": 3} if name == "snna" else {}
    defaults = {"attention-ig": AttentionIG, "snna": SNNA}.get(name, EXPLAINERS[name])
    twin = defaults(**options)(model, _frames(model), output(1))
    torch.testing.assert_close(found, twin, rtol=1e-10, atol=1e-14)
    with pytest.raises(UnsupportedModelError, match="Linear has no Vision Transformer of timm's"):
        fitted(name, nn.Linear(1, 1))


def test_the_action_model_is_explained_also_on_frames_that_it_cuts():
    config = ActionConfig(backbone="vit_tiny_patch16_224", depth=3, blocks=2, image_size=(32, 64))
    torch.manual_seed(0)
    model = ActionModel(config).double().eval()
    wide = torch.rand(2, 3, 39, 70, dtype=torch.float64)
    targets = [output(0), output(3)]
    for method in (SNNA(samples=0), GenericAttention()):
        maps = method.explain_each(model, wide, targets)
        assert maps.shape == (2, 2, 39, 70)
        assert maps.amax((2, 3)).min() > 0
        cut = method.explain_each(model, wide[..., :32, :64], targets)
        torch.testing.assert_close(maps[..., :32, :64], cut, rtol=1e-10, atol=1e-14)


def test_other_misuse_is_refused():
    model, frames = TappedViT(), _frames(TappedViT(), 1)
    with pytest.raises(UnsupportedModelError, match=r"Linear has no blocks with attn\.qkv"):
        check_vit(nn.Linear(1, 1))
    with pytest.raises(UnsupportedModelError, match="0 blocks ran in one forward pass of _View, expected"):
        RawAttention()(_View(TappedViT(), model.forward), frames, output(0))
    with pytest.raises(UnsupportedModelError, match="does not depend on the transformer's blocks"):
        GenericAttention()(model, frames, lambda scores: scores[:, 0].detach())
    model.vit.set_grad_checkpointing()
    with pytest.raises(UnsupportedModelError, match="ask the explainer for memory='recompute'"):
        GenericAttention()(model, frames, output(0))


@pytest.mark.parametrize(
    ("explainer", "message"),
    [
        (partial(SNNA, samples=-1), "got samples -1; expected 0 or more"),
        (partial(SNNA, noise_std=float("nan")), "noise_std is nan; expected a number"),
        (partial(AttentionIG, steps=0), "got steps 0; expected 1 or more"),
        (partial(Rollout, tile_rows=0), "got tile_rows 0; expected 1 or more"),
    ],
)
def test_options_out_of_range_are_refused(explainer, message):
    with pytest.raises(ValueError, match=message):
        explainer()


def test_weights_that_give_no_finite_relevance_are_named():
    model = TappedViT()
    model.vit.blocks[0].attn.qkv.weight.data[0, 0] = torch.nan
    with pytest.raises(ValueError, match=r"got NaN or infinity from the model .* check the weights"):
        GenericAttention()(model, _frames(model, 1), output(0))


@pytest.mark.parametrize("memory", ["keep", "recompute"])
def test_under_autocast_a_map_stays_near_the_exact_one_in_float32(memory):
    model = _model("plain").float()
    frames = _frames(model).float()
    explain = SNNA(samples=3, memory=memory)
    exact = explain(model, frames, output(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert model(frames).dtype == torch.bfloat16
        found = explain(model, frames, output(1))
    assert found.dtype == torch.float32
    # bfloat16 keeps three digits of what the network computes; that many are left of the map.
    distance = (found - exact).abs().amax((1, 2)) / exact.amax((1, 2))
    assert 0 < distance.max() < 0.1


def test_under_autocast_relevance_is_computed_as_without_it():
    model = _model("plain").float()
    frames = _frames(model).float()
    _, _, states = attention_gradients(model.vit, model, frames, [output(1)])
    state = next(iter(states))
    weights = torch.rand(1, len(frames), 1, state.key.shape[2])

    def computed() -> list[torch.Tensor]:
        return [
            tiles.gradient_flow(state, weights),
            tiles.attention_flow(state, weights[0, :, 0]),
            tiles.value_norms(state),
            tiles.added_to_cls(state),
            tiles.attention_of_cls(state),
            tiles.gradient_of_cls(state),
        ]

    exact = computed()
    with torch.autocast("cpu", torch.bfloat16):
        found = computed()
    for one, other in zip(found, exact, strict=True):
        assert torch.equal(one, other)


def test_under_autocast_a_map_is_stretched_as_without_it():
    class Fixed(AttentionExplainer):
        def tokens(self, model, frames, targets):
            grid, _, _ = attention_gradients(model.vit, model, frames, targets)
            count = grid.prefix + grid.rows * grid.columns
            return grid, torch.linspace(0, 1, count).expand(len(targets), len(frames), count)

    model = _model("plain").float()
    frames = _frames(model).float()
    exact = Fixed()(model, frames, output(1))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(Fixed()(model, frames, output(1)), exact)


def test_the_frames_own_device_draws_what_the_cpu_draws_where_it_is_one():
    model = _model("plain")
    frames = _frames(model)
    maps = [SNNA(noise_on=place)(model, frames, output(1)) for place in ("cpu", "frames")]
    assert torch.equal(*maps)
