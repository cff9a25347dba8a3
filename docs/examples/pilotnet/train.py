"""Trains the PilotNet on a prepared route, in plain PyTorch: `python train.py SHARDS OUT.safetensors [EPOCHS]`."""

from __future__ import annotations

import sys

import torch
from pilotnet import PilotNet
from safetensors.torch import save_file
from torch.nn import functional as F

import driving_xai as dx


def main(shards: str, out: str, epochs: int = 10) -> None:
    """Adam on the recorded steering-wheel angle; saves the network's own state_dict."""
    torch.manual_seed(0)
    data = dx.data.open(shards, split="train")
    frames = torch.cat([data.frames([row]) for row in range(len(data))])
    frames = F.interpolate(frames, (66, 200), mode="bilinear", antialias=True)
    angles = torch.tensor(data.index["steering_wheel_rad_smoothed"].to_numpy(), dtype=torch.float32)
    network = PilotNet()
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    for epoch in range(epochs):
        total = 0.0
        for rows in torch.randperm(len(frames)).split(32):
            loss = F.mse_loss(network(frames[rows])[:, 0], angles[rows])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += loss.item() * len(rows)
        print(f"epoch {epoch}: RMSE {(total / len(frames)) ** 0.5:.4f} rad")
    save_file(network.state_dict(), out)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *map(int, sys.argv[3:]))
