"""Maps of one's own, scored under the protocol of everybody else's: SNNA with parts of it left out.

    driving-xai score MODEL SHARDS --method snna --save-maps -o named
    python docs/examples/own_maps.py MODEL SHARDS named/maps.h5 parts.h5
    driving-xai score MODEL SHARDS --maps parts.h5 -o parts

with the same split and every n-th frame in both: which frames are explained, and for which action, is read from the
maps that the first line kept. MODEL is a transformer of `train actions`.
"""

import sys
from pathlib import Path

import h5py
import numpy as np

from driving_xai import checkpoint
from driving_xai.data.images import LabelledImages
from driving_xai.evaluation.maps_file import SCHEMA
from driving_xai.explain.vit.smoothing import SNNA
from driving_xai.targets import output

PARTS = {
    "snna": {},
    "snna, no smoothing": {"samples": 0},
    "snna, no norms": {"norms": "none"},
    "snna, no norms, no smoothing": {"norms": "none", "samples": 0},
    "snna, norms of the attending token": {"norms": "query"},
    "snna, signed smoothing": {"smoothing": "signed"},
    "snna, product as printed": {"product": "literal"},
}


def write(model: Path, shards: Path, named: Path, out: Path) -> None:
    """Explains the frames of `named` in each of the ways above."""
    loaded = checkpoint.load(model, kind="actions")
    images = LabelledImages(shards, short_side_px=loaded.config.get("input", {}).get("short_side_px"))
    names = loaded.model.outputs.names
    with h5py.File(named) as given, h5py.File(out, "w") as file:
        file.attrs["schema"] = SCHEMA
        given.copy("frames", file)
        rows, actions = given["frames/frame"][:], given["frames/target"].asstr()[:]
        for name, options in PARTS.items():
            explain = SNNA(**options)
            maps = [
                explain(loaded.model, images.frames(row), output(names.index(action)))
                for row, action in zip(rows.reshape(-1, 1), actions, strict=True)
            ]
            file[f"maps/{name}"] = np.concatenate([each.numpy() for each in maps])


if __name__ == "__main__":
    write(*map(Path, sys.argv[1:5]))
