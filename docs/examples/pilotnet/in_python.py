"""The same from Python: `python in_python.py SHARDS WEIGHTS.safetensors OUT`."""

from __future__ import annotations

import sys
from pathlib import Path

from ours import Darkness

import driving_xai as dx


def main(shards: str, weights: str, out: str) -> None:
    """Explains a frame, scores five methods, replays the route and writes the report."""
    folder = Path(out)
    folder.mkdir()
    model = dx.load("pilotnet:build", weights=weights).model
    frame = dx.data.open(shards, split="test").frames([0])
    maps = {
        name: dx.explain.build(name)(model, frame, dx.targets.magnitude)[0]
        for name in ("grad-cam", "visual-backprop", "captum:DeepLift")
    }
    dx.viz.panel(frame[0], maps).save(folder / "panel.png")
    methods = [*maps, "zennit:EpsilonPlus", Darkness()]
    found = dx.evaluate(model, shards, methods=methods, every=5, out=folder / "scores")
    print(found.table().to_string(index=False))
    replayed = dx.replay.ReplayConfig(method="grad-cam", end_s=5, control_every=2)
    dx.replay.write(model, shards, folder / "drive.mp4", replayed)
    dx.report.write([folder / "scores", folder / "drive.scores"], folder / "report.html")


if __name__ == "__main__":
    main(*sys.argv[1:4])
