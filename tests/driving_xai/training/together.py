"""One training as a program, which several processes can run together: python -m ... RECIPE OUT [options].

Lightning starts its other processes with the same command line, and so does torchrun.
"""

from __future__ import annotations

import argparse
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L

from driving_xai.data.splits import HoldOut
from driving_xai.models.classify import ClassifierConfig
from driving_xai.models.steering import SteeringConfig
from driving_xai.training import actions, classify, steering
from driving_xai.training.augment import Augmentation
from tests.driving_xai.training.pictures import Pictures

CHANGES = Augmentation(flip=True, brightness=0.2, contrast=0.2, saturation=0.3, shift=3, shadow=0.5)
STEERING = steering.SteeringTraining(
    # Not sign attention: where a feature is next to zero its sign makes a step of a rounding error.
    model=SteeringConfig(hidden_size=8, dropout=0.3, attention="soft"),
    held_out=HoldOut(block=2, gap_s=0.2, val_fraction=0.2),
    augmentation=CHANGES,
    epochs=1,
    frame_epochs=2,
    window=5,
    batch_size=3,
)
CLASSIFIER = classify.ClassifierTraining(
    model=ClassifierConfig(network="small-cnn", channels=(8, 8), pooled=1),
    augmentation=CHANGES,
    class_weights=(1.0, 3.0),
    epochs=3,
    batch_size=5,
    warmup_epochs=1,
)
LABN = replace(
    CLASSIFIER,
    model=ClassifierConfig(
        network="labn",
        split=1,
        threshold=0.3,
        stages=(1, 1),
        width=8,
        stem="small",
        heads=2,
        key_depth=4,
        context=5,
    ),
)
TIMM = replace(CLASSIFIER, model=ClassifierConfig(network="resnet10t"))


class Death(L.Callback):
    """SIGKILL in the middle of an epoch, once: not where a file says that it has happened."""

    def __init__(self, epoch: int, file: Path) -> None:
        self.epoch, self.file = epoch, file

    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.current_epoch == self.epoch and trainer.global_rank == 0 and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("recipe", choices=["steering", "classifier", "labn", "timm", "actions"])
    parser.add_argument("out", type=Path)
    parser.add_argument("--devices", type=int)
    parser.add_argument("--shards", type=Path)
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--dies", type=int)
    given = parser.parse_args()
    deaths = () if given.dies is None else (Death(given.dies, given.out.with_suffix(".died")),)
    options: dict[str, Any] = {
        "device": "cpu",
        "devices": given.devices,
        "resume": given.resume,
        "callbacks": deaths,
    }
    if given.recipe == "steering":
        steering.train(given.shards, given.out, STEERING, **options)
    elif given.recipe == "actions":
        from tests.driving_xai.training.test_actions import ALL

        actions.train(
            given.shards,
            given.out,
            replace(ALL, batch_size=7, augmentation=replace(CHANGES, flip=False)),
            **options,
        )
    else:
        how = {"classifier": CLASSIFIER, "labn": LABN, "timm": TIMM}[given.recipe]
        classify.train(Pictures(), given.out, how, data={}, **options)


if __name__ == "__main__":
    main()
