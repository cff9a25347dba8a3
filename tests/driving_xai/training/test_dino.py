"""The DINO recipe: its loss, schedules and steps against slow twins, resuming, collapse, refusals."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from lightly.loss import DINOLoss
from safetensors.torch import load_file

from driving_xai import checkpoint
from driving_xai.data.images import LabelledImages
from driving_xai.errors import CheckpointError, DataError, UnsupportedModelError
from driving_xai.models.actions import ActionConfig
from driving_xai.models.backbone import BackboneConfig, build_backbone
from driving_xai.training.actions import ActionTraining
from driving_xai.training.actions import train as train_actions
from driving_xai.training.dino import Branch, DinoTraining, entropy, train
from driving_xai.training.dino_views import Crops, ViewBatches
from driving_xai.training.recipe import mix
from driving_xai.training.schedules import cosine

MODEL = BackboneConfig(
    backbone="vit_tiny_patch16_224", patch_px=8, embed_dim=24, depth=2, heads=3, image_size=(24, 40)
)
HOW = DinoTraining(
    model=MODEL,
    crops=Crops(global_px=24, local_px=16, local_crops=2),
    epochs=3,
    batch_size=7,
    learning_rate=0.02,
    warmup_epochs=1,
    output_dim=64,
    hidden_dim=32,
    bottleneck_dim=16,
    drop_path=0.0,
)


@pytest.fixture(scope="module")
def shards(streets: Path) -> Path:
    return streets


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("straight")
    train(shards, out, HOW, device="cpu")
    return out


def slow_loss(taught, said, centre, *, student=0.1, teacher=0.04):
    """Caron et al. 2021, eqs. 1 to 3, one pair of views and one image at a time."""
    total, terms = 0.0, 0
    for t, teacher_view in enumerate(taught):
        for s, student_view in enumerate(said):
            if t == s:
                continue
            for left, right in zip(teacher_view, student_view, strict=True):
                p = torch.softmax((left - centre) / teacher, 0)
                total = total - (p * torch.log_softmax(right / student, 0)).sum()
            terms += 1
    return total / (terms * len(taught[0]))


def test_the_loss_and_its_centre_are_those_of_the_paper() -> None:
    draw = torch.Generator().manual_seed(0)
    loss, centre = DINOLoss(16, center_momentum=0.9).double(), torch.zeros(16).double()
    for _ in range(3):
        taught = [torch.randn(5, 16, generator=draw).double() for _ in range(2)]
        said = [torch.randn(5, 16, generator=draw).double() for _ in range(6)]
        torch.testing.assert_close(
            loss(taught, said), slow_loss(taught, said, centre), rtol=1e-8, atol=0
        )  # lightly keeps temperatures in float32
        centre = 0.9 * centre + 0.1 * torch.cat(taught).mean(0)
        torch.testing.assert_close(loss.center.flatten(), centre, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("warmup", "epochs"), [(0, 4), (2, 5), (9, 4)])
def test_schedules_are_those_of_the_released_code(warmup, epochs) -> None:
    """A ramp and half a cosine written out as two lists."""
    steps, base, final = 7, 3.0, 0.5
    ramp = np.linspace(0, base, warmup * steps).tolist()
    rest = epochs * steps - warmup * steps
    curve = [final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / rest)) for i in range(rest)]
    wanted = (ramp + curve)[: epochs * steps]
    found = [
        cosine(i, epochs * steps, base, final, warmup_steps=warmup * steps) for i in range(epochs * steps)
    ]
    if warmup < epochs:
        assert found == pytest.approx(wanted)
    else:  # Longer than the training: cut to it, so that the peak is reached.
        assert found == pytest.approx(np.linspace(0, base, epochs * steps).tolist())


def slow_run(shards: Path, how: DinoTraining) -> dict[str, torch.Tensor]:
    """The training as one plain loop, as the released code has it."""
    images = LabelledImages(shards)
    rows, steps = images.rows("train"), 4
    L.seed_everything(how.seed, verbose=False)
    student = Branch(build_backbone(how.model), how)
    teacher = Branch(build_backbone(how.model), how)
    teacher.load_state_dict(student.state_dict())
    centre = torch.zeros(how.output_dim)
    learnt = [p for p in student.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in learnt if p.dim() > 1], "weight_decay": 0.0},
        {"params": [p for p in learnt if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups)
    step = 0
    for epoch in range(how.epochs):
        order = images.shuffled(rows, torch.Generator().manual_seed(mix(how.seed, epoch)))
        chunks = [order[i * how.batch_size : (i + 1) * how.batch_size] for i in range(steps)]
        for views in (
            ViewBatches(images, chunks, how.crops, seed=how.seed, epoch=epoch)[i] for i in range(steps)
        ):
            total = how.epochs * steps
            rate = cosine(step, total, how.learning_rate * how.batch_size / 256, 1e-6, warmup_steps=steps)
            groups[0]["weight_decay"] = cosine(step, total, 0.04, 0.4)
            for group, mine in zip(optimizer.param_groups, groups, strict=True):
                group["lr"], group["weight_decay"] = rate, mine["weight_decay"]
            with torch.no_grad():
                taught = [teacher([view])[0] for view in views[:2]]
            loss = slow_loss(taught, [student([view])[0] for view in views], centre)
            optimizer.zero_grad()
            loss.backward()
            for parameter in learnt:
                norm = float(parameter.grad.norm())
                parameter.grad.mul_(min(1.0, 3.0 / (norm + 1e-6)))
            if epoch < 1:
                for parameter in student.head.last_layer.parameters():
                    parameter.grad = None
            optimizer.step()
            centre = 0.9 * centre + 0.1 * torch.cat(taught).mean(0)
            momentum = cosine(step, total, 0.996, 1.0)
            with torch.no_grad():
                for mine, theirs in zip(teacher.parameters(), student.parameters(), strict=True):
                    mine.mul_(momentum).add_(theirs, alpha=1 - momentum)
            step += 1
    return teacher.backbone.state_dict()


def test_a_run_is_the_published_loop(shards, straight) -> None:
    found, wanted = load_file(straight / checkpoint.WEIGHTS), slow_run(shards, HOW)
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-3, atol=2e-5)
    start = build_backbone(MODEL).state_dict()
    assert not torch.allclose(found["blocks.0.attn.qkv.weight"], start["blocks.0.attn.qkv.weight"], atol=1e-3)


class Interrupt(L.Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.current_epoch == 1 and batch_idx == 1:
            raise KeyboardInterrupt


def test_a_resumed_run_ends_where_an_unbroken_one_does(shards, straight, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(shards, tmp_path, HOW, device="cpu", callbacks=(Interrupt(),))
    train(shards, tmp_path, HOW, device="cpu", resume=True)
    for name in (checkpoint.WEIGHTS, checkpoint.CONFIG, checkpoint.METRICS):
        assert (tmp_path / name).read_bytes() == (straight / name).read_bytes(), name


def test_resuming_what_is_whole_changes_nothing(shards, tmp_path) -> None:
    how = replace(HOW, epochs=1)
    metrics = train(shards, tmp_path, how, device="cpu")
    assert metrics.keys() == {"train_loss", "teacher_entropy", "teacher_spread", "epochs"}
    before = {name: (tmp_path / name).read_bytes() for name in (checkpoint.WEIGHTS, checkpoint.METRICS)}
    assert train(shards, tmp_path, how, device="cpu", resume=True) == metrics
    for name, content in before.items():
        assert (tmp_path / name).read_bytes() == content, name


def test_the_action_recipe_starts_from_the_teacher(shards, straight, tmp_path) -> None:
    how = ActionTraining(
        model=ActionConfig(blocks=2), start=str(straight), short_side_px=24, epochs=1, batch_size=8
    )
    train_actions(shards, tmp_path, how, device="cpu")
    model = checkpoint.load(tmp_path, kind="actions").model
    teacher = checkpoint.load(straight, kind="dino").model
    for name, tensor in teacher.state_dict().items():
        assert torch.equal(model.vit.state_dict()[name], tensor), name


def test_views_depend_on_seed_epoch_and_row_alone_and_leave_the_generators_alone(shards) -> None:
    images, crops = LabelledImages(shards), Crops(global_px=24, local_px=16, local_crops=3)

    def views(chunks, *, seed=0, epoch=0):
        return ViewBatches(images, [np.array(c) for c in chunks], crops, seed=seed, epoch=epoch)

    before = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    whole, alone = views([[3, 9, 30]])[0], views([[1], [9]])[1]
    after = (torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate())  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert [tuple(view.shape) for view in whole] == [(3, 3, 24, 24)] * 2 + [(3, 3, 16, 16)] * 3
    for together, single in zip(whole, alone, strict=True):
        assert torch.equal(together[1:2], single)
    assert not torch.equal(whole[0][0], whole[1][0])
    assert not torch.equal(views([[9]], epoch=1)[0][0], alone[0])
    assert not torch.equal(views([[9]], seed=1)[0][0], alone[0])


def test_views_are_standardised(shards) -> None:
    view = ViewBatches(LabelledImages(shards), [np.arange(30)], HOW.crops, seed=0, epoch=0)[0][0]
    assert view.mean().abs() < 1
    assert 0.5 < view.std() < 2
    assert (view < -0.5).any()


@pytest.mark.parametrize(
    ("change", "collapse"),
    [
        ({}, None),
        ({"teacher_temperature": 1.0}, "undecided"),
        ({"centre_momentum": 1.0, "teacher_momentum": 0.9, "learning_rate": 0.1}, "one answer"),
    ],
    ids=["stock", "without sharpening", "without centring"],
)
def test_the_teacher_collapses_without_its_two_safeguards_and_not_with_them(
    shards, tmp_path, change, collapse
) -> None:
    """Caron et al. 2021, section 5.3: without sharpening it says nothing, without centring always the same."""
    found = train(shards, tmp_path, replace(HOW, epochs=8, **change), device="cpu")
    if collapse is None:
        assert found["teacher_spread"] - found["teacher_entropy"] > 0.03, found
    elif collapse == "undecided":
        assert found["teacher_entropy"] > 0.99, found
    else:
        assert found["teacher_spread"] < 0.01, found


def test_entropy_is_that_of_the_uniform_and_of_the_certain() -> None:
    probability = torch.stack([torch.full((8,), 1 / 8), torch.eye(8)[2]])
    torch.testing.assert_close(entropy(probability), torch.tensor([np.log(8.0), 0.0]).float())


def test_bad_input_is_one_line(shards, straight, tmp_path) -> None:
    cases = [
        (
            replace(HOW, crops=replace(HOW.crops, local_px=20)),
            UnsupportedModelError,
            "use a multiple, such as 24",
        ),
        (replace(HOW, batch_size=99), DataError, "has 28 images of train and a step takes 99"),
        (replace(HOW, start=str(tmp_path / "none.pth")), CheckpointError, "no such file"),
        (replace(HOW, model=replace(MODEL, backbone="vit_x")), UnsupportedModelError, "unknown to timm"),
    ]
    for how, error, message in cases:
        with pytest.raises(error, match=message) as caught:
            train(shards, tmp_path, how, device="cpu")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "resume").exists()
    with pytest.raises(CheckpointError, match="already holds"):
        train(shards, straight, HOW, device="cpu")


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"teacher_momentum": 1.5}, {"learning_rate": 0.0}]
)
def test_settings_that_cannot_train_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="expected"):
        replace(HOW, **wrong)
    with pytest.raises(ValueError, match="expected"):
        Crops(local_scale=(0.4, 0.05))


RECIPE = """
epochs = 2
warmup_epochs = 1
drop_path = 0.0
output_dim = 64
hidden_dim = 32
bottleneck_dim = 16
[crops]
global_px = 24
local_px = 16
local_crops = 2
[model]
backbone = "vit_tiny_patch16_224"
patch_px = 8
embed_dim = 24
depth = 2
heads = 3
image_size = [24, 40]
"""


@pytest.mark.slow
def test_two_processes_learn_what_one_does(shards, tmp_path) -> None:
    """Half of each batch in each process, over gloo: the same gradients and centre, but for rounding."""
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(RECIPE)
    weights = []
    for devices, batch in ((1, 8), (2, 4)):
        out = tmp_path / f"of-{devices}"
        line = ["train", "dino", shards, out, "--config", recipe, "--device", "cpu", "--batch-size", batch]
        subprocess.run(
            [sys.executable, "-m", "driving_xai", *map(str, line), "--devices", str(devices)],
            check=True,
            timeout=240,
        )
        weights.append(load_file(out / checkpoint.WEIGHTS))
    alone, together = weights
    for name, tensor in alone.items():
        torch.testing.assert_close(together[name], tensor, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
def test_a_convolutional_network_can_be_distilled(shards, tmp_path) -> None:
    crops = Crops(global_px=32, local_px=32, local_crops=1)
    how = replace(HOW, model=BackboneConfig(backbone="resnet10t"), crops=crops, epochs=1)
    train(shards, tmp_path, how, device="cpu")
    start = build_backbone(how.model).state_dict()
    found = checkpoint.load(tmp_path, kind="dino").model.state_dict()
    assert not torch.equal(found["layer4.0.conv1.weight"], start["layer4.0.conv1.weight"])
