"""The recipe of bounded logit attention: a baseline, then explanations that start from its head.

Runs are paired: the same seed gives every variant the same baseline, the same order of images and, where
they draw, the same dropout. The convolution stack is frozen, so that a run trains on kept features only.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from driving_xai.models.bounded_logit import AttentiveHead, BoundedLogitConfig, Explanation
from driving_xai.training.feature_cache import as_frames


class Examples(Protocol):
    """What a network reads, by rows: frames, or features kept on disk."""

    def __len__(self) -> int: ...

    def batch(self, rows: np.ndarray) -> Tensor: ...


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
class Schedule:
    """How long and how fast. The defaults are the paper's for its dogs and birds."""

    epochs: int = 5
    batch_size: int = 32
    learning_rate: float = 1e-3
    """Of Adam."""

    def __post_init__(self) -> None:
        if self.epochs < 0 or self.batch_size < 1 or not self.learning_rate > 0:
            raise ValueError(
                f"epochs is {self.epochs}, batch_size {self.batch_size}, learning_rate {self.learning_rate}; "
                "expected 0 or more, 1 or more, and over 0"
            )


def fit(
    network: nn.Module,
    examples: Examples,
    labels: Int[Tensor, " N"],
    rows: np.ndarray,
    how: Schedule,
    *,
    seed: int,
    parameters: Iterable[nn.Parameter] | None = None,
) -> None:
    """Trains on these rows, in an order drawn anew each epoch; leaves the network in eval mode.

    Dropout and samples are drawn from the seed too. Torch's own generator is as before afterwards.

    Args:
        labels: class of each example, of all N.
        parameters: what learns; None for all. The others stay, but dropout is active for them as well.
    """
    learns = list(network.parameters() if parameters is None else parameters)
    optimizer = torch.optim.Adam(learns, lr=how.learning_rate)
    order = np.random.default_rng(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network.train()
        for _ in range(how.epochs):
            shuffled = order.permutation(rows)
            for start in range(0, len(shuffled), how.batch_size):
                part = shuffled[start : start + how.batch_size]
                loss = F.cross_entropy(network(examples.batch(part)), labels[torch.from_numpy(part)])
                # Nothing reaches the explanation under the paper's own threshold.
                gradients = torch.autograd.grad(loss, learns, allow_unused=True)
                for parameter, gradient in zip(learns, gradients, strict=True):
                    parameter.grad = gradient
                optimizer.step()
        network.eval()


class Judged(NamedTuple):
    """How a network does on a set of examples."""

    accuracy: float
    loss: float
    """Mean cross-entropy, in nats."""


@torch.no_grad()
def judge(
    network: nn.Module,
    examples: Examples,
    labels: Int[Tensor, " N"],
    rows: np.ndarray,
    *,
    explanation: Explanation = "hard",
    seed: int = 0,
    batch_size: int = 256,
) -> Judged:
    """Accuracy and loss by hard explanations, or by soft ones.

    Args:
        seed: of soft explanations that are sampled.
    """
    generator = torch.Generator().manual_seed(seed)
    scores = torch.cat(
        [
            network(examples.batch(part), explanation=explanation, generator=generator)
            for part in np.array_split(rows, max(1, -(-len(rows) // batch_size)))
        ]
    )
    truth = labels[torch.from_numpy(rows)]
    accuracy = (scores.argmax(1) == truth).double().mean()
    return Judged(accuracy=float(accuracy), loss=float(F.cross_entropy(scores.double(), truth)))


Variant = Literal["l2x-f", "bla", "bla-t", "bla-ph"]
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
    how: PairedTraining, examples: Examples, labels: Int[Tensor, " N"], rows: np.ndarray, *, seed: int
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
    labels: Int[Tensor, " N"],
    rows: np.ndarray,
    *,
    seed: int,
) -> AttentiveHead:
    """A head with an explanation, which starts from the baseline's; the baseline is not changed."""
    head = _head(how, "bla-t" if variant == "bla-ph" else variant, seed)
    head.classify.load_state_dict(baseline.classify.state_dict())
    assert head.explain is not None
    learns = head.explain.parameters() if variant == "bla-ph" else None
    fit(head, examples, labels, rows, how.augmented, seed=seed, parameters=learns)
    return head


def _head(
    how: PairedTraining, attention: Literal["none", "l2x-f", "bla", "bla-t"], seed: int
) -> AttentiveHead:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AttentiveHead(replace(how.head, attention=attention), channels=how.channels)
