"""What the fused kernels find, against the equations written out in float64.

Not collected by itself: `test_kernels` runs this file in a process of its own, on a CPU under Triton's
interpreter, which must be chosen before Triton is imported, or on a GPU.
"""

from __future__ import annotations

import os

import pytest
import torch

from driving_xai.errors import OptionError
from driving_xai.explain.vit import fused, kernels, tiles
from driving_xai.explain.vit.capture import AttentionState, attention_states
from driving_xai.explain.vit.flow import cls_relevance, in_order
from driving_xai.explain.vit.gradient import attention_gradients
from driving_xai.targets import output
from tests.driving_xai.explain.transformers import TappedViT, dense, product, relevance_factors

DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
LOOSER = 1 if DEVICE == "cpu" else 50
"""Three products of ten bits are not quite float32's, which the interpreter multiplies in."""
SMALL = kernels.Blocks(queries=16, keys=16)
"""So that few tokens fill several blocks, the last of them not whole."""


@pytest.fixture(autouse=True)
def _fused(monkeypatch):
    monkeypatch.setenv(fused.VARIABLE, "fused")


def _state(*, targets=1, frames=1, heads=1, tokens=37, size=8, dtype=torch.float32) -> AttentionState:
    """Laid out as timm's blocks leave it: heads side by side within a token."""
    generator = torch.Generator().manual_seed(tokens * size + targets)
    qkv = torch.randn(frames, tokens, 3, heads, size, generator=generator).to(DEVICE, dtype)
    gradient = torch.randn(targets, frames, tokens, heads, size, generator=generator).to(DEVICE, dtype)
    return AttentionState(*qkv.permute(2, 0, 3, 1, 4), None, gradient.transpose(2, 3))


def _weights(state: AttentionState, *, by_head: bool = False) -> torch.Tensor:
    targets, frames, heads, tokens, _ = state.gradient.shape
    generator = torch.Generator().manual_seed(1)
    return torch.rand(targets, frames, heads if by_head else 1, tokens, generator=generator).to(DEVICE)


def _twins(state: AttentionState, weights: torch.Tensor, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Σ_i w_i (A ∇A)⁺ for each target, and Σ_i w_i A for the first's weights, with whole matrices."""
    query, key, value, gradient = (each.double() for each in (*state[:3], state.gradient))
    weights = weights.double()[..., :rows, None]
    attention = (query[:, :, :rows] @ key.mT).softmax(-1)
    gained = (attention * (gradient[..., :rows, :] @ value.mT)).clamp_min(0)
    return (weights * gained).sum(-2), (weights[0] * attention).sum(-2)


def _close(found: torch.Tensor, exact: torch.Tensor, *, share: float) -> None:
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=0, atol=LOOSER * share * exact.abs().max().item())


SHAPES = {
    "one token more than a block": {"tokens": 17},
    "odd, several blocks": {"tokens": 37},
    "fewer tokens than a block": {"tokens": 5},
    "frames and targets": {"tokens": 19, "frames": 2, "targets": 3, "heads": 2},
    "more targets than share a pass": {"tokens": 18, "targets": 6},
    "heads that are no power of two": {"tokens": 21, "size": 12},
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("rows", [None, 3])
def test_flows_are_those_of_whole_matrices(shape, rows):
    state = _state(**SHAPES[shape])
    count = state.key.shape[2] if rows is None else rows
    weights = _weights(state)
    expected = _twins(state, weights, count)
    precision = fused.precision_of(state)
    how = {"rows": count, "precision": precision, "blocks": SMALL}
    _close(kernels.gradient_flow(state, weights, **how), expected[0], share=2e-6)
    _close(kernels.attention_flow(state, weights[0, :, 0], **how), expected[1], share=2e-6)


def test_the_default_blocks_and_weights_of_each_head():
    state = _state(tokens=70, targets=2, heads=2, size=16)
    weights = _weights(state, by_head=True)
    _close(tiles.gradient_flow(state, weights), _twins(state, weights, 70)[0], share=2e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_operands_of_sixteen_bits_are_summed_in_float32(dtype):
    """The twin has the same rounded operands: what differs is the sums alone."""
    state = _state(dtype=dtype, targets=2)
    weights = _weights(state)
    flow, of_attention = _twins(state, weights, 37)
    _close(tiles.gradient_flow(state, weights), flow, share=5e-6)
    _close(tiles.attention_flow(state, weights[0, :, 0]), of_attention, share=5e-6)


def test_ten_bits_lose_nothing_of_bfloat16():
    """Why the state of a model under autocast is multiplied as TF32, which the interpreter cannot show."""
    exact = torch.randn(1000).bfloat16().float()
    assert torch.equal((exact.view(torch.int32) & ~0x1FFF).view(torch.float32), exact)


def test_the_log_sum_exp_stands_scores_beyond_the_range_of_exp():
    state = _state(tokens=33)
    state = state._replace(query=state.query * 200)
    expected = (state.query.double() @ state.key.double().mT).logsumexp(-1) / torch.tensor(2.0).log()
    found = kernels.log_sum_exp(state, rows=33, precision=fused.precision_of(state), blocks=SMALL)
    assert expected.max() > 1000
    _close(found, expected, share=1e-6)
    weights = _weights(state)
    _close(tiles.gradient_flow(state, weights), _twins(state, weights, 33)[0], share=5e-4)


@pytest.mark.filterwarnings("ignore:invalid value encountered in subtract")
def test_what_is_not_a_number_stays_visible():
    for part in ("query", "key", "value", "gradient"):
        state = _state(tokens=18)
        broken = getattr(state, part).clone()
        broken[..., 4, 2] = torch.nan
        found = tiles.gradient_flow(state._replace(**{part: broken}), _weights(state))
        assert found.isnan().any(), part


def test_inputs_stay_as_they_were_and_any_layout_is_taken():
    state = _state(tokens=20, targets=2)
    weights = _weights(state)
    before = [each.clone() for each in (*state[:3], state.gradient, weights)]
    expected = tiles.gradient_flow(state, weights)
    for ours, given in zip((*state[:3], state.gradient, weights), before, strict=True):
        assert torch.equal(ours, given)
    scattered = [each.mT.contiguous().mT for each in (*state[:3], state.gradient)]
    assert scattered[0].stride(-1) != 1
    found = tiles.gradient_flow(AttentionState(*scattered[:3], None, scattered[3]), weights)
    assert torch.equal(found, expected)


MODELS = {
    "registers, LayerScale": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.7, "depth": 2},
    "qk-norm, two heads": {"qk_norm": True, "num_heads": 2, "depth": 2, "taps": 1},
}


@pytest.mark.parametrize(
    ("name", "norms", "order"),
    [
        ("registers, LayerScale", "key", "flow"),
        ("registers, LayerScale", "query", "flow"),
        ("registers, LayerScale", "key", "literal"),
        ("qk-norm, two heads", "none", "flow"),
    ],
)
def test_relevance_of_a_transformer_is_the_product_of_whole_matrices(name, norms, order):
    """Norms, both products, register tokens and several targets; the twin is in float64."""
    exact = TappedViT(**MODELS[name])
    frame = torch.rand(1, 3, 24, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model = TappedViT(**MODELS[name]).float().to(DEVICE)
    given = frame.float().to(DEVICE)
    columns = (0, 2)
    targets = [output(column) for column in columns]
    _, _, states = attention_gradients(model.vit, model, given, targets)
    found = cls_relevance(in_order(states, order), norms=norms)
    for column, relevance in zip(columns, found, strict=True):
        factors = relevance_factors(dense(exact, exact.normalised(frame)[0], column), norms)
        twin = product(factors, order).to(DEVICE)
        _close(relevance[0], twin, share=2e-4)


def test_rollout_of_a_transformer_is_the_product_of_whole_matrices():
    model = TappedViT(depth=2).float().to(DEVICE)
    frames = torch.rand(2, 3, 24, 40, generator=torch.Generator().manual_seed(1)).to(DEVICE)
    _, states = attention_states(model.vit, model, frames)
    weights = torch.rand(2, 16, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    for state in states:
        attention = (state.query.double() @ state.key.double().mT).softmax(-1)
        expected = torch.einsum("bn,bhnm->bhm", weights.double(), attention)
        _close(tiles.attention_flow(state, weights), expected, share=2e-6)


def test_float64_and_wide_heads_are_refused_by_name_and_go_to_tiles_on_auto(monkeypatch):
    for state, reason in (
        (_state(tokens=6, dtype=torch.float64), "the attention is in float64"),
        (_state(tokens=6, size=129), "a head has 129 numbers, more than 128"),
    ):
        with pytest.raises(OptionError, match=f"=fused, but {reason}; unset it"):
            tiles.gradient_flow(state, _weights(state).to(state.key.dtype))
        monkeypatch.setenv(fused.VARIABLE, "auto")
        assert not fused.serves(state)
        monkeypatch.setenv(fused.VARIABLE, "fused")


def test_kernels_that_find_something_else_are_not_used(monkeypatch):
    """One trial for each device, type and size of head; a warning says why, once."""
    right, trials = kernels.gradient_flow, []

    def wrong(*arguments, **options):
        trials.append(1)
        return 1.1 * right(*arguments, **options)

    monkeypatch.setattr(kernels, "gradient_flow", wrong)
    fused._trial.cache_clear()
    state = _state(tokens=6)
    with pytest.warns(RuntimeWarning, match=r"off by 0\.1 of their largest value .* followed in tiles"):
        assert fused._obstacle(state)
    assert fused._obstacle(state)
    assert len(trials) == 1
    fused._trial.cache_clear()


def test_a_stream_of_frames_has_one_trial(monkeypatch):
    trials = []
    monkeypatch.setattr(fused, "_disagreement", lambda *_: trials.append(1))
    fused._trial.cache_clear()
    for _ in range(3):
        assert fused.serves(_state(tokens=6))
    assert len(trials) == 1
    fused._trial.cache_clear()
