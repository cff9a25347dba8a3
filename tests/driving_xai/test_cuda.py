"""The same numbers on a GPU: maps, scores and checkpoints beside the CPU's, all in float32."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from driving_xai import checkpoint
from driving_xai.evaluation.run import ScoreConfig, score
from driving_xai.explain.registry import fitted
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.perturb import FILLS
from driving_xai.targets import magnitude, output
from driving_xai.training.actions import ActionTraining, train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

TRANSFORMERS = (
    "raw-attention",
    "rollout",
    "attention-gradient",
    "norm-attention",
    "generic-attention",
    "attention-ig",
    "snna",
)
ANY_MODEL = ("gradient", "smoothgrad", "integrated-gradients", "occlusion", "rise", "lime")


@pytest.fixture(autouse=True)
def exact_float32():
    """TF32 keeps ten bits of a product, too few to compare maps by."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def _transformer() -> ActionModel:
    torch.manual_seed(0)
    config = ActionConfig(
        backbone="vit_tiny_patch16_224", patch_px=8, embed_dim=48, depth=3, blocks=3, image_size=(48, 80)
    )
    model = ActionModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def _rank_correlation(one, other) -> float:
    ranks = torch.stack([one.flatten(), other.flatten()]).argsort().argsort().float()
    return float(torch.corrcoef(ranks)[0, 1])


def _like_the_cpu(explain, model, frames, target) -> None:
    expected = explain(model, frames, target)
    found = explain(model.cuda(), frames.cuda(), target)
    assert found.is_cuda
    scale = float(expected.abs().max())
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3 * scale)


@pytest.mark.parametrize("name", [*TRANSFORMERS, *ANY_MODEL])
def test_an_action_map_is_the_cpu_s(name) -> None:
    frames = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(1))
    _like_the_cpu(
        lambda model, frames, target: fitted(name, model, seed=3, batch_size=8)(model, frames, target),
        _transformer(),
        frames,
        output(1),
    )


@pytest.mark.parametrize("name", ["sign-attention", "grad-cam", "integrated-gradients", "visual-backprop"])
def test_a_steering_map_is_the_cpu_s(name) -> None:
    torch.manual_seed(0)
    model = SteeringModel(SteeringConfig(attention="sign")).eval()
    frames = torch.rand(2, 3, 80, 160, generator=torch.Generator().manual_seed(1))

    def explain(model, frames, target):
        return fitted(name, model, seed=3, batch_size=8)(model.at(None), frames, target)

    _like_the_cpu(explain, model, frames, magnitude)


@pytest.mark.parametrize("name", TRANSFORMERS)
@pytest.mark.parametrize(("precision", "share", "agreement"), [("bf16", 0.05, 0.99), ("tf32", 0.01, 0.999)])
def test_a_map_of_fewer_digits_is_that_of_float32(name, precision, share, agreement) -> None:
    """On a CPU bfloat16 moves these maps by up to 0.011 of their maximum, weights of ten bits by 0.0008."""
    if precision == "tf32" and torch.cuda.get_device_capability()[0] < 8:
        pytest.skip("this GPU has no TF32")
    model = _transformer().cuda()
    frames = torch.rand(2, 3, 48, 80, generator=torch.Generator().manual_seed(1)).cuda()
    explain = fitted(name, model, seed=3, batch_size=8)
    expected = explain(model, frames, output(1))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"
    with torch.autocast("cuda", torch.bfloat16, enabled=precision == "bf16"):
        found = explain(model, frames, output(1))
    assert found.dtype == torch.float32
    assert not torch.equal(found, expected)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=share * scale)
    assert _rank_correlation(found, expected) > agreement


def test_the_table_of_methods_takes_large_tiles_and_the_cpu_s_noise() -> None:
    model = _transformer().cuda()
    explain = fitted("snna", model)
    assert (explain.tile_rows, explain.noise_on) == (512, "cpu")
    assert fitted("snna", model, options={"noise_on": "frames"}).noise_on == "frames"


def test_noise_that_the_gpu_draws_gives_another_map_of_the_same_kind() -> None:
    model, frames = _transformer().cuda(), torch.rand(1, 3, 48, 80).cuda()
    on_cpu, on_gpu = (
        fitted("snna", model, options={"samples": 64, "noise_on": place})(model, frames, output(0))
        for place in ("cpu", "frames")
    )
    assert not torch.equal(on_cpu, on_gpu)
    assert _rank_correlation(on_cpu, on_gpu) > 0.9


def test_every_fill_is_the_cpu_s() -> None:
    frames = torch.rand(2, 3, 40, 60)
    for name, fill in FILLS.items():
        torch.testing.assert_close(fill(frames.cuda()).cpu(), fill(frames), msg=name)


def test_a_score_is_the_cpu_s(streets, actions, tmp_path) -> None:
    saved = actions()
    methods = ("snna", "generic-attention", "random")
    how = ScoreConfig(
        methods=methods, measures=("deletion", "aupc-token"), target="every-predicted", split="all"
    )
    found = {
        device: score(checkpoint.load(saved.path, device=device), streets, tmp_path / device, how).summary
        for device in ("cpu", "cuda")
    }
    for on_cpu, on_gpu in zip(found["cpu"]["scores"], found["cuda"]["scores"], strict=True):
        assert on_gpu["value"]["mean"] == pytest.approx(on_cpu["value"]["mean"], rel=1e-2, abs=1e-3), on_cpu[
            "method"
        ]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_a_model_trained_on_the_gpu_judges_alike_on_the_cpu(streets, tmp_path, precision) -> None:
    model = ActionConfig(
        backbone="vit_tiny_patch16_224",
        patch_px=8,
        embed_dim=24,
        depth=2,
        heads=3,
        blocks=2,
        image_size=(48, 80),
    )
    how = ActionTraining(
        model=model,
        tune="all",
        short_side_px=48,
        epochs=2,
        batch_size=8,
        optimizer="adamw",
        precision=precision,
    )
    train(streets, tmp_path, replace(how, learning_rate=0.03), device="cuda")
    frames = torch.rand(4, 3, 48, 80)
    with torch.no_grad():
        on_cpu = checkpoint.load(tmp_path).model(frames)
        on_gpu = checkpoint.load(tmp_path, device="cuda").model(frames.cuda()).cpu()
    torch.testing.assert_close(on_gpu, on_cpu, rtol=1e-3, atol=1e-3)
