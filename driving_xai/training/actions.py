"""The action recipe: labelled images -> a checkpoint, on frozen features or with all weights trained.

Training is a pure function of the shards, the configuration and the seed; see `training.loop`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data_prep.shards.atomic import replacing
from data_prep.shards.manifest import Manifest
from data_prep.values import Checked, Count, Ge, Gt, Interval, PositiveCount, Seed
from driving_xai.data.images import LabelledImages
from driving_xai.data.splits import FoldOut
from driving_xai.errors import CheckpointError, DataError
from driving_xai.models.actions import ActionConfig, ActionModel, load_head
from driving_xai.models.backbone import (
    BackboneConfig,
    architecture_of,
    fetched_name,
    load_backbone,
    saved_backbone,
)
from driving_xai.training.action_inputs import (
    FrozenFeatures,
    Inputs,
    MirroredFrames,
    OnProgress,
    frozen_features,
    frozen_features_s,
)
from driving_xai.training.augment import Augmentation, augment
from driving_xai.training.logs import LoggerName
from driving_xai.training.loop import describe as describe_training
from driving_xai.training.loop import file_of_weights, train_to_checkpoint
from driving_xai.training.multilabel import (
    CalibrationRule,
    agreement,
    calibrated_thresholds,
    trivial_agreements,
)
from driving_xai.training.processes import in_parts, part_of, rank
from driving_xai.training.recipe import (
    Best,
    Device,
    Extent,
    Plan,
    Precision,
    Recipe,
    RecipeModule,
    mix,
    on_device,
    spread,
)
from driving_xai.training.schedules import rate_share
from driving_xai.types import Frames
from driving_xai.unfinished import FROZEN, RESUME, Kept

PREDICTIONS = "predictions.parquet"
"""Inside the output directory: the probabilities of every validated and tested image."""

_CALM = Augmentation(flip=False, brightness=0.0, contrast=0.0)


@dataclass(frozen=True, kw_only=True)
class ActionTraining(Checked):
    """How to train. The defaults are those of the paper and of its released code, flips aside."""

    model: ActionConfig = field(default_factory=ActionConfig)
    start: str = "random"
    """The backbone's weights: random, timm (its own of that name and tag, fetched), or a file or folder."""
    head: str | None = None
    """A file with the head's weights to start from."""
    tune: Literal["head", "all"] = "head"
    """Train the head on frozen features, computed once, or every weight."""
    held_out: FoldOut = field(default_factory=FoldOut)
    short_side_px: PositiveCount | None = 360
    """To which images are resized; None leaves them as they are stored."""
    epochs: Count = 100
    batch_size: PositiveCount = 64
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """For batches of 256; it is multiplied by batch_size / 256."""
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    """Of sgd."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    warmup_epochs: Count = 0
    """Of a linearly growing learning rate, before the schedule."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """Down to 0, by epochs."""
    flip: Literal["swap", "literal", "none"] = "swap"
    """Mirror half of the images: with left and right exchanged, or literally as the released code, without."""
    augmentation: Augmentation = _CALM
    """Of light and place, with `tune` all; `flip` in it must stay false."""
    keep: Literal["best", "last"] = "best"
    """The epoch of the highest accuracy on validation, or the last; without validation always the last."""
    calibrate: CalibrationRule = "none"
    """Choose each action's threshold on validation, for its F1 or accuracy; none is a probability of 1/2."""
    gradient_clip: Annotated[float, Ge(0)] = 0.0
    """Largest norm of all gradients together; 0 for no limit."""
    precision: Precision = "auto"
    feature_precision: Literal["fp16", "fp32"] = "fp32"
    """In which frozen features are kept on disk."""
    seed: Seed = 0
    workers: Count = 0
    """Processes that load images."""
    keep_mib: Count = 2048
    """Of decoded images that may stay in memory, in each process."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.augmentation.flip or (self.tune == "head" and self.augmentation != _CALM):
            raise ValueError(
                "augmentation needs tune all and its own flip false; features of a frozen backbone are computed once"
            )
        if self.flip == "swap" and len({"left", "right"} & set(self.model.actions)) == 1:
            raise ValueError(
                f"flip is swap and actions are {list(self.model.actions)}; expected both left and right, or neither"
            )


class Batch(NamedTuple):
    inputs: Tensor
    targets: Float[Tensor, "B K"]


class _Batches(Dataset[Batch]):
    """One process's parts of an epoch's batches; what is mirrored depends on the seed, the epoch and the batch."""

    def __init__(
        self,
        inputs: Inputs,
        targets: Tensor,
        chunks: Sequence[np.ndarray],
        how: ActionTraining,
        epoch: int,
        *,
        number: int = 0,
        processes: int = 1,
    ) -> None:
        self.inputs, self.targets, self.chunks, self.how, self.epoch = inputs, targets, chunks, how, epoch
        self.number, self.processes = number, processes

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> Batch:
        how, part = self.how, part_of(len(self.chunks[number]), self.number, self.processes)
        rows = self.chunks[number][part.inside]
        draw = torch.Generator().manual_seed(mix(how.seed, self.epoch, number))
        turn = torch.rand(part.total, generator=draw)[part.inside] < (0.0 if how.flip == "none" else 0.5)
        inputs, targets = self.inputs.batch(rows, turn.numpy()), self.targets[torch.from_numpy(rows)]
        if how.flip == "swap":
            targets = torch.where(turn[:, None], targets[:, swapped(how.model.actions)], targets)
        if how.augmentation != _CALM:
            inputs = augment(inputs[:, None], targets[:, :1], how.augmentation, draw, part=part)[0][:, 0]
        return Batch(inputs, targets)


def swapped(actions: Sequence[str]) -> list[int]:
    """Which column each action's label comes from in a mirrored image.

    Example:
        >>> swapped(("forward", "stop", "left", "right"))
        [0, 1, 3, 2]
    """
    other = {"left": "right", "right": "left"}
    return [actions.index(other.get(action, action)) for action in actions]


class ActionModule(RecipeModule):
    """One training step and one validation of an action model, for Lightning's loop; `net` reads the inputs."""

    def __init__(
        self, model: ActionModel, inputs: Inputs, images: LabelledImages, how: ActionTraining, splits: _Splits
    ) -> None:
        super().__init__()
        # A list, so that Lightning neither moves nor saves a backbone that does not learn.
        self._whole = [model]
        self.net: nn.Module = model if how.tune == "all" else model.head
        self.kept = Kept("net.") if how.tune == "all" else Kept("net.", becomes="head.")
        self.how, self.splits, self.seed = how, splits, how.seed
        self.inputs, self.images, self.targets = inputs, images, images.labels(how.model.actions)
        self.totals: list[int] = []
        """Images of each global batch of this epoch."""

    def plan(self) -> Plan:
        validated = len(self.splits.val) > 0 and self.how.keep == "best"
        return Plan(
            epochs=self.how.epochs,
            precision=self.how.precision,
            best=Best(monitor="val_accuracy", mode="max") if validated else None,
            gradient_clip=self.how.gradient_clip,
        )

    def current_model(self) -> ActionModel:
        return self._whole[0]

    def sample_frames(self, most: int) -> Frames:
        rows = self.splits.val if len(self.splits.val) else self.splits.train
        return self.images.frames(spread(rows, most))

    def finished(self, trainer: L.Trainer, out: Path) -> dict[str, Any]:
        judged = _judge(self.eval())
        with replacing(out / PREDICTIONS) as temporary:
            judged.to_parquet(temporary, index=False)
        return _measure(judged, self)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        how, rate = self.how, self.rates(0)["all"]
        groups = [{"params": list(self.net.parameters()), "name": "all"}]
        if how.optimizer == "adamw":
            return torch.optim.AdamW(groups, lr=rate, weight_decay=how.weight_decay)
        return torch.optim.SGD(groups, lr=rate, momentum=how.momentum, weight_decay=how.weight_decay)

    def rates(self, epoch: int) -> dict[str, float]:
        how = self.how
        share = rate_share(epoch, how.epochs, how.schedule, warmup_epochs=how.warmup_epochs)
        return {"all": how.learning_rate * how.batch_size / 256 * share}

    def extent(self) -> Extent:
        what = "images' kept features" if self.how.tune == "head" else "images"
        return Extent(len(self.splits.train), what, self.how.batch_size, validated=len(self.splits.val))

    def train_dataloader(self) -> DataLoader[Batch]:
        how, epoch = self.how, self.trainer.current_epoch
        draw = torch.Generator().manual_seed(mix(how.seed, epoch))
        rows = self.images.shuffled(self.splits.train, draw)
        chunks = np.array_split(rows, max(round(len(rows) / how.batch_size), 1))
        self.totals = [len(chunk) for chunk in chunks]
        here = {"number": self.global_rank, "processes": self.processes}
        batches = _Batches(self.inputs, self.targets, chunks, how, epoch, **here)
        return DataLoader(batches, batch_size=None, num_workers=how.workers)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.draw(batch_idx)
        part = self.part(self.totals[batch_idx])
        with self.as_one_batch(part):
            logits = self.net(batch.inputs)
        loss = part.share * F.binary_cross_entropy_with_logits(logits, batch.targets)
        self.log_loss(loss, part.total)
        return loss

    def val_dataloader(self) -> list[int]:
        return [0] if len(self.splits.val) else []

    def validation_step(self, _: int, __: int) -> None:
        rows = self.splits.val
        number, processes = self.global_rank, self.processes
        logits = torch.cat(in_parts(rows, self.logits, number=number, processes=processes))
        targets = self.targets[torch.from_numpy(rows)]
        self.log("val_loss", F.binary_cross_entropy_with_logits(logits, targets), batch_size=1)
        found = agreement((logits > 0).numpy(), targets.bool().numpy(), self.how.model.actions)
        self.log("val_accuracy", found["accuracy"], batch_size=1)
        self.log("val_mf1", found["mf1"], batch_size=1)

    @torch.no_grad()
    def logits(self, rows: np.ndarray) -> Float[Tensor, "N K"]:
        """Of these images, unmirrored, in float32 on the CPU."""
        size = 512 if isinstance(self.inputs, FrozenFeatures) else 32
        found = [torch.empty(0, len(self.how.model.actions))]
        for start in range(0, len(rows), size):
            part = rows[start : start + size]
            inputs = self.inputs.batch(part, np.zeros(len(part), bool)).to(self.device)
            found.append(self.net(inputs).float().cpu())
        return torch.cat(found)


class _Splits(NamedTuple):
    train: np.ndarray
    val: np.ndarray
    test: np.ndarray


def train(
    shards: Path,
    out: Path,
    how: ActionTraining,
    *,
    device: Device = "auto",
    devices: int | None = None,
    resume: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    logger: LoggerName = "tensorboard",
    features: Path | None = None,
    on_features: OnProgress | None = None,
) -> dict[str, Any]:
    """Trains an action model and writes a checkpoint directory; see `loop.train_to_checkpoint` for the options.

    Args:
        shards: a folder that `prep` wrote from labelled images.
        features: folder for the features of a frozen backbone, which runs may share; None is
            `features/` in `out`.
        on_features: called while they are computed with the images done and the total.

    Returns:
        Accuracy and F1 of each split, and of predictors that do not look.

    Raises:
        DataError: the shards hold no such labels, or nothing to train on.
        CheckpointError: `resume` without a run or with another configuration, or weights that do not
            fit.
        UnsupportedModelError: the architecture cannot be built, or the images are smaller than a patch.
    """
    return train_to_checkpoint(
        recipe(shards, out, how, device=device, features=features, on_features=on_features),
        out,
        device=device,
        devices=devices,
        resume=resume,
        callbacks=callbacks,
        logger=logger,
    )


def recipe(
    shards: Path,
    out: Path,
    how: ActionTraining,
    *,
    device: Device,
    features: Path | None = None,
    on_features: OnProgress | None = None,
) -> Recipe:
    """What the loop trains, once nothing of the images and settings can be refused any more; see `train`."""
    how = with_saved_architecture(how)
    images = LabelledImages(shards, short_side_px=how.short_side_px, keep_mib=how.keep_mib)
    images.labels(how.model.actions)
    splits = _split(images, how.held_out)
    config = describe(how, images.manifest)
    L.seed_everything(how.seed, verbose=False)
    model = start_model(how)
    # Images that the model cannot take are found here, before OUT belongs to this configuration.
    model.eval().features(images.frames(splits.train[:1]))

    def build() -> ActionModule:
        if how.tune == "all":
            return ActionModule(model, MirroredFrames(images=images), images, how, splits).train()
        frozen = _features(model, images, how, features or out / "features", device, on_features)
        if rank() == 0:
            _keep_whole(model, out)
        return ActionModule(model, frozen, images, how, splits).train()

    def before() -> tuple[ActionModule, float]:
        seconds = frozen_features_s(
            model,
            images,
            features or out / "features",
            mirrored=how.flip != "none",
            precision=how.feature_precision,
            device=on_device(device),
        )
        return ActionModule(model, MirroredFrames(images=images), images, how, splits), seconds

    return Recipe(config=config, model=model, build=build, before=None if how.tune == "all" else before)


def _keep_whole(model: ActionModel, out: Path) -> None:
    """What a reader of the unfinished run needs beside the head, which alone is in the run's states."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    with replacing(out / RESUME / FROZEN) as temporary:
        temporary.write_bytes(to_safetensors(weights))


def start_model(how: ActionTraining) -> ActionModel:
    """The model before training, with the weights that the configuration names.

    Raises:
        CheckpointError: they do not fit.
        UnsupportedModelError: the architecture cannot be built.
    """
    model = ActionModel(how.model, pretrained=how.start == "timm")
    if how.start not in ("random", "timm"):
        load_backbone(model.backbone, Path(how.start))
    if how.head is not None:
        load_head(model, Path(how.head))
    return model


def with_saved_architecture(how: ActionTraining) -> ActionTraining:
    """The same, with the architecture of the folder to start from where none is named.

    Raises:
        CheckpointError: the folder holds another one than is named.
    """
    saved = None if how.start in ("random", "timm") else saved_backbone(Path(how.start))
    if saved is None or saved == (named := architecture_of(how.model)):
        return how
    if named != BackboneConfig():
        raise CheckpointError(
            f"{how.start} holds {saved.backbone} with other settings than model.backbone {named.backbone}; "
            "leave model's settings out, they are the folder's"
        )
    return replace(how, model=replace(how.model, **asdict(saved)))


def describe(how: ActionTraining, manifest: Manifest) -> dict[str, Any]:
    """The config.json of a model trained so on these shards, less its schema."""
    weights = {name: getattr(how, name) for name in ("start", "head")}
    resolved: dict[str, Any] = {
        name: file_of_weights(Path(value))
        for name, value in weights.items()
        if value not in (None, "random", "timm")
    }
    if how.start == "timm":
        resolved["start"] = {"timm": fetched_name(how.model.backbone)}
    return describe_training(
        "actions",
        how,
        inputs={"geometry": manifest.geometry, "short_side_px": how.short_side_px},
        data={"shards_sha256": manifest.sha256, "held_out": asdict(how.held_out)},
        resolved=resolved,
    )


def _split(images: LabelledImages, held_out: FoldOut) -> _Splits:
    names = held_out.splits(images.index)
    splits = _Splits(*(np.flatnonzero(names == name) for name in _Splits._fields))
    if not len(splits.train):
        raise DataError(f"{images.root} holds no training images; prepare some, or set held_out.fold")
    return splits


def _features(
    model: ActionModel,
    images: LabelledImages,
    how: ActionTraining,
    folder: Path,
    device: Device,
    on_features: OnProgress | None,
) -> FrozenFeatures:
    found = frozen_features(
        model,
        images,
        folder,
        mirrored=how.flip != "none",
        precision=how.feature_precision,
        device=on_device(device),
        on_progress=on_features,
    )
    model.to("cpu")
    return found


def _judge(module: ActionModule) -> pd.DataFrame:
    """A row for each validated and tested image: its row in the index, split, and actions' probabilities."""
    tables = []
    for name in ("val", "test"):
        rows = getattr(module.splits, name)
        probability = torch.sigmoid(module.logits(rows).double()).numpy()
        by_action = dict(zip(module.how.model.actions, probability.T, strict=True))
        tables.append(pd.DataFrame({"index_row": rows, "split": name, **by_action}))
    return pd.concat(tables, ignore_index=True)


def _measure(judged: pd.DataFrame, module: ActionModule) -> dict[str, Any]:
    """Accuracy and F1 of each split, the thresholds they were found with, and predictors that do not look."""
    how, names = module.how, list(module.how.model.actions)
    truth = module.targets.bool().numpy()
    parts = {name: judged[judged["split"] == name] for name in judged["split"].unique()}
    rule: CalibrationRule = how.calibrate if "val" in parts else "none"
    held = parts.get("val", judged)
    thresholds = calibrated_thresholds(held[names].to_numpy(), truth[held["index_row"]], rule)
    metrics: dict[str, Any] = {
        "epochs": how.epochs,
        "thresholds": dict(zip(names, thresholds.tolist(), strict=True)),
    }
    for name, part in parts.items():
        wanted = truth[part["index_row"]]
        metrics[name] = {
            "images": len(part),
            **agreement(part[names].to_numpy() > thresholds, wanted, names),
            **trivial_agreements(truth[module.splits.train], wanted, names),
        }
    return metrics
