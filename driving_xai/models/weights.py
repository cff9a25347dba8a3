"""Weights from files: read without running code, found under whatever wraps them, loaded strictly.

One loader for backbones, classifiers, heads and networks of the user's own. The kind of a file is told by
its content. Wrappers need no list of names: the tensors of a network are looked for under every prefix of
the file, so `state_dict`, `module.`, `model.`, `_orig_mod.`, `teacher.backbone.` and any other are found
alike.
"""

from __future__ import annotations

import argparse
import collections
import difflib
import logging
import pathlib
import pickle
import re
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from driving_xai.errors import CheckpointError

_log = logging.getLogger(__name__)

FILES = ("model.safetensors", "pytorch_model.bin")
"""What a directory's weights are called: ours and Hugging Face's, then Hugging Face's older ones."""

_TRANSPARENT = ("_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_forward_module.")
"""What torch's compile, FSDP, activation checkpointing and Fabric put inside names; no network's own."""
_CHUNKED = re.compile(r"(^|\.)blocks\.\d+\.(\d+\.)")
"""DINOv2 trained with FSDP puts its blocks into chunks; the second number counts through all of them."""
_COUNTER = "num_batches_tracked"
"""Of batch normalisation; files older than PyTorch 0.4.1 have none, and torch's strict load asks for none."""
_AVERAGED = re.compile(r"(^|[._])(ema|averaged)([._]|$)|_averaged")
_PART = "#"
_DEEPEST = 8
"""Dictionaries around a network's names; training scripts nest two or three."""
_SCALAR, _RECONSTRUCT = np._core.multiarray.scalar, np._core.multiarray._reconstruct  # type: ignore[attr-defined]
_HARMLESS: list[Any] = [
    *(bool, int, float, str, list, tuple, dict),
    argparse.Namespace,
    collections.defaultdict,
    pathlib.PurePosixPath,
    pathlib.PureWindowsPath,
    (pathlib.PurePosixPath, "pathlib.PosixPath"),
    (pathlib.PureWindowsPath, "pathlib.WindowsPath"),
    (pathlib.PurePosixPath, "pathlib._local.PosixPath"),
    (pathlib.PureWindowsPath, "pathlib._local.WindowsPath"),
    np.dtype,
    np.ndarray,
    *(getattr(np.dtypes, name) for name in np.dtypes.__all__),
    *((_SCALAR, f"numpy.{core}.multiarray.scalar") for core in ("_core", "core")),
    *((_RECONSTRUCT, f"numpy.{core}.multiarray._reconstruct") for core in ("_core", "core")),
]
"""What training scripts keep next to tensors: settings, paths and NumPy's numbers. Making one runs no code of
the file's."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of one network, by its own names, and where in the file they were."""

    path: Path
    tensors: dict[str, Tensor]
    prefix: str
    """What stood before the names: `teacher.backbone.`; wrappers of dictionaries are part of it."""
    others: tuple[str, ...]
    """Prefixes of other weights of the same network in the file, which were not taken."""
    unknown: dict[str, Tensor]
    """What stands under the same prefix and is not of the network."""

    @property
    def described(self) -> str:
        """One line that says which weights of the file these are."""
        taken = f"{self.path}: took {_shown(self.prefix)}" if self.prefix else f"{self.path}: bare names"
        if not self.others:
            return taken
        other = self.others[0].rstrip(".")
        return f"{taken}, not {', '.join(map(_shown, self.others))}; {self.path}{_PART}{other} takes that instead"


def file_of(path: Path) -> tuple[Path, str | None]:
    """The file that holds weights, and the part of it that was asked for: `FILE#student`, or a directory.

    Raises:
        CheckpointError: there is no such file.

    Example:
        >>> file_of(Path("no/such/file.pth#student"))
        Traceback (most recent call last):
        driving_xai.errors.CheckpointError: no/such/file.pth: no such file; check the path of the weights
    """
    part = None
    if not path.exists() and _PART in path.name:
        name, _, part = path.name.partition(_PART)
        path = path.with_name(name) if name else path
    if path.is_dir():
        found = [path / name for name in FILES if (path / name).is_file()]
        if not found:
            raise CheckpointError(f"{path} is a directory without {' or '.join(FILES)}; give a file")
        return found[0], part
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; check the path of the weights")
    return path, part


def read(path: Path) -> dict[str, Tensor]:
    """Every tensor of a .safetensors or PyTorch file by its dotted name, read without running code.

    Names of nested dictionaries are joined by dots; what is no tensor is left out.

    Raises:
        CheckpointError: missing, damaged, no file of weights, or one that would have to run code.
    """
    content = _content(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path} holds a {type(content).__name__}; expected a state dict")
    return {_own_name(name): value for name, value in _flat(content)}


def find(path: Path, network: nn.Module) -> Weights:
    """The weights of a network in a file, whatever they are wrapped in.

    Taken is the prefix under which most of the network's names are. Where several have as many, a
    teacher comes before averaged weights (EMA; as in timm's own loader), these before all others, and a
    student last; `FILE#PART` takes the one whose prefix has that part, as in `FILE#student`.

    Args:
        path: a file, `FILE#PART`, or a directory with one of `FILES`.
        network: whose names are looked for; shapes are not compared, see `require_fit`.

    Raises:
        CheckpointError: it cannot be read, or has nothing under any of these names.
    """
    path, part = file_of(path)
    tensors = read(path)
    wanted = network.state_dict().keys()
    # EfficientNet's own names look like chunks.
    if not any(_CHUNKED.search(name) for name in wanted):
        tensors = {_CHUNKED.sub(r"\1blocks.\2", name): value for name, value in tensors.items()}
    counts = _prefixes(tensors, wanted)
    if part is not None:
        counts = {each: count for each, count in counts.items() if f".{part}." in f".{each}"}
    if not counts:
        raise CheckpointError(_nothing(path, part, tensors, wanted))
    most = max(counts.values())
    prefix, *others = sorted((each for each, count in counts.items() if count == most), key=_preference)
    inside = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    # Under the empty prefix lie the other weights too.
    nested = tuple(other for other in others if other)
    return Weights(
        path=path,
        tensors={name: value for name, value in inside.items() if name in wanted},
        prefix=prefix,
        others=tuple(others),
        unknown={
            name: value
            for name, value in inside.items()
            if name not in wanted and not name.startswith(nested or ("\0",))
        },
    )


def load(network: nn.Module, path: Path, *, name: str, ignored: Collection[str] = ()) -> Weights:
    """Loads a file into a network, strictly, and logs which of the file's weights these are.

    Args:
        network: changed in place, or not at all.
        path: see `find`.
        name: of the network, for messages.
        ignored: starts of names that the file may have and the network not, such as a head's.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape; see `find` too.

    Example:
        >>> import tempfile
        >>> net, other = nn.Linear(2, 3), nn.Linear(2, 3)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = Path(folder) / "w.pth"
        ...     torch.save({"state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, path)
        ...     load(other, path, name="linear").prefix
        'state_dict.module.'
    """
    weights = find(path, network)
    require_fit(weights, network, name=name, ignored=ignored)
    put(weights, network)
    return weights


def put(weights: Weights, network: nn.Module) -> None:
    """Copies weights that fit into a network; counters of batch normalisation may be missing."""
    network.load_state_dict({**_counters(network), **weights.tensors})
    _log.info(weights.described)


def require_fit(
    weights: Weights,
    network: nn.Module,
    *,
    name: str,
    ignored: Collection[str] = (),
    cure: str = "name the network that the file was made with",
) -> None:
    """Compares weights with a network, name by name and shape by shape.

    Args:
        name: of the network, for the message.
        ignored: starts of names that the file may have and the network not.
        cure: what to do about it, for the message.

    Raises:
        CheckpointError: they differ; the message has an example of what was found and what was expected.
    """
    wanted = network.state_dict()
    missing = sorted(each for each in wanted if each not in weights.tensors and not each.endswith(_COUNTER))
    extra = sorted(each for each in weights.unknown if not each.startswith(tuple(ignored)))
    shapes = [
        f"{each} {tuple(weights.tensors[each].shape)}, expected {tuple(wanted[each].shape)}"
        for each in sorted(wanted)
        if each in weights.tensors and weights.tensors[each].shape != wanted[each].shape
    ]
    at = f"{weights.path} ({_shown(weights.prefix)})" if weights.prefix else str(weights.path)
    for what, names, near in (
        ("lacks", missing, ", the nearest it has is {}".format),
        ("has unknown", extra, ", the nearest expected is {}".format),
        ("has", shapes, str),
    ):
        if names:
            others = {"lacks": extra, "has unknown": missing}.get(what, [])
            close = difflib.get_close_matches(names[0], others[:1000], n=1)
            beyond = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise CheckpointError(
                f"{at} {what} {names[0]}{beyond}{near(close[0]) if close else ''}: "
                f"it is of another architecture than {name}; {cure}"
            )


def _counters(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if name.endswith(_COUNTER)}


def _shown(prefix: str) -> str:
    return prefix.rstrip(".") or "bare names"


def _preference(prefix: str) -> tuple[int, int, str]:
    rank = 2
    if "teacher" in prefix:
        rank = 0
    elif _AVERAGED.search(prefix):
        rank = 1
    elif "student" in prefix:
        rank = 3
    return rank, len(prefix), prefix


def _prefixes(names: Collection[str], wanted: Collection[str]) -> dict[str, int]:
    """How many of the wanted names lie under each prefix."""
    counts: dict[str, int] = collections.Counter()
    for name in names:
        parts = name.split(".")
        for place in range(len(parts)):
            if ".".join(parts[place:]) in wanted:
                counts[".".join(parts[:place]) + ("." if place else "")] += 1
    return counts


def _nothing(path: Path, part: str | None, tensors: Collection[str], wanted: Collection[str]) -> str:
    if not tensors:
        return f"{path} holds no weights; expected a state dict with tensors"
    asked = f" under {part!r}" if part else ""
    found = ", ".join(sorted(tensors)[:3])
    expected = ", ".join(sorted(wanted)[:3])
    return (
        f"{path} holds no weights of this network{asked}: it has {found}, expected {expected}; "
        "name the network that the file was made with"
    )


def _own_name(name: str) -> str:
    for inserted in _TRANSPARENT:
        name = name.replace(inserted, "")
    return name


def _flat(content: Mapping[Any, Any], before: tuple[str, ...] = ()) -> Iterator[tuple[str, Tensor]]:
    """Tensors of nested dictionaries; an optimizer's state is keyed by numbers and left out."""
    for name, value in content.items():
        if not isinstance(name, str):
            continue
        if isinstance(value, Tensor):
            yield ".".join((*before, name)), value
        # A file may hold a dictionary that contains itself.
        elif isinstance(value, Mapping) and len(before) < _DEEPEST:
            yield from _flat(value, (*before, name))


def _content(path: Path) -> Any:
    """The file's content, of whatever kind its first bytes say."""
    try:
        with path.open("rb") as file:
            start = file.read(64)
        if not start:
            raise CheckpointError(f"{path} is empty (0 bytes); copy or download it again")
        if start[8:9] == b"{":
            return load_file(path)
        return _unpickled(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path} cannot be read ({first_line(error)}); {_cure(_start_of(path))}"
        ) from error


def _unpickled(path: Path) -> Any:
    try:
        # An open file, because torch.load takes a path's suffix for the kind of its content.
        with (
            path.open("rb") as file,
            warnings.catch_warnings(),
            torch.serialization.safe_globals(_HARMLESS),
        ):
            # Another pickle protocol than torch's own, and types of old files, are warned of; what they hold
            # decides here.
            warnings.simplefilter("ignore")
            return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"(?:GLOBAL|instantiate class|import|type) (\w+(?:\.\w+)*)", str(error))
        if found is None:
            raise CheckpointError(
                f"{path} cannot be read as tensors and plain values, and its code is not run; {_cure(_start_of(path))}"
            ) from error
        raise CheckpointError(
            f"{path} holds more than tensors and plain values ({found[1]}), and its code is not run; "
            "save its state dict alone, or as .safetensors"
        ) from error
    # Bytes of any content reach the readers of zip, tar and pickle, which raise whatever they stumble over.
    except Exception as error:
        if "TorchScript" in str(error):
            raise CheckpointError(
                f"{path} is a TorchScript program, and code of files is not run; save its state dict alone"
            ) from error
        raise CheckpointError(
            f"{path} cannot be read ({first_line(error)}); {_cure(_start_of(path))}"
        ) from error


_AGAIN = "copy or download it again"


def _start_of(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def _cure(start: bytes) -> str:
    if start.startswith(b"version https://git-lfs"):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    if start.lstrip().startswith((b"<", b"{")):
        return "it is a page or a text, not weights; download the file itself"
    return _AGAIN


def first_line(error: BaseException) -> str:
    """An error's text for a message of one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
