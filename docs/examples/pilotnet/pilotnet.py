"""NVIDIA's PilotNet as it stands in somebody's repository, and the factory that driving-xai calls.

`PilotNet` knows nothing of driving-xai: it takes 66 x 200 RGB frames in [0, 1], turns them into YUV inside and gives the
angle of the steering wheel. `build` says what that means.

Source: Bojarski et al. 2016, "End to End Learning for Self-Driving Cars", Fig. 4.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import driving_xai as dx

WHEELBASE_M, STEERING_RATIO = 2.85, 14.8
"""Of the car whose steering wheel it turns."""

RGB_TO_YUV = ((0.299, 0.587, 0.114), (-0.147, -0.289, 0.436), (0.615, -0.515, -0.100))


class PilotNet(nn.Module):
    """Five unpadded convolutions and four linear layers; 252,219 weights."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("yuv", torch.tensor(RGB_TO_YUV), persistent=False)
        self.conv = nn.Sequential(
            nn.Conv2d(3, 24, 5, stride=2),
            nn.ELU(inplace=True),
            nn.Conv2d(24, 36, 5, stride=2),
            nn.ELU(inplace=True),
            nn.Conv2d(36, 48, 5, stride=2),
            nn.ELU(inplace=True),
            nn.Conv2d(48, 64, 3),
            nn.ELU(inplace=True),
            nn.Conv2d(64, 64, 3),
            nn.ELU(inplace=True),
        )
        self.fc = nn.Sequential(
            nn.Flatten(),
            nn.Linear(64 * 1 * 18, 100),
            nn.ELU(),
            nn.Linear(100, 50),
            nn.ELU(),
            nn.Linear(50, 10),
            nn.ELU(),
            nn.Linear(10, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = torch.einsum("yc,bchw->byhw", self.yuv, x) * 2 - 1
        return self.fc(self.conv(x))  # steering-wheel angle in radians, positive to the left


class AngleToCurvature(nn.Module):
    """The inverse turning radius in 1/m of a network that gives the steering wheel's angle."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, frames: Tensor) -> Tensor:
        return self.network(frames) / (STEERING_RATIO * WHEELBASE_M)


def build() -> nn.Module:
    """What driving-xai calls for `pilotnet:build`; frames of any size are resized to the network's."""
    return dx.wrap(AngleToCurvature(PilotNet()), outputs="regression", names=["curvature"], size=(66, 200))
