"""Masked tokens and masked attention against a forward pass with whole attention matrices."""

from __future__ import annotations

import threading

import pytest
import torch

from driving_xai.errors import UnsupportedModelError
from driving_xai.metrics.curves import rank
from driving_xai.metrics.token_masks import (
    FRACTIONS,
    attention_masked,
    least_first,
    token_deletion,
    token_ranks,
    tokens_masked,
)
from tests.driving_xai.explain.transformers import TappedViT, masked_scores

MODELS = {
    "plain": {"taps": 4},
    "registers, LayerScale": {"reg_tokens": 3, "no_embed_class": True, "init_values": 0.7, "taps": 3},
    "grid kept in two dimensions": {"dynamic_img_size": True, "qk_norm": True},
    "normalised heads": {"scale_attn_norm": True},
}


def _case(name: str):
    model = TappedViT(**MODELS[name])
    generator = torch.Generator().manual_seed(2)
    frames = torch.rand(2, 3, 24, 40, dtype=torch.float64, generator=generator)
    ranks = torch.stack([torch.randperm(15, generator=generator) for _ in range(6)]).view(2, 3, 15)
    return model, frames, ranks


@pytest.mark.parametrize("mask", ["token", "attention", "attention-all-blocks"])
@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_masks_are_those_of_whole_matrices(name, mask):
    model, frames, ranks = _case(name)
    fractions = (0.0, 0.2, 0.5, 1.0)
    found = token_deletion(model, frames, ranks, fractions, vit=model.vit, mask=mask, batch_size=4)
    assert found.shape == (2, 3, 4, 4)
    for row, frame in enumerate(frames):
        for method in range(3):
            for point, count in enumerate((0, 3, 8, 15)):
                twin = masked_scores(model, frame, ranks[row, method] < count, mask)
                torch.testing.assert_close(found[row, method, point], twin, rtol=1e-9, atol=1e-11)


@torch.no_grad()
def test_the_clean_pass_is_shared_and_batches_change_nothing():
    model, frames, ranks = _case("plain")
    passes = []

    def judge(given):
        passes.append(len(given))
        return model(given)

    whole = token_deletion(judge, frames, ranks, (0.0, 0.2, 0.4, 0.6), vit=model.vit, batch_size=100)
    assert passes == [2 * (1 + 3 * 3)]
    passes.clear()
    known = model(frames)
    parts = token_deletion(
        judge, frames, ranks[:, 1], (0.0, 0.2, 0.4, 0.6), vit=model.vit, batch_size=2, clean=known
    )
    assert passes == [2, 2, 2]
    torch.testing.assert_close(parts, whole[:, 1], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("masked", [tokens_masked, attention_masked])
def test_the_model_is_whole_again_and_other_threads_see_it_whole(masked):
    model, frames, _ = _case("plain")
    clean = model(frames).detach()
    seen = []

    def judge_and_fail():
        with masked(model.vit, torch.ones(2, 15, dtype=torch.bool)):
            seen.append(model(frames))
            other = threading.Thread(target=lambda: seen.append(model(frames)))
            other.start()
            other.join()
            raise KeyError

    with pytest.raises(KeyError):
        judge_and_fail()
    here, there = seen
    assert not torch.allclose(here, clean)
    torch.testing.assert_close(there.detach(), clean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(model(frames).detach(), clean, rtol=0, atol=0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_a_patch_ranks_by_the_mean_of_the_map_over_it():
    cells = torch.tensor([[3.0, 1.0, 2.0], [5.0, 4.0, 0.0]])
    bumps = torch.randn(2, 4, 3, 4, generator=torch.Generator().manual_seed(0))
    bumps -= bumps.mean((1, 3), keepdim=True)
    saliency = (cells[:, None, :, None] + bumps).reshape(1, 8, 12)
    ranks = token_ranks(saliency, (2, 3), torch.Generator().manual_seed(0))
    assert ranks.tolist() == [[2, 4, 3, 0, 1, 5]]
    assert least_first(ranks).tolist() == [[3, 1, 2, 5, 4, 0]]
    flat = token_ranks(torch.zeros(2, 8, 12), (2, 3), torch.Generator().manual_seed(0))
    assert flat[0].sort().values.tolist() == list(range(6))
    assert torch.equal(flat[0], rank(torch.zeros(1, 6), torch.Generator().manual_seed(0))[0])


def test_a_map_that_the_patches_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"map of 9 x 12 px for 2 x 3 patches; .* cut what lies beyond"):
        token_ranks(torch.zeros(1, 9, 12), (2, 3), torch.Generator())


def test_the_papers_points_are_ten_from_zero_to_a_fifth():
    torch.testing.assert_close(torch.tensor(FRACTIONS), torch.linspace(0, 0.2, 10))


def test_a_model_without_a_transformer_is_refused():
    model, frames, ranks = _case("plain")
    with pytest.raises(UnsupportedModelError, match="Linear has no blocks"):
        token_deletion(model, frames, ranks, vit=model.head)
