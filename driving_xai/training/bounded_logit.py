"""The recipe of bounded logit attention: a baseline, then explanations that start from its head.

Runs are paired: the same seed gives every variant the same baseline, the same order of images and, where
they draw, the same dropout. The convolution stack is frozen, so that a run trains on kept features only.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from data_prep.values import Checked, Count, Gt, PositiveCount, Seed
from driving_xai import checkpoint
from driving_xai.data.images import Examples, LabelledImages, classes_of
from driving_xai.data.splits import Split
from driving_xai.errors import CheckpointError, DataError
from driving_xai.models.backbone import fetched_name
from driving_xai.models.bounded_logit import (
    AttentionKind,
    AttentiveHead,
    BoundedLogitConfig,
    BoundedLogitModel,
    Explanation,
)
from driving_xai.models.frozen_cnn import FrozenCNN, frozen_cnn
from driving_xai.training.feature_cache import Precision, as_frames, cached_features
from driving_xai.training.loop import describe as describe_training
from driving_xai.types import Frames, Scores

Labels = Int[Tensor, " N"] | Float[Tensor, "N K"]
"""The class of each example, or 0 and 1 for each of its labels."""


@dataclass(frozen=True)
class StoredExamples:
    """Images of shards, decoded when asked for."""

    images: LabelledImages

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: np.ndarray) -> Frames:
        """The frames of these rows, in their order."""
        return self.images.frames(rows)


@dataclass(frozen=True)
class FrameExamples:
    """Images in memory, read as frames in [0, 1]."""

    images: UInt8[Tensor, "N 3 H W"]

    def __len__(self) -> int:
        return len(self.images)

    def batch(self, rows: np.ndarray) -> Float[Tensor, "B 3 H W"]:
        """The frames of these rows, in their order."""
        return as_frames(self.images[torch.from_numpy(rows)])


@dataclass(frozen=True, kw_only=True)
class Schedule(Checked):
    """How long and how fast. The defaults are the paper's for its dogs and birds."""

    epochs: Count = 5
    batch_size: PositiveCount = 32
    learning_rate: Annotated[float, Gt(0)] = 1e-3
    """Of Adam."""


def fit(
    network: nn.Module,
    examples: Examples,
    labels: Labels,
    rows: np.ndarray,
    how: Schedule,
    *,
    seed: int,
    parameters: Iterable[nn.Parameter] | None = None,
) -> None:
    """Trains on these rows, in an order drawn anew each epoch; leaves the network in eval mode.

    Dropout and samples are drawn from the seed too. Torch's own generator is as before afterwards.

    Args:
        labels: of all N examples.
        parameters: what learns; None for all. The others stay, but dropout is active for them as well.
    """
    # A loop by hand: Lightning's hooks double the time of such small steps on kept features (1.4 to 2.9 ms
    # on one core). A training takes seconds to minutes; it neither resumes nor is shared among processes.
    learns = list(network.parameters() if parameters is None else parameters)
    # A third faster here: the steps are many and the weights few.
    optimizer = torch.optim.Adam(learns, lr=how.learning_rate, fused=True)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.train()
        for _ in range(how.epochs):
            shuffled = order.permutation(rows)
            for start in range(0, len(shuffled), how.batch_size):
                part = shuffled[start : start + how.batch_size]
                loss = loss_of(network(examples.batch(part)), labels[torch.from_numpy(part)])
                # Nothing reaches the explanation under the paper's own threshold.
                gradients = torch.autograd.grad(loss, learns, allow_unused=True)
                for parameter, gradient in zip(learns, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        network.eval()


class Judged(NamedTuple):
    """How a network does on a set of examples."""

    accuracy: float
    """Share of examples, of several labels the share of labels, that are right."""
    loss: float
    """Mean cross-entropy, in nats."""


@torch.no_grad()
def judge(
    network: nn.Module,
    examples: Examples,
    labels: Labels,
    rows: np.ndarray,
    *,
    explanation: Explanation = "hard",
    seed: int = 0,
    batch_size: int = 256,
) -> Judged:
    """Accuracy and loss by hard explanations, or by soft ones.

    Args:
        network: in eval mode, without dropout.
        seed: of soft explanations that are sampled.

    Raises:
        ValueError: the network is in training mode.
    """
    if network.training:
        raise ValueError(f"{type(network).__name__} is in training mode; call eval() on it first")
    generator = torch.Generator().manual_seed(seed)
    scores = torch.cat(
        [
            network(examples.batch(part), explanation=explanation, generator=generator)
            for part in np.array_split(rows, max(1, -(-len(rows) // batch_size)))
        ]
    )
    truth = labels[torch.from_numpy(rows)]
    right = scores.argmax(1) == truth if truth.dim() == 1 else (scores > 0) == (truth > 0.5)
    return Judged(accuracy=float(right.double().mean()), loss=float(loss_of(scores.double(), truth)))


def loss_of(scores: Scores, truth: Labels) -> Float[Tensor, ""]:
    """Mean cross-entropy in nats: of one class an example, or of several labels each by itself."""
    if truth.dim() == 1:
        return F.cross_entropy(scores, truth)
    return F.binary_cross_entropy_with_logits(scores, truth.to(scores.dtype))


Learns = Literal["all", "explanation"]
Variant = AttentionKind | Literal["bla-ph"]
"""bla-ph is bla-t after the fact: the baseline's head stays as it is."""


@dataclass(frozen=True, kw_only=True)
class PairedTraining:
    """One baseline and the explanations that start from it."""

    head: BoundedLogitConfig
    """Its attention is replaced by each variant's."""
    channels: int
    """Of the kept features."""
    baseline: Schedule = field(default_factory=Schedule)
    augmented: Schedule = field(default_factory=Schedule)


def train_baseline(
    how: PairedTraining, examples: Examples, labels: Labels, rows: np.ndarray, *, seed: int
) -> AttentiveHead:
    """A head that pools the mean, from Glorot's weights."""
    head = _head(how, "none", seed)
    fit(head, examples, labels, rows, how.baseline, seed=seed)
    return head


def train_variant(
    variant: Variant,
    baseline: AttentiveHead,
    how: PairedTraining,
    examples: Examples,
    labels: Labels,
    rows: np.ndarray,
    *,
    seed: int,
) -> AttentiveHead:
    """One of the paper's explanations; see `train_explanation`."""
    attention: AttentionKind = "bla-t" if variant == "bla-ph" else variant
    learns: Learns = "explanation" if variant == "bla-ph" else "all"
    return train_explanation(
        baseline, how, examples, labels, rows, attention=attention, learns=learns, seed=seed
    )


def train_explanation(
    baseline: AttentiveHead,
    how: PairedTraining,
    examples: Examples,
    labels: Labels,
    rows: np.ndarray,
    *,
    attention: AttentionKind,
    learns: Learns,
    seed: int,
) -> AttentiveHead:
    """A head with an explanation, which starts from the baseline's; the baseline is not changed."""
    head = _head(how, attention, seed)
    head.classify.load_state_dict(baseline.classify.state_dict())
    assert head.explain is not None
    kept = {id(weight) for weight in head.classify.parameters()} if learns == "explanation" else set()
    parameters = [weight for weight in head.parameters() if id(weight) not in kept]
    fit(head, examples, labels, rows, how.augmented, seed=seed, parameters=parameters)
    return head


def _head(how: PairedTraining, attention: Literal["none"] | AttentionKind, seed: int) -> AttentiveHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentiveHead(replace(how.head, attention=attention), channels=how.channels)


@dataclass(frozen=True, kw_only=True)
class BoundedLogitTraining(Checked):
    """How to train a classifier that selects what it judges by."""

    model: BoundedLogitConfig = field(default_factory=BoundedLogitConfig)
    """Its classes are taken from the images."""
    weights: str = "pretrained"
    """Of a frozen network: pretrained, which timm fetches, random, or a file."""
    head: Literal["trained", "baseline"] = "trained"
    """baseline keeps the baseline's head: an explanation after the fact, BLA-PH."""
    baseline: Schedule = field(default_factory=Schedule)
    """Before the explanation is added; small-cnn trains without."""
    augmented: Schedule = field(default_factory=Schedule)
    precision: Precision = "fp16"
    """Of a frozen network's features, which are kept on disk."""
    seed: Seed = 0
    keep_mib: Count = 2048
    """Of decoded images that may stay in memory."""

    def __post_init__(self) -> None:
        super().__post_init__()
        kept = self.head == "baseline" and self.model.backbone != "small-cnn"
        if self.model.predicts == "all-cells" and not kept:
            raise ValueError(
                "model.predicts is 'all-cells', which is the original network's prediction where its head is kept; "
                "expected head 'baseline' (bla-ph) on a frozen backbone"
            )

    @property
    def fetches(self) -> bool:
        """Whether timm fetches a frozen network's weights."""
        return self.weights == "pretrained" and self.model.backbone != "small-cnn"


def train(
    images: LabelledImages,
    out: Path,
    how: BoundedLogitTraining,
    *,
    device: Literal["cpu", "cuda"] = "cpu",
    resume: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Trains on the split `train` and writes a checkpoint of kind `bounded-logit`.

    A frozen network sees each image once: its features are kept in `out`, where the same images and
    weights find them again. small-cnn learns together with its head.

    Args:
        images: of equal size; each of one class, or with several labels where the model is multilabel.
        resume: `out` may hold an earlier run; its features are taken again, and heads trained anew.
        on_progress: called while features are computed.

    Returns:
        The metrics that are also written: accuracy and loss of each split by hard and soft explanations,
        beside always saying the commonest class, and of a frozen network's baseline.

    Raises:
        DataError: nothing to train on, or an image with none or several classes.
        CheckpointError: the weights do not fit, or `out` holds a run and `resume` is not set.
    """
    if not resume and (out / checkpoint.CONFIG).exists():
        raise CheckpointError(f"{out} already holds a training run; choose a new OUT, or --resume")
    labels = _labels(images, how.model.output_kind)
    rows = images.rows("train")
    if len(rows) < 2:
        raise DataError(f"the shards hold {len(rows)} training images, expected 2 or more; prepare more")
    how = replace(how, model=replace(how.model, classes=images.label_names))
    if how.model.attention == "concept":
        how = replace(how, model=replace(how.model, cells=_cells(how.model, images.frames(rows[:1]))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(how.seed)
        model = BoundedLogitModel(how.model)
        if isinstance(model.backbone, FrozenCNN):
            # Inside, so that weights "random" are those of the seed.
            model.backbone = frozen_cnn(how.model.backbone, how.weights)
    metrics: dict[str, Any] = {}
    if isinstance(model.backbone, FrozenCNN):
        examples: Examples = cached_features(
            out / "features",
            model.backbone,
            images.pixels,
            len(images),
            source=f"{images.manifest.sha256} at {images.short_side_px} px",
            architecture={"backbone": how.model.backbone},
            precision=how.precision,
            device=device,
            on_progress=on_progress,
        )
        baseline = _train_head(model, how, examples, labels, rows)
        metrics["baseline"] = _by_split(baseline, examples, labels, images)
        judged: nn.Module = model.head
    else:
        examples, judged = StoredExamples(images), model
        fit(model, examples, labels, rows, how.augmented, seed=how.seed)
    metrics |= _by_split(judged, examples, labels, images)
    checkpoint.save(out, model.cpu().eval(), describe(how, images), metrics)
    return metrics


@torch.no_grad()
def _cells(config: BoundedLogitConfig, frame: Frames) -> int:
    """How many cells the feature map of such a frame has."""
    stack = BoundedLogitModel(replace(config, attention="none")).eval().backbone
    return int(stack(frame).shape[2:].numel())


def describe(how: BoundedLogitTraining, images: LabelledImages) -> dict[str, Any]:
    """The config.json of a model trained so on these images, less its schema."""
    described = describe_training(
        "bounded-logit",
        how,
        inputs={"geometry": images.manifest.geometry, "short_side_px": images.short_side_px},
        data={"shards_sha256": images.manifest.sha256, "held_out": {}},
        resolved={"weights": {"timm": fetched_name(how.model.backbone)}} if how.fetches else {},
    )
    # Lightning takes no part in this recipe.
    return {**described, "versions": {"torch": torch.__version__, "python": platform.python_version()}}


def _labels(images: LabelledImages, kind: Literal["multiclass", "multilabel"]) -> Labels:
    if kind == "multilabel":
        return images.labels(images.label_names)
    return classes_of(images)


def _train_head(
    model: BoundedLogitModel,
    how: BoundedLogitTraining,
    features: Examples,
    labels: Labels,
    rows: np.ndarray,
) -> AttentiveHead:
    """Puts a trained head into the model; returns the baseline it started from."""
    paired = PairedTraining(
        head=how.model, channels=model.backbone.channels, baseline=how.baseline, augmented=how.augmented
    )
    baseline = train_baseline(paired, features, labels, rows, seed=how.seed)
    head = baseline
    if how.model.attention != "none":
        head = train_explanation(
            baseline,
            paired,
            features,
            labels,
            rows,
            attention=how.model.attention,
            learns="all" if how.head == "trained" else "explanation",
            seed=how.seed,
        )
    model.head.load_state_dict(head.state_dict())
    model.eval()
    return baseline


def _by_split(
    network: nn.Module, examples: Examples, labels: Labels, images: LabelledImages
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    learnt = labels[torch.from_numpy(images.rows("train"))]
    commonest = torch.mode(learnt, 0).values
    splits: tuple[Split, ...] = ("train", "val", "test")
    for split in splits:
        if len(rows := images.rows(split)):
            hard, soft = (
                judge(network, examples, labels, rows, explanation=kind, batch_size=64)
                for kind in ("hard", "soft")
            )
            found[split] = {
                "images": len(rows),
                **hard._asdict(),
                "accuracy_majority": float((labels[torch.from_numpy(rows)] == commonest).double().mean()),
                "accuracy_soft": soft.accuracy,
                "loss_soft": soft.loss,
            }
    return found
