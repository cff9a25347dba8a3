"""Which column of a classifier's scores each label of a data set is, by name or by ImageNet's synset."""

from __future__ import annotations

import re
from collections.abc import Sequence

from driving_xai.errors import DataError

_SYNSET = re.compile(r"n\d{8}")
_IMAGENET_CLASSES = 1000


def label_columns(labels: Sequence[str], outputs: Sequence[str]) -> list[int]:
    """The column of each label.

    Folders of ImageNet are named by synset, and classifiers of 1,000 outputs by a word for each, in the order of
    the synsets: labels that all are synsets are looked up there.

    Args:
        labels: of the images.
        outputs: the names of the model's scores; there may be more of them than labels.

    Raises:
        DataError: a label is none of the outputs.

    Example:
        >>> label_columns(["dog"], ["cat", "dog"])
        [1]
    """
    places = {name: place for place, name in enumerate(outputs)}
    if len(outputs) == _IMAGENET_CLASSES and all(map(_SYNSET.fullmatch, labels)) and labels[0] not in places:
        from timm.data import ImageNetInfo

        places = {name: place for place, name in enumerate(ImageNetInfo().label_names())}
    if missing := [name for name in labels if name not in places]:
        raise DataError(
            f"label {missing[0]!r} is none of the model's {len(outputs)} outputs ({', '.join(outputs[:3])}, ...); "
            "name the folders of images as the model's outputs, or by ImageNet's synsets"
        )
    return [places[name] for name in labels]
