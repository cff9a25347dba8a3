"""Models that this project did not make: a factory of the user's own, timm's and torchvision's networks.

`load` takes the text that stands in a checkpoint's place on the command line.
"""

from __future__ import annotations

import difflib
import hashlib
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep.places import local_text
from data_prep.shards.atomic import sha256_of
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models import weights as weights_files
from driving_xai.models.backbone import IMAGENET_MEAN, IMAGENET_STD, fetched_name
from driving_xai.models.capabilities import outputs_of, require_eval_mode, unwrapped
from driving_xai.models.declared import declared_outputs
from driving_xai.models.pretrained import require_reachable, timm_network
from driving_xai.models.weights import Weights, first_line
from driving_xai.models.wrap import wrap
from driving_xai.user_code import contained, importable, imported

RANDOM = "random"
"""In place of a file: the weights that the network is built with, drawn from seed 0."""
KINDS = {"regression": "steering", "multilabel": "actions", "multiclass": "classifier"}
"""The kind of checkpoint that a foreign model stands for, by what its scores mean."""

_FACTORY = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def is_foreign(text: str) -> bool:
    """Whether a text names a foreign model, and no path; a path that exists is always a path.

    Example:
        >>> [is_foreign(text) for text in ("timm:resnet18", "my.models:pilotnet", "runs/model", "runs:1/model")]
        [True, True, False, False]
    """
    library, colon, _ = text.partition(":")
    return (
        bool(colon) and not Path(text).exists() and (library in _LIBRARIES or bool(_FACTORY.fullmatch(text)))
    )


def load(
    spec: Path | str, *, weights: Path | str | None = None, device: str | torch.device = "cpu"
) -> Checkpoint:
    """The model that a text names, in eval mode, in the form of a loaded checkpoint.

    Args:
        spec: `timm:NAME[.TAG]`, `torchvision:NAME[@WEIGHTS]`, `package.module:factory` (imported with the
            working directory on the path and called without arguments; it returns a module with
            `outputs`, as `models.wrap.wrap` makes one), or a checkpoint's directory, here or in a store. Of a training
            that has not ended it takes the best weights so far, with a warning.
        weights: a file, here or in a store, see `models.weights.find`; "random"; None is what the factory loaded, or the
            published weights of timm and torchvision.
        device: where the model goes.

    Raises:
        CheckpointError: the factory or the weights are missing, fail, or do not fit.
        UnsupportedModelError: the name is unknown, or the scores' meaning is not declared.
        DataError, StoreError: nothing lies at an address, or its store cannot be reached.
    """
    spec = local_text(str(spec))
    if weights is not None:
        weights = local_text(str(weights))
    if not is_foreign(spec):
        if weights is not None:
            raise CheckpointError(
                f"{spec} is a checkpoint's directory, which has weights; leave --weights out"
            )
        loaded = checkpoint.load(Path(spec), device=device)
        if loaded.caution:
            warnings.warn(loaded.caution, stacklevel=2)
        return loaded
    library, _, name = spec.partition(":")
    # Seeded for weights that are drawn; the caller's own random numbers go on as before.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model, found = _LIBRARIES.get(library, _of_factory)(
            spec if library not in _LIBRARIES else name, weights
        )
    if declared_outputs(model) is None:
        raise UnsupportedModelError(
            f"{spec} gave a {type(model).__name__} that does not say what its scores mean; "
            "return driving_xai.wrap(net, outputs=...)"
        )
    return _described(
        spec,
        model.eval().to(device),
        weights=_description(weights, found),
        sha256=sha256_of(found.path) if found is not None else state_sha256(model),
    )


def as_checkpoint(model: object) -> Checkpoint:
    """A model that comes without a description of its training, in the form of a loaded checkpoint.

    Args:
        model: a checkpoint, which is returned as it is, or any frame model with `outputs`.

    Raises:
        UnsupportedModelError: it says nothing of its outputs, or is in training mode.
    """
    if isinstance(model, Checkpoint):
        require_eval_mode(model)
        return model
    model = unwrapped(model)
    name = f"{type(model).__module__}:{type(model).__qualname__}"
    sha256 = state_sha256(model) if isinstance(model, nn.Module) else hashlib.sha256().hexdigest()
    found = _described(name, model, weights=None, sha256=sha256)
    require_eval_mode(model)
    return found


def _described(spec: str, model: object, *, weights: str | None, sha256: str) -> Checkpoint:
    outputs = outputs_of(model)
    return Checkpoint(
        path=Path(spec),
        model=model,
        config={
            "kind": KINDS[outputs.kind],
            "model": {"foreign": spec, "weights": weights, "outputs": list(outputs.names)},
            "input": {"geometry": None, "short_side_px": None},
        },
        metrics={},
        sha256=sha256,
    )


def state_sha256(network: nn.Module) -> str:
    """The SHA-256 of a network's tensors with their names, types and shapes; the order does not count."""
    digest = hashlib.sha256()
    for name, value in sorted(network.state_dict().items()):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _description(weights: Path | str | None, found: Weights | None) -> str | None:
    if found is None:
        return None if weights is None else str(weights)
    return f"{found.path.name} {found.prefix}".strip()


def _of_factory(spec: str, weights: Path | str | None) -> tuple[nn.Module, Weights | None]:
    factory = imported(spec, error=CheckpointError)
    if not callable(factory):
        raise CheckpointError(
            f"{spec} is a {type(factory).__name__}; expected a function that returns a model"
        )
    with importable(), contained(f"calling {spec}", error=CheckpointError):
        model = factory()
    if not isinstance(model, nn.Module):
        raise UnsupportedModelError(
            f"{spec} returned {type(model).__name__}; expected a torch.nn.Module, from driving_xai.wrap"
        )
    return model, _filled(model, weights, spec)


def _filled(model: nn.Module, weights: Path | str | None, name: str) -> Weights | None:
    """Loads a file into a model or into the network inside it, whichever the file has more names of."""
    if weights is None or str(weights) == RANDOM:
        return None
    path = Path(weights)
    holders = list(_holders(model))
    found = []
    for holder in holders:
        try:
            found.append((weights_files.find(path, holder), holder))
        except CheckpointError:
            if holder is holders[-1] and not found:
                raise
    best, holder = max(found, key=lambda each: len(each[0].tensors))
    weights_files.require_fit(best, holder, name=name)
    weights_files.put(best, holder)
    return best


def _holders(model: nn.Module) -> Iterator[nn.Module]:
    """The model, and each module inside that holds all of its parameters: what a wrapper wraps."""
    yield model
    count = sum(1 for _ in model.parameters())
    for child in model.children():
        if count and sum(1 for _ in child.parameters()) == count:
            yield from _holders(child)


def _of_timm(name: str, weights: Path | str | None) -> tuple[nn.Module, Weights | None]:
    import timm
    from timm.data import ImageNetInfo

    architecture = name.partition(".")[0]
    if architecture not in timm.list_models():
        raise _unknown(f"timm:{name}", architecture, timm.list_models(), "timm.list_models() has the names")
    if weights is None:
        # Tells an unknown tag, and an architecture without weights.
        fetched_name(name)
    try:
        if weights is None:
            network = timm_network(name)
            found = None
        else:
            network = timm.create_model(architecture)
            network, found = _fitted(
                network, weights, name, lambda n: timm.create_model(architecture, num_classes=n)
            )
    except OSError as error:
        raise CheckpointError(f"timm:{name}: {first_line(error)}; give --weights FILE") from error
    settings = network.pretrained_cfg
    classes = network.num_classes
    imagenet = ImageNetInfo()
    names = None
    if classes == imagenet.num_classes():
        names = [imagenet.index_to_description(index) for index in range(classes)]
    size = tuple(settings["input_size"][1:]) if settings.get("fixed_input_size") else None
    return _wrapped(network, classes, names, (settings["mean"], settings["std"]), size), found


def _of_torchvision(name: str, weights: Path | str | None) -> tuple[nn.Module, Weights | None]:
    from torchvision import models

    name, _, chosen = name.partition("@")
    known = models.list_models(module=models)
    if name not in known:
        raise _unknown(f"torchvision:{name}", name, known, "expected a classifier of torchvision.models")
    published = models.get_model_weights(name)
    if chosen and chosen not in published.__members__:
        raise CheckpointError(
            f"torchvision:{name} has no weights {chosen}; it has {', '.join(published.__members__)}"
        )
    entry = published[chosen] if chosen else published.DEFAULT
    # Two of its networks warn where this is not said.
    quiet = {"init_weights": True} if name in ("inception_v3", "googlenet") else {}
    if weights is None:
        network, found = _fetched(name, entry), None
    else:
        network, found = _fitted(
            models.get_model(name, weights=None, **quiet),
            weights,
            name,
            lambda count: models.get_model(name, weights=None, num_classes=count, **quiet),
        )
    head = [module for module in network.modules() if isinstance(module, nn.Linear | nn.Conv2d)][-1]
    classes = head.out_features if isinstance(head, nn.Linear) else head.out_channels
    names = entry.meta["categories"] if classes == len(entry.meta["categories"]) else None
    size = (network.image_size,) * 2 if isinstance(network, models.VisionTransformer) else None
    return _wrapped(network, classes, names, (IMAGENET_MEAN, IMAGENET_STD), size), found


def _fetched(name: str, entry: Any) -> nn.Module:
    """torchvision's network with its published weights, from the cache of torch.hub or the network."""
    from torchvision import models

    cached = Path(torch.hub.get_dir()) / "checkpoints" / Path(entry.url).name
    if not cached.is_file():
        require_reachable(entry.url, f"torchvision's weights {type(entry).__name__}.{entry.name}")
    try:
        return models.get_model(name, weights=entry)
    except (OSError, RuntimeError) as error:
        raise CheckpointError(
            f"torchvision:{name}: {cached} cannot be read or fetched ({first_line(error)}); delete it, or give --weights FILE"
        ) from error


def _fitted(
    network: nn.Module, weights: Path | str, name: str, build: Callable[[int], nn.Module]
) -> tuple[nn.Module, Weights | None]:
    """A network with weights from a file, built for as many classes as the file's last layer has."""
    if str(weights) == RANDOM:
        return network, None
    found = weights_files.find(Path(weights), network)
    wanted = network.state_dict()
    others = {
        len(value)
        for key, value in found.tensors.items()
        if value.dim() and value.shape[1:] == wanted[key].shape[1:] and len(value) != len(wanted[key])
    }
    # Another number of classes changes the first side of the last layer, and nothing else.
    if len(others) == 1:
        network = build(others.pop())
    weights_files.require_fit(found, network, name=name)
    weights_files.put(found, network)
    return network, found


def _wrapped(
    network: nn.Module,
    classes: int,
    names: Sequence[str] | None,
    normalise: tuple[Sequence[float], Sequence[float]],
    size: tuple[int, int] | None,
) -> nn.Module:
    mean, std = normalise
    return wrap(
        network,
        outputs="multiclass",
        names=_unique(names or [f"class-{index}" for index in range(classes)]),
        normalise=(tuple(mean), tuple(std)),
        size=size,
    )


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that come again with their place behind them: ImageNet has two cranes.

    Example:
        >>> _unique(["crane", "dog", "crane"])
        ('crane', 'dog', 'crane 2')
    """
    return tuple(f"{name} {place}" if name in names[:place] else name for place, name in enumerate(names))


def _unknown(spec: str, name: str, known: Sequence[str], otherwise: str) -> UnsupportedModelError:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return UnsupportedModelError(f"{spec} is unknown; {f'did you mean {near[0]}?' if near else otherwise}")


_LIBRARIES: dict[str, Callable[[str, Path | str | None], tuple[nn.Module, Weights | None]]] = {
    "timm": _of_timm,
    "torchvision": _of_torchvision,
}
