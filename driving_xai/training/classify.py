"""The classifier recipe: labelled images -> a checkpoint.

Training is a pure function of the images, the configuration and the seed; see `training.loop`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import lightning as L
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from data_prep.values import Checked, Count, Ge, Gt, PositiveCount, Seed
from driving_xai.data.images import ImageSet, LabelledImages, classes_of, mean_image
from driving_xai.errors import DataError
from driving_xai.models.classify import Classifier, ClassifierConfig, load_weights
from driving_xai.models.lambda_net import LambdaAttentionBranchNetwork
from driving_xai.training.augment import Augmentation, augment
from driving_xai.training.labn import LabnLoss, Shares, labn_loss
from driving_xai.training.logs import LoggerName
from driving_xai.training.loop import describe as describe_training
from driving_xai.training.loop import train_to_checkpoint
from driving_xai.training.processes import Part, in_parts
from driving_xai.training.recipe import (
    Best,
    Device,
    Extent,
    Plan,
    Precision,
    Recipe,
    RecipeModule,
    mix,
    spread,
)
from driving_xai.training.schedules import rate_share
from driving_xai.types import Frames, Scores
from driving_xai.unfinished import Kept

_BIAS_ROW = -1
"""Stands for the bias image among the rows of training images."""
_LABN_EXTRACTION = "extract."
_PLATEAU: dict[str, Any] = {"factor": 1 / 3, "patience": 2, "min_lr": 1e-6}
"""Of LABN's authors' code: 0.333, 2 and 1e-6."""
_LABN_HEADS = ("branch.", "attend.", "classify.", "head.")


@dataclass(frozen=True, kw_only=True)
class ClassifierTraining(Checked):
    """How to train. For LABN, Iida et al. name: two learning rates, weight decay 0.09, patience 6."""

    model: ClassifierConfig = field(default_factory=ClassifierConfig)
    """Its classes and image size are taken from the images."""
    weights: str | None = None
    """A local file the network starts from, loaded strictly; see `models.classify.load_weights`."""
    augmentation: Augmentation = field(
        default_factory=lambda: Augmentation(flip=False, brightness=0.2, contrast=0.2)
    )
    labn: LabnLoss = field(default_factory=LabnLoss)
    """Of the network labn only."""
    epochs: PositiveCount = 30
    batch_size: PositiveCount = 32
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Of LABN's attention branch and of the last linear layer."""
    features_learning_rate: Annotated[float, Ge(0)] | None = None
    """Of all other layers; None is the same, 0 freezes them and their statistics. LABN's paper takes a tenth."""
    extraction_learning_rate: Annotated[float, Ge(0)] | None = None
    """Of LABN's first part alone, the feature extractor; None is `features_learning_rate`, 0 freezes it and its
    statistics while the perception branch learns, as LABN's authors do."""
    weight_decay: Annotated[float, Ge(0)] = 0.01
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    """plateau takes a third of the rates, down to 1e-6, after two epochs without a lower validation loss, as LABN's
    authors do."""
    warmup_epochs: Count = 0
    """Epochs over which the rates rise linearly, before the schedule."""
    sampling: Literal["as-is", "balanced"] = "as-is"
    """Balanced draws every class alike often, with replacement."""
    class_weights: tuple[Annotated[float, Ge(0)], ...] = ()
    """Of the cross-entropy; empty weighs classes alike."""
    patience: PositiveCount | None = 6
    """Epochs without a lower validation loss before stopping; None never stops early."""
    gradient_clip: Annotated[float, Ge(0)] = 1.0
    precision: Precision = "auto"
    seed: Seed = 0
    keep_mib: Count = 2048
    """Of decoded images that may stay in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.extraction_learning_rate is not None and self.model.network != "labn":
            raise ValueError(
                f"extraction_learning_rate is of labn only, and the network is {self.model.network}; "
                "use features_learning_rate"
            )
        if self.schedule == "plateau" and self.warmup_epochs:
            raise ValueError(
                "warmup_epochs is set and schedule is plateau, which has no warm-up; leave it out"
            )
        if self.labn.classification == "binary" and self.class_weights:
            raise ValueError(
                "class_weights is of the cross-entropy and labn.classification is binary; set labn.positive_weight"
            )


def train(
    images: ImageSet,
    out: Path,
    how: ClassifierTraining,
    *,
    data: Mapping[str, Any],
    geometry: Mapping[str, Any] | None = None,
    device: Device = "auto",
    devices: int | None = None,
    resume: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    logger: LoggerName = "tensorboard",
) -> dict[str, Any]:
    """Trains a classifier and writes a checkpoint directory; see `loop.train_to_checkpoint` for the options.

    Args:
        images: of equal size, each of exactly one class.
        data: what the checkpoint says of the images, such as the shards' hash.
        geometry: how they were cut from what a camera saw, by field of `Geometry`; None where they were not.

    Returns:
        Accuracy and log loss of each split, and of the majority.

    Raises:
        DataError: there is nothing to train on, or an image has not exactly one class.
        CheckpointError: `resume` without a run or with another configuration; the weights do not fit.
    """
    return train_to_checkpoint(
        recipe(images, how, data=data, geometry=geometry),
        out,
        device=device,
        devices=devices,
        resume=resume,
        callbacks=callbacks,
        logger=logger,
    )


def recipe(
    images: ImageSet,
    how: ClassifierTraining,
    *,
    data: Mapping[str, Any],
    geometry: Mapping[str, Any] | None = None,
) -> Recipe:
    """What the loop trains, once nothing of the images and settings can be refused any more; see `train`."""
    labels = classes_of(images)
    rows = images.rows("train")
    if len(rows) < 2:
        raise DataError(f"the shards hold {len(rows)} training images, expected 2 or more; prepare more")
    if how.schedule == "plateau" and not len(images.rows("val")):
        raise DataError(
            "schedule plateau goes by the validation loss, and there is no val split; take another"
        )
    size = images.frames(rows[:1]).shape[2:]
    how = replace(how, model=replace(how.model, classes=images.label_names, image_size=tuple(size)))
    config = describe(how, data, geometry)
    L.seed_everything(how.seed, verbose=False)
    model = Classifier(how.model)
    if how.weights is not None:
        load_weights(model, Path(how.weights))
    elif how.model.normalisation == "images":
        _standardise(model, images, rows)
    module = ClassifierModule(model, how, images, labels)
    return Recipe(config=config, model=model, build=lambda: module)


def train_on_shards(
    shards: Path,
    out: Path,
    how: ClassifierTraining,
    *,
    device: Device = "auto",
    devices: int | None = None,
    resume: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    logger: LoggerName = "tensorboard",
) -> dict[str, Any]:
    """Trains on a folder that `prep` wrote; see `train`."""
    return train_to_checkpoint(
        recipe_on_shards(shards, how),
        out,
        device=device,
        devices=devices,
        resume=resume,
        callbacks=callbacks,
        logger=logger,
    )


def recipe_on_shards(shards: Path, how: ClassifierTraining) -> Recipe:
    """As `recipe`, of a folder that `prep` wrote."""
    images = LabelledImages(shards, keep_mib=how.keep_mib)
    data = {"shards_sha256": images.manifest.sha256, "held_out": {}}
    return recipe(images, how, data=data, geometry=images.manifest.geometry)


def describe(
    how: ClassifierTraining, data: Mapping[str, Any], geometry: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The config.json of a model trained so on these images, less its schema."""
    return describe_training(
        "classifier", how, inputs={"geometry": geometry, "short_side_px": None}, data=data
    )


@torch.no_grad()
def predict(
    model: Classifier, images: ImageSet, rows: np.ndarray, *, batch_size: int = 64
) -> Float[Tensor, "N K"]:
    """The scores of these images, on the CPU, from the model in eval mode."""
    was_training = model.training
    model.eval()
    device = model.mean.device
    parts = [
        model(images.frames(rows[start : start + batch_size]).to(device)).float().cpu()
        for start in range(0, len(rows), batch_size)
    ]
    model.train(was_training)
    return torch.cat(parts)


def judged(scores: Scores, labels: Int64[Tensor, " N"], train_labels: Int64[Tensor, " M"]) -> dict[str, Any]:
    """Accuracy, log loss and confusions, beside what always saying the commonest class would get."""
    classes = scores.shape[1]
    shares = torch.bincount(train_labels, minlength=classes).double() / len(train_labels)
    confusion = torch.bincount(labels * classes + scores.argmax(1), minlength=classes**2)
    return {
        "images": len(labels),
        "accuracy": float((scores.argmax(1) == labels).double().mean()),
        "accuracy_majority": float((labels == shares.argmax()).double().mean()),
        "log_loss": float(F.cross_entropy(scores, labels)),
        "log_loss_shares": float(-shares[labels].clamp_min(1e-12).log().mean()),
        "confusion": confusion.view(classes, classes).tolist(),
    }


class ClassifierModule(RecipeModule):
    """One training step and one validation of a classifier, for Lightning's loop."""

    kept = Kept("model.")
    bias: Tensor
    class_weights: Tensor

    def __init__(
        self, model: Classifier, how: ClassifierTraining, images: ImageSet, labels: Int64[Tensor, " N"]
    ) -> None:
        super().__init__()
        self.model, self.how, self.images, self.labels = model, how, images, labels
        self.seed = how.seed
        self.plateau: ReduceLROnPlateau | None = None
        self.plateau_state: dict[str, Any] | None = None
        self.is_labn = isinstance(model.network, LambdaAttentionBranchNetwork)
        rows = images.rows("train")
        self.register_buffer("bias", mean_image(images, rows) if self.is_labn else torch.zeros(0))
        weights = how.class_weights or (1.0,) * len(how.model.classes)
        if len(weights) != len(how.model.classes):
            raise DataError(
                f"class_weights has {len(weights)} values for {len(how.model.classes)} classes; give one each"
            )
        self.register_buffer("class_weights", torch.tensor(weights))
        self.negative = _class_named(how)
        self.frozen = {part for part, rate in self._full_rates().items() if rate == 0}
        parts = self._parts()
        for weight in (weight for part in self.frozen for weight in parts[part]):
            weight.requires_grad_(False)

    def plan(self) -> Plan:
        validated = len(self.images.rows("val")) > 0
        return Plan(
            epochs=self.how.epochs,
            precision=self.how.precision,
            best=Best(monitor="val_loss", patience=self.how.patience) if validated else None,
            gradient_clip=self.how.gradient_clip,
        )

    def current_model(self) -> Classifier:
        return self.model

    def sample_frames(self, most: int) -> Frames:
        val = self.images.rows("val")
        return self.images.frames(spread(val if len(val) else self.images.rows("train"), most))

    def finished(self, trainer: L.Trainer, out: Path) -> dict[str, Any]:
        measured = _measure(self.model, self.images, self.labels, trainer)
        return {"epochs": trainer.current_epoch, **measured}

    def _full_rates(self) -> dict[str, float]:
        """The rate of each part of the network, before the schedule."""
        how = self.how
        features = how.learning_rate if how.features_learning_rate is None else how.features_learning_rate
        rates = {"heads": how.learning_rate, "features": features}
        if how.extraction_learning_rate is not None:
            rates["extraction"] = how.extraction_learning_rate
        return rates

    def _part_of(self, name: str) -> str:
        """The part of the network that a module or weight of this name belongs to."""
        if name.startswith(_LABN_HEADS if self.is_labn else _last_linear(self.model.network)):
            return "heads"
        first = self.how.extraction_learning_rate is not None and name.startswith(_LABN_EXTRACTION)
        return "extraction" if first else "features"

    def _parts(self) -> dict[str, list[nn.Parameter]]:
        parts: dict[str, list[nn.Parameter]] = {part: [] for part in self._full_rates()}
        for name, weight in self.model.network.named_parameters():
            parts[self._part_of(name)].append(weight)
        return parts

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rates = self._full_rates()
        groups = [
            {"params": weights, "name": name, "lr": rates[name]} for name, weights in self._parts().items()
        ]
        optimizer = torch.optim.AdamW(groups, lr=self.how.learning_rate, weight_decay=self.how.weight_decay)
        if self.how.schedule != "plateau":
            return optimizer
        self.plateau = ReduceLROnPlateau(optimizer, **_PLATEAU)
        if self.plateau_state is not None:
            self.plateau.load_state_dict(self.plateau_state)
        return optimizer

    def on_train_epoch_end(self) -> None:
        # By hand: Lightning steps after it has saved the epoch's state, and a resumed run would be a step behind.
        if self.plateau is not None:
            self.plateau.step(float(self.trainer.callback_metrics["val_loss"]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.plateau is not None:
            checkpoint["plateau"] = self.plateau.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.plateau_state = checkpoint.get("plateau")

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        # Every epoch, because validation brings training mode back.
        for name, module in self.model.network.named_modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and self._part_of(name) in self.frozen:
                module.eval()

    def rates(self, epoch: int) -> dict[str, float]:
        how = self.how
        if how.schedule == "plateau":
            return {group["name"]: group["lr"] for group in self.trainer.optimizers[0].param_groups}
        share = rate_share(epoch, how.epochs, how.schedule, warmup_epochs=how.warmup_epochs)
        return {part: rate * share for part, rate in self._full_rates().items()}

    def extent(self) -> Extent:
        train, val = (len(self.images.rows(split)) for split in ("train", "val"))
        return Extent(train, "images", self.how.batch_size, validated=val)

    def train_dataloader(self) -> DataLoader:
        draw = torch.Generator().manual_seed(mix(self.how.seed, self.trainer.current_epoch))
        rows = self.images.rows("train")
        if self.how.sampling == "balanced":
            share = 1.0 / torch.bincount(self.labels[rows]).double()
            drawn = torch.multinomial(share[self.labels[rows]], len(rows), replacement=True, generator=draw)
            rows = rows[drawn.numpy()]
        else:
            rows = self.images.shuffled(rows, draw)
        if self.is_labn and self.how.labn.bias_image == "negative-sample":
            rows = np.insert(rows, int(torch.randint(len(rows) + 1, (1,), generator=draw)), _BIAS_ROW)
        batches: Any = list(_batches(rows, self.how.batch_size))  # A list serves as a data set.
        return DataLoader(batches, batch_size=None)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        draw, part = self.draw(batch_idx), self.part(len(batch))
        rows = batch.cpu().numpy()
        rows = np.concatenate(
            [rows[rows != _BIAS_ROW], rows[rows == _BIAS_ROW]]
        )  # The bias image comes last.
        frames = self._frames(rows[part.inside])
        nothing = torch.zeros(len(frames), 1, device=frames.device)
        changes = self.how.augmentation
        frames = augment(frames.unsqueeze(1), nothing, changes, draw, part=part)[0].squeeze(1)
        with self.as_one_batch(part):
            loss = self._loss(frames, self._classes(rows).to(self.device), part)
        self.log_loss(loss, part.total)
        return loss

    def _frames(self, rows: np.ndarray) -> Frames:
        is_bias = rows == _BIAS_ROW
        bias = self.bias[None].expand(int(is_bias.sum()), -1, -1, -1) if is_bias.any() else None
        if is_bias.all():
            assert bias is not None, "no rows"
            return bias
        frames = self.images.frames(rows[~is_bias]).to(self.device)
        return frames if bias is None else torch.cat([frames, bias.to(frames)])

    def _classes(self, rows: np.ndarray) -> Int64[Tensor, " B"]:
        known = self.labels[np.where(rows == _BIAS_ROW, 0, rows)]
        return torch.where(torch.from_numpy(rows == _BIAS_ROW), self.negative, known)

    def _loss(self, frames: Frames, labels: Int64[Tensor, " B"], part: Part) -> Tensor:
        """The part's share of the batch's loss.

        Args:
            labels: of the whole batch, whose class weights the cross-entropy divides by.
        """
        weighted = part.share_of(self.class_weights[labels], self.processes) if self.processes > 1 else 1.0
        if self.is_labn:
            return labn_loss(
                self.model,
                frames,
                labels[part.inside],
                self.how.labn,
                bias=self.bias,
                class_weights=self.class_weights,
                shares=Shares(cross_entropy=weighted, divergence=part.share),
            )
        own = F.cross_entropy(self.model(frames), labels[part.inside], weight=self.class_weights)
        return weighted * own

    def val_dataloader(self) -> list[int]:
        # One item stands for the whole split.
        return [0] if len(self.images.rows("val")) else []

    def validation_step(self, _: int, __: int) -> None:
        rows = self.images.rows("val")
        parts = in_parts(
            rows,
            lambda mine: predict(self.model, self.images, mine),
            number=self.global_rank,
            processes=self.processes,
        )
        scores = torch.cat(parts)
        loss = F.cross_entropy(scores, self.labels[rows])
        accuracy = (scores.argmax(1) == self.labels[rows]).float().mean()
        self.log_dict({"val_loss": loss, "val_accuracy": accuracy}, batch_size=1)


def _batches(rows: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Rows in batches; a last one of a single image is left out, which has no statistics to normalise by."""
    for start in range(0, len(rows), batch_size):
        part = rows[start : start + batch_size]
        if len(part) > 1 and (part != _BIAS_ROW).any():
            yield part


def _class_named(how: ClassifierTraining) -> int:
    names, wanted = how.model.classes, how.labn.negative
    if wanted is None:
        return 0
    if wanted not in names:
        raise DataError(f"labn.negative is {wanted!r}; the classes are {', '.join(names)}")
    return names.index(wanted)


def _last_linear(network: nn.Module) -> str:
    """The name of the last linear layer; of a network without one nothing is a head."""
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return f"{names[-1]}." if names else "no head"


@torch.no_grad()
def _standardise(model: Classifier, images: ImageSet, rows: np.ndarray, most: int = 512) -> None:
    """Takes the channels' mean and deviation from a sample of the training images."""
    pixels = images.frames(spread(rows, most))
    model.mean.copy_(pixels.mean((0, 2, 3)).view(3, 1, 1))
    model.std.copy_(pixels.std((0, 2, 3)).clamp_min(1e-3).view(3, 1, 1))


def _measure(
    model: Classifier, images: ImageSet, labels: Int64[Tensor, " N"], trainer: L.Trainer
) -> dict[str, Any]:
    """Each tested split beside the majority of the training images."""
    model.to(trainer.strategy.root_device).eval()
    train_labels = labels[images.rows("train")]
    found = {}
    for split in ("val", "test"):
        rows = images.rows(split)
        if len(rows):
            found[split] = judged(predict(model, images, rows), labels[rows], train_labels)
    return found
