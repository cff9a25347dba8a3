"""AttnLRP: LXT's numbers on torchvision's transformer, and its rules kept out of the rest of the process."""

from functools import partial

import pytest
import timm
import torch
from torch import nn
from torchvision.models import VisionTransformer, vision_transformer

from driving_xai import targets
from driving_xai.errors import UnsupportedModelError
from driving_xai.explain.adapters import load_explainer

pytest.importorskip("lxt.efficient", reason="needs the extra lxt")


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    made = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=16, mlp_dim=32, num_classes=3
    )
    nn.init.normal_(made.heads.head.weight)
    return made.double().eval()


def frames() -> torch.Tensor:
    return torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def patched_process():
    """LXT's plain use, which replaces methods of torch.nn; here they are put back."""
    from lxt.efficient import monkey_patch

    classes = (nn.GELU, nn.LayerNorm, nn.MultiheadAttention)
    originals = [each.forward for each in classes]
    yield partial(monkey_patch, vision_transformer)
    for each, original in zip(classes, originals, strict=True):
        each.forward = original
        if "original_forward" in vars(each):
            del each.original_forward


def test_lxts_numbers_without_its_patches(net, patched_process) -> None:
    shown = frames()
    before = nn.GELU.forward, nn.LayerNorm.forward, nn.MultiheadAttention.forward
    found = load_explainer("lxt:AttnLRP")(net, shown, targets.output(1))
    assert before == (nn.GELU.forward, nn.LayerNorm.forward, nn.MultiheadAttention.forward)
    patched_process()
    leaf = shown.clone().requires_grad_()
    net(leaf)[:, 1].sum().backward()
    torch.testing.assert_close(found, (leaf * leaf.grad).sum(1).detach(), rtol=1e-9, atol=1e-12)


def test_timms_transformer_has_the_same_rules(net) -> None:
    """The same weights in both libraries' modules give the same map."""
    torch.manual_seed(0)
    other = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        depth=2,
        num_heads=2,
        embed_dim=16,
        mlp_ratio=2,
        num_classes=3,
    )
    other = other.double().eval()
    state = other.state_dict()
    source = net.state_dict()
    state["cls_token"] = source["class_token"]
    state["pos_embed"] = source["encoder.pos_embedding"]
    names = {"patch_embed.proj": "conv_proj", "norm": "encoder.ln", "head": "heads.head"}
    for block in range(2):
        mine, theirs = f"blocks.{block}", f"encoder.layers.encoder_layer_{block}"
        names |= {f"{mine}.norm1": f"{theirs}.ln_1", f"{mine}.norm2": f"{theirs}.ln_2"}
        names |= {f"{mine}.mlp.fc1": f"{theirs}.mlp.0", f"{mine}.mlp.fc2": f"{theirs}.mlp.3"}
        names |= {f"{mine}.attn.proj": f"{theirs}.self_attention.out_proj"}
        for part in ("weight", "bias"):
            state[f"{mine}.attn.qkv.{part}"] = source[f"{theirs}.self_attention.in_proj_{part}"]
    for mine, theirs in names.items():
        for part in ("weight", "bias"):
            state[f"{mine}.{part}"] = source[f"{theirs}.{part}"]
    other.load_state_dict(state)
    shown = frames()
    torch.testing.assert_close(other(shown), net(shown))
    explain = load_explainer("lxt:AttnLRP")
    torch.testing.assert_close(
        explain(other, shown, targets.output(1)), explain(net, shown, targets.output(1))
    )


def test_other_networks_and_methods_are_refused_in_one_line() -> None:
    convolutional = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Flatten(), nn.Linear(1800, 2)).double().eval()
    with pytest.raises(UnsupportedModelError, match="needs a Vision Transformer"):
        load_explainer("lxt:AttnLRP")(convolutional, frames(), targets.output(1))
    with pytest.raises(ValueError, match="it has AttnLRP"):
        load_explainer("lxt:LRP")
