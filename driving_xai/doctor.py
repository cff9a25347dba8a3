"""What this machine offers the application: versions, devices, codecs, space. Nothing is changed."""

from __future__ import annotations

import io
import os
import platform
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from driving_xai.errors import VideoError

MIN_PYTHON = (3, 11)
_DECODERS = ("h264", "hevc", "mpeg4", "mjpeg", "vp9", "av1")
_EXTRAS: Mapping[str, tuple[str, str]] = {
    "cluster": ("distributed", "preparation on several machines"),
}
_LIBRARIES = ("lightning", "h5py", "pyarrow", "pandas", "numpy", "scipy", "rosbags", "safetensors")
_GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing looked at."""

    name: str
    ok: bool
    detail: str
    """One line for a person; where something is missing, what to do about it."""
    essential: bool = True
    """Whether the application cannot do its main work without it."""
    facts: Mapping[str, Any] = field(default_factory=dict)
    """The same for a program: JSON values only."""


def examine(folder: Path = Path()) -> list[Finding]:
    """Looks at everything, in the order it is shown.

    Args:
        folder: whose disk's free space is told.
    """
    looks: tuple[Callable[[], Finding], ...] = (
        _python,
        _torch,
        _cuda,
        _opencv,
        _window,
        _h264,
        _decoders,
        _libraries,
        lambda: _disk(folder),
        _memory,
    )
    return [*(look() for look in looks), *(_extra(name) for name in _EXTRAS)]


def healthy(findings: list[Finding]) -> bool:
    """Whether nothing essential is missing."""
    return all(finding.ok or not finding.essential for finding in findings)


def _python() -> Finding:
    found = platform.python_version()
    ok = sys.version_info >= MIN_PYTHON
    detail = found if ok else f"{found}; 3.11 or newer is needed"
    return Finding(name="python", ok=ok, detail=detail, facts={"version": found})


def _torch() -> Finding:
    try:
        import torch
    except ImportError as error:
        return _broken("torch", error)
    threads, cores = torch.get_num_threads(), len(os.sched_getaffinity(0))
    return Finding(
        name="torch",
        ok=True,
        detail=f"{torch.__version__}, {threads} threads on {cores} cores",
        facts={"version": str(torch.__version__), "threads": threads, "cores": cores},
    )


def _cuda() -> Finding:
    try:
        import torch
    except ImportError as error:
        return _broken("cuda", error, essential=False)
    if not torch.cuda.is_available():
        return Finding(name="cuda", ok=False, essential=False, detail="no device; work runs on the CPU")
    devices = [
        {"name": p.name, "memory_gib": round(p.total_memory / _GIB, 1)}
        for p in map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    ]
    detail = ", ".join(f"{device['name']} ({device['memory_gib']} GiB)" for device in devices)
    return Finding(name="cuda", ok=True, essential=False, detail=detail, facts={"devices": devices})


def _opencv() -> Finding:
    try:
        import cv2
    except ImportError as error:
        return _broken("opencv", error)
    found, threads = cv2.__version__, cv2.getNumThreads()
    return Finding(
        name="opencv",
        ok=True,
        detail=f"{found}, {threads} threads",
        facts={"version": found, "threads": threads},
    )


def has_window() -> bool:
    """Whether this OpenCV was built with a user interface and there is a display to use it on."""
    import cv2

    lines = cv2.getBuildInformation().splitlines()
    gui = next((line.split(":", 1)[1].strip() for line in lines if line.strip().startswith("GUI:")), "NONE")
    on_screen = bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
    return gui not in ("", "NONE") and (on_screen or sys.platform != "linux")


def _window() -> Finding:
    try:
        ok = has_window()
    except ImportError as error:
        return _broken("window", error, essential=False)
    absent = "none, so `replay --show` cannot; it needs a display and opencv-python, see docs/development.md"
    return Finding(name="window", ok=ok, essential=False, detail="`replay --show` can" if ok else absent)


def encode_two_frames() -> None:
    """Encodes two small frames with libx264 in memory and decodes them again.

    Raises:
        VideoError: the encoder is missing, or what it wrote does not decode.
    """
    import av

    memory = io.BytesIO()
    try:
        with av.open(memory, "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=20)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for level in (40, 200):
                image = np.full((48, 64, 3), level, np.uint8)
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            container.mux(stream.encode())
        memory.seek(0)
        with av.open(memory, "r") as written:
            frames = len(list(written.decode(video=0)))
    except (av.FFmpegError, ValueError) as error:
        raise VideoError(f"libx264 does not encode: {error}; reinstall av from its wheel") from error
    if frames != 2:
        raise VideoError(f"libx264 wrote two frames, {frames} decode; reinstall av from its wheel")


def _h264() -> Finding:
    try:
        encode_two_frames()
    except ImportError as error:
        return _broken("h264", error)
    except VideoError as error:
        return Finding(name="h264", ok=False, detail=str(error))
    found = version("av")
    return Finding(
        name="h264",
        ok=True,
        detail=f"PyAV {found}, libx264 encodes and decodes",
        facts={"pyav": found, "encoder": "libx264"},
    )


def _decoders() -> Finding:
    try:
        import av
    except ImportError as error:
        return _broken("decoders", error)
    present = [name for name in _DECODERS if _decodes(av, name)]
    missing = [name for name in _DECODERS if name not in present]
    detail = ", ".join(present) + (f"; missing {', '.join(missing)}" if missing else "")
    return Finding(name="decoders", ok="h264" in present, detail=detail, facts={"present": present})


def _decodes(av: Any, name: str) -> bool:
    try:
        av.Codec(name, "r")
    except (av.FFmpegError, ValueError):
        return False
    return True


def _libraries() -> Finding:
    found, missing = {}, []
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            missing.append(name)
    detail = ", ".join(f"{name} {number}" for name, number in found.items())
    if missing:
        detail = f"missing {', '.join(missing)}; install driving-xai again"
    return Finding(name="libraries", ok=not missing, detail=detail, facts=found)


def _disk(folder: Path) -> Finding:
    free = shutil.disk_usage(folder).free / _GIB
    detail = f"{free:.1f} GiB free" + ("" if free >= 1 else "; an hour of shards takes about 3 GiB")
    return Finding(
        name="disk", ok=free >= 1, essential=False, detail=detail, facts={"free_gib": round(free, 2)}
    )


def _memory() -> Finding:
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / _GIB
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / _GIB
    return Finding(
        name="memory",
        ok=True,
        essential=False,
        detail=f"{total:.1f} GiB, {free:.1f} GiB of it unused",
        facts={"total_gib": round(total, 2), "unused_gib": round(free, 2)},
    )


def _extra(name: str) -> Finding:
    module, purpose = _EXTRAS[name]
    ok = find_spec(module) is not None
    detail = purpose if ok else f"absent; `pip install 'driving-xai[{name}]'` for {purpose}"
    return Finding(name=f"extra {name}", ok=ok, essential=False, detail=detail)


def _broken(name: str, error: ImportError, *, essential: bool = True) -> Finding:
    detail = f"does not import: {' '.join(str(error).split())}; install driving-xai again"
    return Finding(name=name, ok=False, essential=essential, detail=detail)
