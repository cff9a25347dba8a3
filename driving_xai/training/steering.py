"""The steering recipe: windows of a drive -> a checkpoint.

Training is a pure function of the shards, the configuration and the seed; see `training.loop`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import lightning as L
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from data_prep.shards.manifest import Manifest
from data_prep.values import Checked, Count, Ge, Gt, Interval, PositiveCount, Seed
from driving_xai import checkpoint
from driving_xai.data.drives import (
    DeviceFrames,
    Route,
    Run,
    Window,
    Windows,
    labelled,
    open_index,
    runs,
    vehicle_of,
)
from driving_xai.data.splits import HoldOut
from driving_xai.errors import CheckpointError, DataError
from driving_xai.models.backbone import fetched_name
from driving_xai.models.steering import SteeringConfig, SteeringModel, rgb_to_hsv
from driving_xai.models.steering_encoders import TimmEncoder
from driving_xai.training.augment import Augmentation, augment
from driving_xai.training.drive_features import (
    DriveFeatures,
    FeatureWindows,
    drive_features,
    drive_features_s,
)
from driving_xai.training.evaluation import mae_deg, trivial_maes_deg, walk
from driving_xai.training.logs import LoggerName
from driving_xai.training.loop import describe as describe_training
from driving_xai.training.loop import file_of_weights, train_to_checkpoint
from driving_xai.training.processes import gathered
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
from driving_xai.training.schedules import decayed, rate_share
from driving_xai.types import Frames
from driving_xai.unfinished import Kept

MIRRORED = Augmentation(flip=True, brightness=0.0, contrast=0.0)
"""What a frozen encoder's features are kept of."""


@dataclass(frozen=True, kw_only=True)
class SteeringTraining(Checked):
    """How to train. The defaults are the paper's where it names them."""

    model: SteeringConfig = field(default_factory=SteeringConfig)
    start: str = "random"
    """The weights of an encoder that is a network of timm: random, timm (its own of that name and tag, fetched), or a
    file."""
    tune: Literal["head", "all"] = "all"
    """Train every weight, or all but those of a network of timm: its features are then computed once."""
    feature_precision: Literal["fp16", "fp32"] = "fp16"
    """In which features are kept on disk, with `tune` head."""
    held_out: HoldOut = field(default_factory=HoldOut)
    augmentation: Augmentation = field(default_factory=Augmentation)
    epochs: Count = 30
    """Over windows."""
    frame_epochs: Count = 0
    """Before them, epochs over single frames: they train the encoder and the readout cheaply."""
    window: PositiveCount = 20
    """Frames of a window, the length of truncated back-propagation."""
    batch_size: PositiveCount = 16
    """Windows a step; single frames come `window` times as many."""
    learning_rate: Annotated[float, Gt(0)] = 1e-4
    frame_learning_rate: Annotated[float, Gt(0)] = 3e-4
    """In the epochs over single frames."""
    frozen_convolutions: Annotated[int, Interval(ge=0, le=4)] = 0
    """How many of the first convolutions keep their weights and statistics; for a warm start on a CPU."""
    weight_decay: Annotated[float, Ge(0)] = 0.0
    schedule: Literal["constant", "cosine", "decay"] = "cosine"
    """Of the learning rate, within each of the two phases; `decay` goes by steps of the whole training, see
    `schedules.decayed`."""
    loss: Literal["l1", "l2", "huber"] = "l1"
    """On the standardised target."""
    patience: PositiveCount | None = 10
    """Epochs without a lower validation error before stopping; None never stops early."""
    averaging: Annotated[float, Interval(ge=0, lt=1)] = 0.98
    """Decay of the running average of the weights, which is what is validated and kept; 0 for none."""
    gradient_clip: Annotated[float, Ge(0)] = 1.0
    precision: Precision = "auto"
    """auto is bf16 on CUDA, where the sign path keeps fp32 softmax, and fp32 on a CPU."""
    seed: Seed = 0
    workers: Count = 0
    """Processes that load windows, where the frames do not fit `keep_mib`; frames on the device need none."""
    keep_mib: Count = 2048
    """Of decoded frames that may stay in memory, in each process: on the device where all fit, else as they are read."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.epochs + self.frame_epochs == 0:
            raise ValueError("epochs and frame_epochs are both 0; expected at least one epoch")
        of_timm = self.model.timm_name is not None
        if not of_timm and (self.start != "random" or self.tune == "head"):
            raise ValueError(
                f"start is {self.start} and tune {self.tune}, which are for encoders of timm; "
                "set model.encoder to timm:NAME, or leave them out"
            )
        if of_timm and self.frozen_convolutions:
            raise ValueError(
                "frozen_convolutions is for the five convolutions; set tune to head in its place"
            )
        if self.tune == "head" and replace(self.augmentation, flip=True) != MIRRORED:
            raise ValueError(
                "augmentation of light and place needs tune all: features of a frozen encoder are computed once, of each "
                "frame and its mirror image; set augmentation.brightness and augmentation.contrast to 0"
            )


class SteeringModule(RecipeModule):
    """One training step and one validation of a steering model, for Lightning's loop."""

    kept = Kept("averaged.")

    def __init__(
        self,
        model: SteeringModel,
        how: SteeringTraining,
        route: Route,
        splits: _Splits,
        features: DriveFeatures | None = None,
    ) -> None:
        super().__init__()
        self.model, self.how, self.route, self.splits = model, how, route, splits
        self.features = features
        """Of a frozen encoder; None trains on frames."""
        self.seed = how.seed
        self.averaged = copy.deepcopy(model).requires_grad_(False)
        # A list, so that Lightning does not save these layers a second time.
        self.frozen = [layer.requires_grad_(False) for layer in _frozen_layers(model, how)]
        # What reads the LSTM's last state sees nothing of it in a single frame.
        self.leaves_parameters_out = how.frame_epochs > 0
        self.batches: list[list[int]] = []
        """The windows of each global batch of this epoch."""
        self.on_device: DeviceFrames | None = None
        """All frames that are learnt from and validated on; None where they do not fit."""

    def plan(self) -> Plan:
        how = self.how
        best = Best(monitor="val_mae_deg", patience=how.patience, first_epoch=how.frame_epochs)
        return Plan(
            epochs=how.frame_epochs + how.epochs,
            precision=how.precision,
            best=best if self.splits.val else None,
            gradient_clip=how.gradient_clip,
        )

    def current_model(self) -> SteeringModel:
        return self.averaged

    def sample_frames(self, most: int) -> Frames:
        rows = np.concatenate([run.rows for run in self.splits.val or self.splits.train])
        return torch.cat([self.route.frames(row[None]) for row in spread(rows, most)]).float() / 255

    def finished(self, trainer: L.Trainer, out: Path) -> dict[str, Any]:
        return _measure(self, trainer)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        trained = [weights for weights in self.model.parameters() if weights.requires_grad]
        group = {"params": trained, "name": "all"}
        return torch.optim.Adam([group], lr=self.how.learning_rate, weight_decay=self.how.weight_decay)

    def on_train_epoch_start(self) -> None:
        super().on_train_epoch_start()
        for layer in self.frozen:
            layer.eval()

    def rates(self, epoch: int) -> dict[str, float]:
        how = self.how
        schedule = "constant" if how.schedule == "decay" else how.schedule
        if epoch < how.frame_epochs:
            return {"all": how.frame_learning_rate * rate_share(epoch, how.frame_epochs, schedule)}
        return {"all": how.learning_rate * rate_share(epoch - how.frame_epochs, how.epochs, schedule)}

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(batch, batch_idx)
        if self.how.schedule == "decay":
            (group,) = self.trainer.optimizers[0].param_groups
            group["lr"] = self.rates(self.current_epoch)["all"] * decayed(self.trainer.global_step)

    def extent(self) -> Extent:
        how = self.how
        train, val = (sum(map(len, kept)) for kept in (self.splits.train, self.splits.val))
        return Extent(train, f"frames in windows of {how.window}", how.batch_size, how.window, val)

    def costliest_epoch(self) -> int:
        """The first over windows, which run through the LSTM; of single frames only, the first of all."""
        return self.how.frame_epochs if self.how.epochs else 0

    def on_fit_start(self) -> None:
        """Keeps the frames on the device, where they fit: a step then moves a few numbers and no pictures."""
        if self.features is not None:
            return
        used = [*self.splits.train, *self.splits.val]
        room = self.how.keep_mib * 2**20
        if self.device.type == "cuda":
            room = min(room, torch.cuda.mem_get_info(self.device)[0] // 2)
        if sum(map(len, used)) * 3 * self.model.config.height * self.model.config.width <= room:
            self.route.forget()  # Before they are read, or memory would hold them twice.
            self.on_device = DeviceFrames(self.route, used, self.device)

    def train_dataloader(self) -> DataLoader[Window] | DataLoader[Placed]:
        how, epoch = self.how, self.trainer.current_epoch
        length = 1 if epoch < how.frame_epochs else how.window
        draw = torch.Generator().manual_seed(mix(how.seed, epoch))
        offset = int(torch.randint(length, (1,), generator=draw))
        windows = Windows(self.route, self.splits.train, length=length, stride=length, offset=offset)
        if not len(windows):  # Runs hardly longer than a window: the draw may leave none.
            windows = _windows(self.route, self.splits.train, length)
        # Shuffled here and not by the loader, whose order depends on how often it is asked for one.
        order = torch.randperm(len(windows), generator=draw).tolist()
        size = how.batch_size * how.window // length
        self.batches = [order[start : start + size] for start in range(0, len(order), size)]
        mine = [batch[self.part(len(batch)).inside] for batch in self.batches]
        if self.features is not None:
            turned = torch.rand(len(windows), generator=draw) < (0.5 if how.augmentation.flip else 0.0)
            kept = FeatureWindows(self.features, self.route, windows.windows, turned.tolist())
            return DataLoader(kept, batch_sampler=mine, num_workers=how.workers)
        if self.on_device is None:
            return DataLoader(windows, batch_sampler=mine, num_workers=how.workers)
        placed: Any = _PlacedBatches(self.route, self.on_device, windows, mine)
        return DataLoader(placed, batch_size=None)

    def training_step(self, batch: Window | Placed, batch_idx: int) -> Tensor:
        if isinstance(batch, Window):
            frames = batch.frames
        else:
            assert self.on_device is not None, "its batches say where frames are on the device"
            frames = self.on_device.frames(batch.places)
        draw, part = self.draw(batch_idx), self.part(len(self.batches[batch_idx]))
        if self.features is None:
            changes = self.how.augmentation
            inputs, target = augment(frames.float() / 255, batch.target, changes, draw, part=part)
        else:
            inputs, target = frames, batch.target
        run_all = self.model if self.features is None else self.model.of_features
        with self.as_one_batch(part):
            scores, _, _ = run_all(inputs)
        scale = self.model.target_scale
        loss = part.share * _LOSSES[self.how.loss](scores.float() / scale, target / scale)
        self.log_loss(loss, part.total, frames_each=target.shape[1])
        return loss

    @torch.no_grad()
    def after_step(self) -> None:
        # A short memory at first, so that the average does not hang on to the initial weights.
        step = self.trainer.global_step
        kept = min(self.how.averaging, step / (step + 9))
        pairs = list(zip(self.averaged.state_dict().values(), self.model.state_dict().values(), strict=True))
        averages, currents = zip(*(pair for pair in pairs if pair[0].is_floating_point()), strict=True)
        torch._foreach_lerp_(averages, currents, 1 - kept)
        for average, current in pairs:
            if not average.is_floating_point():
                average.copy_(current)

    def val_dataloader(self) -> list[int]:
        # Validation walks whole runs, carrying the state; one item stands for all of it.
        return [0] if self.splits.val else []

    def validation_step(self, _: int, __: int) -> None:
        mine = self.splits.val[self.global_rank :: self.processes]
        read = self.route.frames if self.on_device is None else self.on_device.read
        walked = [
            walk(self.averaged, self.route, [each], device=self.device, features=self.features, read=read)
            for each in mine
        ]
        everywhere = pd.concat([table for tables in gathered(walked) for table in tables])
        self.log("val_mae_deg", mae_deg(everywhere), prog_bar=True, batch_size=1)


class Placed(NamedTuple):
    """A batch of windows whose frames are on the device."""

    places: Int64[Tensor, "B T"]
    target: Float[Tensor, "B T"]


class _PlacedBatches(Dataset[Placed]):
    """The batches of an epoch, by where their frames are."""

    def __init__(self, route: Route, kept: DeviceFrames, windows: Windows, batches: list[list[int]]) -> None:
        self._route, self._kept, self._windows, self._batches = route, kept, windows.windows, batches

    def __len__(self) -> int:
        return len(self._batches)

    def __getitem__(self, number: int) -> Placed:
        rows = np.stack([self._windows[each] for each in self._batches[number]])
        return Placed(self._kept.places(rows), torch.from_numpy(self._route.target[rows]).float())


def _frozen_layers(model: SteeringModel, how: SteeringTraining) -> list[nn.Module]:
    """What keeps its weights and statistics: a network of timm, or the layers before a convolution."""
    if isinstance(model.encoder, TimmEncoder):
        return [model.encoder.trunk] if how.tune == "head" else []
    places = [at for at, layer in enumerate(model.encoder) if isinstance(layer, nn.Conv2d)]
    return list(model.encoder[: places[how.frozen_convolutions]])


@dataclass(frozen=True, kw_only=True)
class _Splits:
    train: list[Run]
    val: list[Run]
    test: list[Run]


_LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "l1": F.l1_loss,
    "l2": F.mse_loss,
    "huber": F.smooth_l1_loss,
}


def train(
    shards: Path,
    out: Path,
    how: SteeringTraining,
    *,
    device: Device = "auto",
    devices: int | None = None,
    resume: bool = False,
    callbacks: tuple[L.Callback, ...] = (),
    logger: LoggerName = "tensorboard",
    encoder_from: Path | None = None,
    features: Path | None = None,
    on_features: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Trains a steering model and writes a checkpoint directory; see `loop.train_to_checkpoint` for the options.

    Args:
        shards: a directory that `prep` wrote, with steering.
        encoder_from: see `recipe`.
        features: folder for the features of a frozen encoder, which runs may share; None is
            `features/` in `out`.
        on_features: called while they are computed with the frames done and the total.

    Returns:
        MAE in degrees for each split, and of trivial predictors.

    Raises:
        DataError: the shards hold no steering or too little of it.
        CheckpointError: `resume` without a run, or with another configuration; a checkpoint to start
            from that holds another encoder or was trained on what this one is tested on; weights that do not fit.
        UnsupportedModelError: timm has no such encoder.
    """
    return train_to_checkpoint(
        recipe(
            shards,
            out,
            how,
            device=device,
            encoder_from=encoder_from,
            features=features,
            on_features=on_features,
        ),
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
    how: SteeringTraining,
    *,
    device: Device,
    encoder_from: Path | None = None,
    features: Path | None = None,
    on_features: Callable[[int, int], None] | None = None,
) -> Recipe:
    """What the loop trains, once nothing of the data can be refused any more.

    Args:
        out: the checkpoint directory.
        device: that features of a frozen encoder are computed on.
        features: see `train`.
        on_features: see `train`.
        encoder_from: a steering checkpoint whose convolutions this model starts with; it must hold out
            the same frames. None starts from random ones.
    """
    manifest = Manifest.load(shards)
    if manifest.kind != "sequences":
        raise DataError(f"{shards} holds {manifest.kind}; training a steering model needs sequences")
    index = open_index(shards, manifest)
    vehicle = vehicle_of(shards, manifest)
    _require_size(how.model, manifest, shards)
    splits = _split(index, how.held_out)
    route = Route(shards, index, vehicle, keep_bytes=how.keep_mib * 2**20)
    start = None if encoder_from is None else checkpoint.load(encoder_from, kind="steering")
    config = describe(how, manifest, encoder_sha256=None if start is None else start.sha256)
    L.seed_everything(how.seed, verbose=False)
    model = start_model(how)
    _fit_scales(model, route, splits.train)
    if start is not None:
        _start_encoder(model, start, config)
    if how.epochs:
        _windows(route, splits.train, how.window)

    on = on_device(device)

    def build() -> SteeringModule:
        kept = None
        if how.tune == "head":
            kept = drive_features(
                model,
                route,
                features or out / "features",
                source=manifest.sha256,
                mirrored=how.augmentation.flip,
                precision=how.feature_precision,
                device=on,
                on_progress=on_features,
            )
        return SteeringModule(model.train(), how, route, splits, kept)

    def before() -> tuple[SteeringModule, float]:
        seconds = drive_features_s(
            model,
            route,
            features or out / "features",
            source=manifest.sha256,
            mirrored=how.augmentation.flip,
            precision=how.feature_precision,
            device=on,
        )
        return SteeringModule(model.train(), how, route, splits), seconds

    return Recipe(config=config, model=model, build=build, before=before if how.tune == "head" else None)


def _windows(route: Route, kept: list[Run], length: int) -> Windows:
    """The windows of runs from their starts on.

    Raises:
        DataError: there are none.
    """
    windows = Windows(route, kept, length=length, stride=length)
    if not len(windows):
        raise DataError(
            f"no training run holds {length} consecutive frames; use a shorter window (--set window={max(1, length // 2)}), "
            "hold out less, or prepare more data"
        )
    return windows


def _require_size(model: SteeringConfig, manifest: Manifest, shards: Path) -> None:
    """Raises DataError where the shards' frames have another size than the model's."""
    cut = manifest.geometry or {}
    rows, columns = cut.get("height", model.height), cut.get("width", model.width)
    if (rows, columns) != (model.height, model.width):
        raise DataError(
            f"{shards} holds frames of {rows} x {columns} px and the model takes {model.height} x {model.width}; "
            f"add --set model.height={rows} --set model.width={columns}, or prepare with the model's size"
        )


def _split(index: pd.DataFrame, held_out: HoldOut) -> _Splits:
    names = np.where(labelled(index), held_out.splits(index), "unlabelled")
    splits = _Splits(**{name: runs(index, names == name) for name in ("train", "val", "test")})
    if not splits.train:
        raise DataError("the shards hold no labelled training frames; prepare a drive with steering")
    return splits


def start_model(how: SteeringTraining) -> SteeringModel:
    """The model before training, an encoder of timm with the weights that the configuration names.

    Raises:
        CheckpointError: they do not fit.
        UnsupportedModelError: timm has no such encoder.
    """
    model = SteeringModel(how.model)
    if how.start != "random":
        assert isinstance(model.encoder, TimmEncoder)
        model.encoder.load(how.start)
        model.standardise_by(*model.encoder.standardisation)
    return model


def describe(
    how: SteeringTraining, manifest: Manifest, *, encoder_sha256: str | None = None
) -> dict[str, Any]:
    """The config.json of a model trained so on these shards, less its schema.

    Args:
        encoder_sha256: of the checkpoint whose convolutions it started with.
    """
    inputs = {"geometry": manifest.geometry, "vehicle": manifest.vehicle, "signals": dict(manifest.signals)}
    resolved: dict[str, Any] = {} if encoder_sha256 is None else {"encoder_from_sha256": encoder_sha256}
    if how.start == "timm":
        resolved["start"] = {"timm": fetched_name(str(how.model.timm_name))}
    elif how.start != "random":
        resolved["start"] = file_of_weights(Path(how.start))
    return describe_training(
        "steering",
        how,
        inputs=inputs,
        data={"shards_sha256": manifest.sha256, "held_out": asdict(how.held_out)},
        resolved=resolved,
    )


def _start_encoder(model: SteeringModel, start: checkpoint.Checkpoint, config: dict[str, Any]) -> None:
    """Copies another model's convolutions and the standardisation that they expect."""
    if start.config["data"] != config["data"]:
        raise CheckpointError(
            f"{start.path} was trained on other shards or holds out other frames, so that it may have seen what "
            "this model is tested on; train it with the same ones"
        )
    names = ("encoder.", "input_mean", "input_std")
    weights = load_file(start.path / checkpoint.WEIGHTS)  # The loaded model's are folded.
    try:
        found = {name: weights[name] for name in model.state_dict() if name.startswith(names)}
        model.load_state_dict(found, strict=False)
    except (KeyError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{start.path} has another encoder ({reason}); give one with the same encoder, normalisation and colour"
        ) from error


@torch.no_grad()
def _fit_scales(model: SteeringModel, route: Route, train: list[Run], frames: int = 512) -> None:
    """Standardises inputs (a sample of the training frames) and the target (all of them).

    A network of timm keeps the standardisation that it was trained with.
    """
    rows = np.concatenate([run.rows for run in train])
    model.target_scale.fill_(float(np.std(route.target[rows])) or 1.0)
    if isinstance(model.encoder, TimmEncoder):
        return
    pixels = torch.cat([route.frames(row[None]) for row in spread(rows, frames)]).float() / 255
    colours = rgb_to_hsv(pixels) if model.config.colour == "hsv" else pixels
    mean, std = colours.mean((0, 2, 3)), colours.std((0, 2, 3)).clamp_min(1e-3)
    model.standardise_by(mean.tolist(), std.tolist())


def _measure(module: SteeringModule, trainer: L.Trainer) -> dict[str, Any]:
    """MAE in degrees of each split, tested beside what a constant steering angle would get."""
    route, splits = module.route, module.splits
    device = trainer.strategy.root_device
    model = module.averaged.to(device).eval()
    metrics: dict[str, Any] = {"epochs": trainer.current_epoch}
    for name in ("val", "test"):
        if kept := getattr(splits, name):
            walked = walk(model, route, kept, device=device)
            metrics[name] = {
                "frames": len(walked),
                "mae_deg": mae_deg(walked),
                **trivial_maes_deg(route, splits.train, kept),
            }
    return metrics
