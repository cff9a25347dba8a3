"""How few pixels a map concentrates on: the Gini index and the entropy of its shares."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from driving_xai.metrics.base import Category, Columns, Metric
from driving_xai.metrics.batch import EvalBatch, RankedMaps
from driving_xai.metrics.quantities import Quantity


def gini_index(saliency: Float[Tensor, "*maps P"]) -> Float[Tensor, "*maps"]:
    """The Gini index of each map's sizes: 0 where all are equal, 1 - 1/P where one pixel has everything.

    NaN for a map that is zero everywhere.

    Source: Chalasani et al. 2020, "Concise explanations of neural networks using adversarial training".

    Example:
        >>> gini_index(torch.tensor([[0.0, 0.0, 0.0, -2.0], [1.0, 1.0, 1.0, 1.0]]))
        tensor([0.7500, 0.0000], dtype=torch.float64)
    """
    rising = saliency.double().abs().sort(-1).values
    pixels = rising.shape[-1]
    places = torch.arange(1, pixels + 1, device=rising.device, dtype=rising.dtype)
    return ((2 * places - pixels - 1) * rising).sum(-1) / (pixels * rising.sum(-1))


def share_entropy(saliency: Float[Tensor, "*maps P"]) -> Float[Tensor, "*maps"]:
    """The entropy of each map's shares |a_i| / sum |a|, in nats: 0 where one pixel has everything, ln P at most.

    NaN for a map that is zero everywhere.

    Source: Bhatt et al. 2020, "Evaluating and aggregating feature-based model explanations", eq. 3.

    Example:
        >>> share_entropy(torch.tensor([[0.0, 0.0, 0.0, -2.0], [1.0, 1.0, 1.0, 1.0]])).round(decimals=3)
        tensor([0.0000, 1.3860], dtype=torch.float64)
    """
    sizes = saliency.double().abs()
    shares = sizes / sizes.sum(-1, keepdim=True)
    return torch.special.entr(shares).sum(-1)


@dataclass(frozen=True, kw_only=True)
class _OfMap(Metric):
    """A number of the map alone: it says nothing of the model, and is to be read beside faithfulness."""

    category: ClassVar[Category] = "complexity"
    unit: ClassVar[str]

    @staticmethod
    @abstractmethod
    def _of(saliency: Float[Tensor, "*maps P"]) -> Float[Tensor, "*maps"]: ...

    def measure(self, batch: EvalBatch, ranked: RankedMaps) -> Iterator[tuple[str, Columns]]:
        """The number of each map, NaN where it is constant; see `Metric.measure`."""
        found = self._of(ranked.saliency.flatten(2))
        yield "map", {"value": found.masked_fill(ranked.degenerate.to(found.device), torch.nan)}

    def describe(self, quantity: Quantity) -> dict[str, Any]:
        """See `Metric.describe`."""
        return {"kind": "complexity", "unit": self.unit, "faithful": self.faithful(quantity)}


@dataclass(frozen=True, kw_only=True)
class Sparseness(_OfMap):
    """The Gini index of the map, from 0 to 1; high is concise. It says nothing of the model.

    Args:
        batch_size: unused; no frame is edited.
        seed: unused.

    Source: Chalasani et al. 2020.
    Deviation: a constant map has no value.

    Example:
        >>> Sparseness().label, Sparseness.higher_is_better
        ('sparseness', True)
    """

    name: ClassVar[str] = "sparseness"
    higher_is_better: ClassVar[bool] = True
    unit: ClassVar[str] = "Gini index"
    _of = staticmethod(gini_index)


@dataclass(frozen=True, kw_only=True)
class Complexity(_OfMap):
    """The entropy of the map's shares, in nats; low is concise. It says nothing of the model.

    Args:
        batch_size: unused; no frame is edited.
        seed: unused.

    Source: Bhatt et al. 2020, eq. 3.
    Deviation: a constant map has no value.

    Example:
        >>> Complexity().label, Complexity.higher_is_better
        ('complexity', False)
    """

    name: ClassVar[str] = "complexity"
    higher_is_better: ClassVar[bool] = False
    unit: ClassVar[str] = "nats"
    _of = staticmethod(share_entropy)
