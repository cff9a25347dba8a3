"""Random draws that belong to a frame: batch size, order, device and resumed runs change nothing."""

from __future__ import annotations

import hashlib

import torch

from driving_xai.types import Frames


def generators(frames: Frames, *, seed: int, device: str | torch.device = "cpu") -> list[torch.Generator]:
    """A generator for each frame, seeded from the seed and the frame's own pixels.

    Args:
        device: what draws. Another kind of device draws other numbers from the same seed.
    """
    return [_generator(_pixels(frame.contiguous()), seed, device) for frame in frames.detach().cpu()]


def _pixels(frame: torch.Tensor) -> bytes:
    # NumPy has no bfloat16; its bits do as well.
    return (frame.view(torch.int16) if frame.dtype == torch.bfloat16 else frame).numpy().tobytes()


def _generator(pixels: bytes, seed: int, device: str | torch.device) -> torch.Generator:
    digest = hashlib.blake2b(pixels, digest_size=8, key=seed.to_bytes(16, "little", signed=True))
    # A generator takes seeds below 2**63 on every platform.
    return torch.Generator(device).manual_seed(int.from_bytes(digest.digest(), "little") >> 1)
