"""Classifiers of an experiment: trained once, then found again in the experiment's folder."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

from driving_xai import checkpoint
from driving_xai.errors import CheckpointError
from driving_xai.experiments.held_images import NamedImages
from driving_xai.models.classify import Classifier
from driving_xai.training.classify import ClassifierTraining, describe, train
from driving_xai.training.loop import RESUME, Device


def trained_classifier(
    source: NamedImages, folder: Path, how: ClassifierTraining, *, device: Device = "auto"
) -> Classifier:
    """The classifier in `folder`, trained if it is not there, continued if it was interrupted.

    Raises:
        CheckpointError: the folder holds a classifier that was trained otherwise.
    """
    if not (folder / checkpoint.CONFIG).exists():
        begun = (folder / RESUME / "config.json").exists()
        train(source.images, folder, how, data=source.described, device=device, resume=begun)
    found = checkpoint.load(folder, kind="classifier")
    size = tuple(source.images.frames(source.images.rows("train")[:1]).shape[2:])
    how = replace(how, model=replace(how.model, classes=source.images.label_names, image_size=size))
    wanted = json.loads(json.dumps(describe(how, source.described, None)))
    defaults = json.loads(json.dumps(asdict(ClassifierTraining())))
    # A setting that is newer than the classifier had no name then; its default is what was done.
    known = {"model": defaults.pop("model"), "training": defaults, "data": {}}
    if other := [part for part in known if {**known[part], **found.config[part]} != wanted[part]]:
        raise CheckpointError(f"{folder} was trained with another {', '.join(other)}; give another folder")
    return found.model
