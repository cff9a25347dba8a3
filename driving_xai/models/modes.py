"""The mode that a network is in, training or eval: looked at, and set for a while."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import fx, nn

_OF_TORCH = re.compile(
    r"torch\.nn\.modules\.(activation|container|conv|flatten|linear|normalization|padding|pixelshuffle|pooling|upsampling)"
)
_DRAWING = (nn.RReLU, nn.MultiheadAttention)


def is_exported(module: nn.Module) -> bool:
    """Whether `torch.export` wrote it: it is a graph that computes as in the mode in which it was exported.

    Its `training` says nothing, and `eval()` raises.
    """
    return isinstance(module, fx.GraphModule) and {"train", "eval"} <= vars(module).keys()


def part_in_training(network: nn.Module) -> tuple[str, nn.Module] | None:
    """The first part of a network, by name, that computes as in training; None where all evaluate.

    Which layers do otherwise in training is not to be seen, for a module may call
    `F.dropout(training=self.training)`: every part in training mode counts but torch's own that take no notice.

    Example:
        >>> part_in_training(nn.Sequential(nn.ReLU(), nn.Dropout()).train())[0]
        '1'
        >>> part_in_training(nn.Sequential(nn.ReLU(), nn.Dropout()).eval()) is None
        True
    """
    settled: set[nn.Module] = set()
    for name, module in network.named_modules():
        if is_exported(module):
            settled.update(module.modules())
            if _exported_in_training(module):
                return name, module
        elif module.training and module not in settled and not _is_alike_in_both_modes(module):
            return name, module
    return None


def _is_alike_in_both_modes(module: nn.Module) -> bool:
    """Whether it is one of torch's own layers that take no notice of their mode."""
    return bool(_OF_TORCH.fullmatch(type(module).__module__)) and not isinstance(module, _DRAWING)


def _exported_in_training(graph: nn.Module) -> bool:
    """Whether an operation of an exported graph has `train` or `training` set, as dropout and batch
    normalisation have."""
    assert isinstance(graph, fx.GraphModule)
    for node in graph.graph.nodes:
        if isinstance(node.target, torch._ops.OpOverload):
            named = (each.name for each in node.target._schema.arguments)
            given = dict(zip(named, node.args, strict=False)) | node.kwargs
            if given.get("train") is True or given.get("training") is True:
                return True
    return False


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """The network in eval mode; afterwards each part is in the mode it was in.

    Flags alone are set: a network may do more in an `eval()` of its own, merge its weights say.
    """
    training = [module for module in network.modules() if module.training]
    try:
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
