"""One picture of the maps of every method that fits a model, on one rendered frame.

    python docs/gallery.py MODEL drive docs/images/gallery-drive.jpg
    python docs/gallery.py MODEL street docs/images/gallery-street.jpg

MODEL is whatever `driving-xai score` takes: a folder that `train` or `demo` wrote, or `timm:NAME`. A drive's frame is cropped to the
road and seen as the first of a drive.
"""

import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from PIL import Image

import driving_xai as dx
from data_prep.synthetic import action_scenes, drives
from driving_xai.viz.lettering import lettering

COLUMNS, TILE_PX, GAP_PX, HEAD_PX, TEXT_PX = 5, 240, 6, 26, 16
SHORT = {"rise": {"samples": 500}, "lime": {"samples": 300}}
"""Options with which the slow methods take seconds; the picture is no benchmark."""


def drive(second: float = 12.0) -> torch.Tensor:
    """A frame of a rendered drive, as `prep` cuts it: 80 x 160 pixels without the sky."""
    (rendered,) = drives.drives("-", seconds=second + 1, seed=7)
    picture = next(iter(rendered.images.read(int(20 * second), int(20 * second) + 1)))
    return as_frames(cv2.resize(picture[int(0.4 * len(picture)) :], (160, 80), interpolation=cv2.INTER_AREA))


def street(number: int = 5) -> torch.Tensor:
    """A rendered street scene."""
    scenes = action_scenes.image_set("-", images=20, seed=3, height=96, width=160)
    return as_frames(scenes.rendered.read(number)[0])


def as_frames(picture: np.ndarray) -> torch.Tensor:
    """An RGB image as a batch of one, in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(picture)).permute(2, 0, 1)[None].float() / 255


def maps_of(model: object, frames: torch.Tensor) -> dict[str, torch.Tensor]:
    """The map of each method that fits, by name."""
    target, found = dx.targets.predicted(model(frames).detach(), model.outputs), {}
    for name in dx.explain.METHODS:
        try:
            found[name] = dx.explain.build(name, **SHORT.get(name, {}))(model, frames, target)[0]
        except dx.errors.UnsupportedModelError as error:
            print(f"{name} is left out: {error}", file=sys.stderr)
    return found


def gallery(frame: torch.Tensor, maps: dict[str, torch.Tensor]) -> Image.Image:
    """The frame and every map over it, each under its name."""
    pictures = {"frame": dx.viz.overlay(frame, torch.zeros(frame.shape[1:]))}
    pictures |= {name: dx.viz.overlay(frame, saliency) for name, saliency in maps.items()}
    width, height = TILE_PX, round(TILE_PX * frame.shape[1] / frame.shape[2])
    rows = -(-len(pictures) // COLUMNS)
    whole = np.full((rows * (height + HEAD_PX), COLUMNS * (width + GAP_PX) - GAP_PX, 3), 255, np.uint8)
    for place, (name, picture) in enumerate(pictures.items()):
        top, left = place // COLUMNS * (height + HEAD_PX) + HEAD_PX, place % COLUMNS * (width + GAP_PX)
        whole[top : top + height, left : left + width] = picture.resize((width, height), Image.Resampling.BOX)
        lettering(TEXT_PX).draw(whole, name, (left, top - 6), (0, 0, 0))
    return Image.fromarray(whole)


def main(model: str, scene: str, out: str, weights: str | None = None) -> None:
    """Writes the gallery of a model."""
    frames = {"drive": drive, "street": street}[scene]()
    picture = gallery(frames[0], maps_of(dx.load(model, weights=weights), frames))
    picture.save(Path(out), quality=85, optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
