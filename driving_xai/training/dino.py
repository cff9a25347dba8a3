"""The DINO recipe: images without labels -> a backbone, by self-distillation.

A student sees all views of an image, its teacher the two large ones; the student learns to say of every
view what the teacher says of another, and the teacher is the student's running average.

Source: Caron et al. 2021, "Emerging Properties in Self-Supervised Vision Transformers", with the
settings of its released code; the projection head, the loss and the views are lightly's. Zhu et al. 2024
train their backbone so on the 70,000 training images of BDD100K.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.models.utils import update_momentum
from torch import Tensor, nn
from torch.utils.data import DataLoader

from data_prep.shards.manifest import Manifest
from data_prep.values import Checked, Count, Ge, Gt, Interval, PositiveCount, Seed
from driving_xai.data.images import LabelledImages
from driving_xai.errors import DataError, UnsupportedModelError
from driving_xai.models.backbone import (
    BackboneConfig,
    build_backbone,
    fetched_name,
    is_transformer,
    load_backbone,
)
from driving_xai.training.dino_views import Crops, ViewBatches, Views
from driving_xai.training.logs import LoggerName
from driving_xai.training.loop import describe as describe_training
from driving_xai.training.loop import file_of_weights, train_to_checkpoint
from driving_xai.training.processes import Part, placement
from driving_xai.training.recipe import Device, Extent, Plan, Precision, Recipe, RecipeModule, mix
from driving_xai.training.schedules import cosine
from driving_xai.unfinished import Kept

_Share = Annotated[float, Interval(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True)
class DinoTraining(Checked):
    """How to train. The defaults are those of DINO's released code and, where it differs, of Zhu et al."""

    model: BackboneConfig = field(default_factory=BackboneConfig)
    start: str = "random"
    """The first weights: random, timm (its own of that name and tag, fetched), or a file or folder. The paper
    starts from ImageNet's."""
    splits: tuple[Literal["train", "val", "test"], ...] = ("train",)
    """Which images to learn from. The authors' script would take every image of a folder, tested ones too."""
    crops: Crops = field(default_factory=Crops)
    epochs: PositiveCount = 200
    batch_size: PositiveCount = 16
    """Of each process."""
    learning_rate: Annotated[float, Gt(0)] = 5e-4
    """For batches of 256; it is multiplied by the images of a step, over all devices, by 256."""
    warmup_epochs: Count = 10
    """Of the learning rate, from 0."""
    min_learning_rate: Annotated[float, Ge(0)] = 1e-6
    """At the end; not scaled."""
    weight_decay: Annotated[float, Ge(0)] = 0.04
    final_weight_decay: Annotated[float, Ge(0)] = 0.4
    teacher_momentum: _Share = 0.996
    """At the start; it grows to 1."""
    student_temperature: Annotated[float, Gt(0)] = 0.1
    teacher_temperature: Annotated[float, Gt(0)] = 0.04
    warmup_teacher_temperature: Annotated[float, Gt(0)] = 0.04
    warmup_teacher_epochs: Count = 0
    """In which the teacher's temperature goes from its warm-up value to the other."""
    centre_momentum: _Share = 0.9
    output_dim: PositiveCount = 65536
    hidden_dim: PositiveCount = 2048
    bottleneck_dim: PositiveCount = 256
    norm_last_layer: bool = True
    freeze_last_layer_epochs: Count = 1
    gradient_clip: Annotated[float, Ge(0)] = 3.0
    """Largest norm of each parameter's gradient; 0 for no limit."""
    drop_path: _Share = 0.1
    """Of the student."""
    devices: PositiveCount = 1
    """Processes that train together, over all machines; under torchrun as many as it started."""
    strategy: str = "auto"
    """Lightning's name for how devices work together; auto is one process a device."""
    precision: Precision = "auto"
    seed: Seed = 0
    workers: Count = 0
    """Processes that make views, for each device."""
    keep_mib: Count = 2048
    """Of decoded images that may stay in memory, in each process."""


class Branch(nn.Module):
    """A backbone and its projection head: student or teacher."""

    def __init__(self, backbone: Any, how: DinoTraining) -> None:
        super().__init__()
        self.backbone = backbone
        self.is_transformer = is_transformer(backbone)
        with warnings.catch_warnings():
            # lightly's head uses the older of torch's two weight normalisations.
            warnings.filterwarnings("ignore", message=".*weight_norm.*", category=FutureWarning)
            self.head = DINOProjectionHead(
                backbone.num_features,
                how.hidden_dim,
                how.bottleneck_dim,
                how.output_dim,
                freeze_last_layer=how.freeze_last_layer_epochs,
                norm_last_layer=how.norm_last_layer,
            )

    def forward(self, views: Views) -> list[Float[Tensor, "B output"]]:
        """The projections of each view; views of one size run through the backbone together."""
        found: list[Tensor] = []
        for size in dict.fromkeys(view.shape[-1] for view in views):
            same = [view for view in views if view.shape[-1] == size]
            found += self.head(self._summary(torch.cat(same))).chunk(len(same))
        return found

    def _summary(self, frames: Tensor) -> Float[Tensor, "B width"]:
        features = self.backbone.forward_features(frames)
        return features[:, 0] if self.is_transformer else features.mean((2, 3))


class DinoModule(RecipeModule):
    """One training step of self-distillation, for Lightning's loop."""

    kept = Kept("teacher.backbone.")

    def __init__(self, student: Branch, teacher: Branch, images: LabelledImages, how: DinoTraining) -> None:
        super().__init__()
        self.student, self.teacher, self.images, self.how = (
            student,
            teacher.requires_grad_(False),
            images,
            how,
        )
        self.loss = DINOLoss(
            how.output_dim,
            teacher_temp=how.teacher_temperature,
            student_temp=how.student_temperature,
            center_momentum=how.centre_momentum,
        )
        self.seed = how.seed
        self.last_means: dict[str, float] = {}
        """What a resumed run logged last."""
        self.rows = np.sort(np.concatenate([images.rows(split) for split in how.splits]))

    def plan(self) -> Plan:
        return Plan(epochs=self.how.epochs, precision=self.how.precision, strategy=self.how.strategy)

    def current_model(self) -> nn.Module:
        return self.teacher.backbone

    def finished(self, trainer: L.Trainer, out: Path) -> dict[str, Any]:
        # Of a run that was whole already nothing is logged again: its state still has them.
        return {**self.last_means, **self.logged_means(), "epochs": self.how.epochs}

    def steps_per_epoch(self) -> int:
        """Whole batches of every device.

        Raises:
            DataError: there are not enough images for one.
        """
        together = self.how.batch_size * self.how.devices
        if len(self.rows) < together:
            raise DataError(
                f"{self.images.root} has {len(self.rows)} images of {', '.join(self.how.splits)} and a step takes "
                f"{together}; use a smaller batch_size or prepare more"
            )
        return len(self.rows) // together

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Biases and normalisations are not decayed; schedules set the values before each step.
        learnt = [parameter for parameter in self.student.parameters() if parameter.requires_grad]
        decayed = [parameter for parameter in learnt if parameter.dim() > 1]
        others = [parameter for parameter in learnt if parameter.dim() == 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "name": "decayed"},
            {"params": others, "name": "others", "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(groups, lr=0.0)

    def rates(self, epoch: int) -> dict[str, float]:
        """The rate that an epoch starts with; each step sets its own."""
        steps = self.steps_per_epoch()
        rate = self._rate(epoch * steps)
        return {"decayed": rate, "others": rate}

    def extent(self) -> Extent:
        together = self.how.batch_size * self.how.devices
        return Extent(self.steps_per_epoch() * together, "images without labels", together)

    def train_dataloader(self) -> DataLoader[Views]:
        how, epoch = self.how, self.trainer.current_epoch
        order = self.images.shuffled(self.rows, torch.Generator().manual_seed(mix(how.seed, epoch)))
        mine = order[self.global_rank :: self.trainer.world_size]
        chunks = [
            mine[start : start + how.batch_size]
            for start in range(0, self.steps_per_epoch() * how.batch_size, how.batch_size)
        ]
        batches = ViewBatches(self.images, chunks, how.crops, seed=how.seed, epoch=epoch)
        return DataLoader(batches, batch_size=None, num_workers=how.workers)

    def training_step(self, views: Views, batch_idx: int) -> Tensor:
        # Stochastic depth draws from (seed, epoch, step, device), so that a resumed run draws the same.
        torch.manual_seed(mix(self.how.seed, self.current_epoch, batch_idx, self.global_rank))
        self._follow_schedules()
        size, number = self.how.batch_size, self.global_rank
        part = Part(number * size, (number + 1) * size, self.processes * size, 1.0)
        with self.as_one_batch(part):
            with torch.no_grad():
                taught = [projection.float() for projection in self.teacher(views[:2])]
            said = [projection.float() for projection in self.student(views)]
        self._log_spread(taught)
        loss = self.loss(taught, said, teacher_temp=self._teacher_temperature())
        self._learnt_from = part.total
        self._log("train_loss", loss, len(views[0]))
        return loss

    def logged_means(self) -> dict[str, float]:
        """Of the last epoch that this process ran."""
        return {name: float(v) for name, v in self.trainer.callback_metrics.items() if name in _LOGGED}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["last_means"] = self.logged_means()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.last_means = checkpoint.get("last_means", {})

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.how.gradient_clip:
            for parameter in self.student.parameters():
                if parameter.grad is not None:
                    nn.utils.clip_grad_norm_(parameter, self.how.gradient_clip)
        self.student.head.cancel_last_layer_gradients(self.current_epoch)

    def after_step(self) -> None:
        with torch.no_grad():
            update_momentum(self.student, self.teacher, self._scheduled(self.how.teacher_momentum, 1.0, -1))

    def _follow_schedules(self) -> None:
        how = self.how
        decayed, others = self.trainer.optimizers[0].param_groups
        decayed["lr"] = others["lr"] = self._rate(self.trainer.global_step)
        decayed["weight_decay"] = self._scheduled(how.weight_decay, how.final_weight_decay, 0)

    def _rate(self, step: int) -> float:
        how, steps = self.how, self.steps_per_epoch()
        rate = how.learning_rate * how.batch_size * how.devices / 256
        warmup = how.warmup_epochs * steps
        return cosine(step, how.epochs * steps, rate, how.min_learning_rate, warmup_steps=warmup)

    def _scheduled(self, start: float, end: float, offset: int) -> float:
        """The value at this step, or `offset` steps from it once Lightning has counted on."""
        steps = self.how.epochs * self.steps_per_epoch()
        return cosine(self.trainer.global_step + offset, steps, start, end)

    def _teacher_temperature(self) -> float:
        how = self.how
        if self.current_epoch >= how.warmup_teacher_epochs:
            return how.teacher_temperature
        done = self.current_epoch / max(how.warmup_teacher_epochs - 1, 1)
        first = how.warmup_teacher_temperature
        return first + (how.teacher_temperature - first) * done

    def _log_spread(self, taught: list[Tensor]) -> None:
        """How evenly the teacher uses its outputs; 1 in both means that it says nothing, 0 that it says one thing."""
        said = F.softmax((torch.stack(taught) - self.loss.center) / self._teacher_temperature(), dim=-1)
        for name, value in (("teacher_entropy", said), ("teacher_spread", said.mean((0, 1)))):
            relative = entropy(value).mean() / np.log(self.how.output_dim)
            self._log(name, relative, said.shape[1])

    def _log(self, name: str, value: Tensor, images: int) -> None:
        """The mean over an epoch, and over devices."""
        together = self.trainer.world_size > 1
        self.log(name, value, on_step=False, on_epoch=True, batch_size=images, sync_dist=together)


def entropy(probability: Float[Tensor, "*B K"]) -> Float[Tensor, "*B"]:
    """In nats."""
    return torch.special.entr(probability).sum(-1)


_LOGGED = ("train_loss", "teacher_entropy", "teacher_spread")


def train(
    shards: Path,
    out: Path,
    how: DinoTraining,
    *,
    device: Device = "auto",
    resume: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    logger: LoggerName = "tensorboard",
) -> dict[str, Any]:
    """Trains a backbone and writes a checkpoint directory that `train actions` starts from.

    The teacher's backbone is kept; see `loop.train_to_checkpoint` for the options.

    Args:
        shards: a folder that `prep` wrote from images; labels are not read.

    Returns:
        Of the last epoch the loss, `teacher_entropy` (how undecided
        the teacher is of an image) and `teacher_spread` (of all images together), both over the
        logarithm of `output_dim`. A collapsed teacher has a spread near 0, or an entropy near 1.

    Raises:
        DataError: the shards hold no images, or too few for one step.
        CheckpointError: `resume` without a run or with another configuration, or weights that do not
            fit.
        UnsupportedModelError: the architecture cannot be built, or crops are no whole patches.
    """
    how = _placed(how)
    return train_to_checkpoint(
        recipe(shards, how),
        out,
        device=device,
        devices=how.devices,
        resume=resume,
        callbacks=callbacks,
        logger=logger,
    )


def _placed(how: DinoTraining) -> DinoTraining:
    """With the processes that there are, under torchrun those that it started."""
    return replace(how, devices=placement(how.devices if how.devices > 1 else None).processes)


def recipe(shards: Path, how: DinoTraining) -> Recipe:
    """What the loop trains, once nothing of the images and settings can be refused any more; see `train`."""
    images = LabelledImages(shards, keep_mib=how.keep_mib)
    config = describe(how, images.manifest)
    L.seed_everything(how.seed, verbose=False)
    student = Branch(_first_backbone(how), how)
    teacher = Branch(build_backbone(how.model), how)
    teacher.load_state_dict(student.state_dict())
    module = DinoModule(student, teacher, images, how)
    module.steps_per_epoch()
    return Recipe(config=config, model=teacher, build=lambda: module)


def _first_backbone(how: DinoTraining) -> Any:
    backbone = build_backbone(how.model, drop_path=how.drop_path, pretrained=how.start == "timm")
    if how.start not in ("random", "timm"):
        load_backbone(backbone, Path(how.start))
    if is_transformer(backbone):
        patch = backbone.patch_embed.patch_size[0]
        for name in ("global_px", "local_px"):
            if (size := getattr(how.crops, name)) % patch:
                raise UnsupportedModelError(
                    f"crops.{name} is {size} and a patch {patch} px; use a multiple, such as {size // patch * patch + patch}"
                )
    return backbone


def describe(how: DinoTraining, manifest: Manifest) -> dict[str, Any]:
    """The config.json of a backbone trained so on these shards, less its schema."""
    resolved: dict[str, Any] = {}
    if how.start == "timm":
        resolved["start"] = {"timm": fetched_name(how.model.backbone)}
    elif how.start != "random":
        resolved["start"] = file_of_weights(Path(how.start))
    return describe_training(
        "dino",
        how,
        inputs={"geometry": manifest.geometry},
        data={"shards_sha256": manifest.sha256, "splits": list(how.splits)},
        resolved=resolved,
    )
