"""Steering from a front camera: a CNN-LSTM without attention, with soft or with sign attention.

Source: Tashiro and Awano 2023; soft attention after Kim and Canny 2017.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from driving_xai.errors import UnsupportedModelError
from driving_xai.models.quantize import Quantizer
from driving_xai.models.sign_path import DETACHED, SignPath
from driving_xai.models.steering_config import AttentionDerivative
from driving_xai.models.steering_config import SteeringConfig as SteeringConfig
from driving_xai.models.steering_encoders import CHANNELS, TimmEncoder, build_encoder, cells_of
from driving_xai.types import Attention, Cells, FeatureMap, Frames, Outputs, OwnMap, Scores

OUTPUTS = Outputs(kind="regression", names=("inverse turning radius",), unit="1/m")


class Evidence(NamedTuple):
    """What a frame offers before attention: computed once, whatever the state."""

    features: Float[Tensor, "... L C"]
    projected: Float[Tensor, "... L width"] | None
    """The features' part of the attention energies; None without attention."""
    signs: Float[Tensor, "... L c"]
    """The channels whose sign is taken; all of them, unsigned, without sign attention."""
    magnitude: Float[Tensor, "... L c"] | None
    """The quantised magnitude; None without sign attention."""

    def by_frame(self) -> Iterator[Evidence]:
        """Of windows, the evidence of each frame in turn.

        Cut once and not frame by frame: the gradient of each cut would be a whole window of zeros, added up.
        """
        absent = itertools.repeat(None)
        parts = (absent if part is None else part.unbind(1) for part in self)
        return (Evidence(*frame) for frame in zip(*parts, strict=False))  # What is absent has no end.

    def map(self, change: Callable[[Tensor], Tensor]) -> Evidence:
        """Every part there is, changed."""
        projected, magnitude = (
            None if part is None else change(part) for part in (self.projected, self.magnitude)
        )
        return Evidence(change(self.features), projected, change(self.signs), magnitude)


class SteeringState(NamedTuple):
    """The LSTM's memory after a frame; the leading dimension counts drives."""

    hidden: Float[Tensor, "B hidden"]
    cell: Float[Tensor, "B hidden"]


def _shared(per_state: Float[Tensor, "S ..."], frames: int) -> Float[Tensor, "N ..."]:
    """What each frame gets from its state: S rows become N, frame n taking row n // (N // S)."""
    return per_state if len(per_state) == frames else per_state.repeat_interleave(frames // len(per_state), 0)


def rgb_to_hsv(frames: Frames) -> Frames:
    """Hue, saturation and value, each in [0, 1]; hue is 0 for greys."""
    red, green, blue = frames.unbind(1)
    value, lowest = frames.amax(1), frames.amin(1)
    chroma = value - lowest
    scale = torch.where(chroma > 0, chroma, 1.0).reciprocal() / 6
    hue = torch.where(
        value == red,
        (green - blue) * scale,
        torch.where(value == green, (blue - red) * scale + 1 / 3, (red - green) * scale + 2 / 3),
    )
    hue = torch.where(hue < 0, hue + 1, hue)
    saturation = chroma / torch.where(value > 0, value, 1.0)
    return torch.stack((hue, saturation, value), 1)


def _sign_path(config: SteeringConfig, grid: tuple[int, int], channels: int) -> SignPath | None:
    if config.attention != "sign":
        return None
    return SignPath(
        role=config.sign_role,
        estimator=config.sign_estimator,
        threshold=config.sign_threshold,
        sharpness=config.sign_sharpness,
        evaluation=config.sign_evaluation,
        positions=grid[0] * grid[1],
        channels=channels,
    )


class SpatialAttention(nn.Module):
    """Attention over the L positions of a feature map, given the LSTM's last state.

    Source: Tashiro and Awano 2023, eqs. 11, 12 and 15.
    Deviation: the bias lies inside the tanh for every energy; the paper's scalar energy adds it outside,
    where the softmax over positions cancels it.
    """

    def __init__(self, *, features: int, hidden_size: int, energy: str, temperature: float) -> None:
        super().__init__()
        width = 1 if energy == "scalar" else features
        self.temperature = temperature
        self.from_features = nn.Linear(features, width)
        self.from_hidden = nn.Linear(hidden_size, width, bias=False)
        self.reduce = nn.Linear(width, 1, bias=False) if energy == "additive" else nn.Identity()

    def forward(
        self, projected: Float[Tensor, "B L width"], hidden: Float[Tensor, "S hidden"]
    ) -> Float[Tensor, "B L channels"]:
        """Attention that sums to one over positions.

        Args:
            projected: `from_features` of the feature map; passed in so that a window projects once.
            hidden: h_{t-1}, of all frames or of S states that they share.
        """
        offset = _shared(self.from_hidden(hidden), len(projected))
        energy = self.reduce(torch.tanh(projected + offset.unsqueeze(1)))
        return torch.softmax(energy.float() / self.temperature, dim=1)


class SteeringModel(nn.Module):
    """Predicts the inverse turning radius (1/m, positive to the left) frame by frame.

    Frames are RGB in [0, 1]; colour conversion and normalisation happen inside. Attention `none`
    reports a uniform map.

    Example:
        >>> model = SteeringModel(SteeringConfig(hidden_size=8)).eval()
        >>> scores, attention, state = model.step(torch.rand(1, 3, 80, 160), None)
        >>> model.at(state)(torch.rand(26, 3, 80, 160)).shape
        torch.Size([26, 1])
    """

    outputs = OUTPUTS
    attention_derivative: AttentionDerivative = "actual"
    """That gradients in eval mode take; see `differentiated`."""
    input_mean: Tensor
    input_std: Tensor
    target_scale: Tensor

    def __init__(self, config: SteeringConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = build_encoder(config)
        with torch.no_grad():
            features = self.encoder(torch.zeros(1, 3, config.height, config.width))
        self.grid = (features.shape[2], features.shape[3])
        split = config.attention == "sign" and config.channels == "split"
        self.feature_channels = CHANNELS[-1] // 2 if split else CHANNELS[-1]
        width = self.feature_channels * self.grid[0] * self.grid[1]
        self.attend = (
            None
            if config.attention == "none" or config.attention_weights == "uniform"
            else SpatialAttention(
                features=CHANNELS[-1],
                hidden_size=config.hidden_size,
                energy=config.energy,
                temperature=config.temperature,
            )
        )
        self.quantizer = (
            Quantizer(bits=config.bits, range_rule=config.quantizer_range)
            if config.attention == "sign" and config.bits is not None
            else None
        )
        self.sign_path = _sign_path(config, self.grid, self.feature_channels)
        self.initial_hidden = nn.Linear(CHANNELS[-1], config.hidden_size)
        self.initial_cell = nn.Linear(CHANNELS[-1], config.hidden_size)
        self.lstm = nn.LSTMCell(width, config.hidden_size)
        self.readout = _READOUTS[config.output](width, config)
        self.dropout = nn.Dropout(config.dropout)
        self.register_buffer("input_mean", torch.zeros(3, 1, 1))
        self.register_buffer("input_std", torch.ones(3, 1, 1))
        self.register_buffer("target_scale", torch.tensor(1.0))
        self.to(memory_format=torch.channels_last)
        self.apply(_xavier)
        if isinstance(self.encoder, TimmEncoder):
            self.standardise_by(*self.encoder.standardisation)

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width of the frames that it was made for, in pixels."""
        return self.config.height, self.config.width

    @property
    def feature_map(self) -> FeatureMap:
        """The end of the encoder."""
        chain = self.encoder.project if isinstance(self.encoder, TimmEncoder) else self.encoder
        return FeatureMap(layer=chain[-1], cells=self._cells)

    @property
    def own_maps(self) -> Mapping[str, OwnMap]:
        """The attention map, by its method's name; none of a model without attention."""
        if self.config.attention == "none":
            return {}
        return {f"{self.config.attention}-attention": OwnMap(read="attention", cells=self._cells)}

    @cached_property
    def _cells(self) -> Cells | None:
        return cells_of(self.config, self.encoder)

    def standardise_by(self, mean: Sequence[float], std: Sequence[float]) -> None:
        """Sets what is taken from each of a frame's three colours, and what they are then divided by."""
        self.input_mean.copy_(torch.tensor(mean).view(3, 1, 1))
        self.input_std.copy_(torch.tensor(std).view(3, 1, 1))

    def fold_normalisation(self) -> SteeringModel:
        """Merges each batch normalisation into its convolution: faster, and for inference only.

        Predictions change by rounding alone.
        """
        self.eval()
        if isinstance(self.encoder, TimmEncoder):
            self.encoder.project = _folded(self.encoder.project)
        else:
            self.encoder = _folded(self.encoder)
        return self

    def converted(self, frames: Frames) -> Float[Tensor, "N 3 H W"]:
        """The frames as the encoder takes them, each pixel by itself: its colour, normalised."""
        colours = rgb_to_hsv(frames) if self.config.colour == "hsv" else frames
        return (colours - self.input_mean) / self.input_std

    def differentiated(self, derivative: AttentionDerivative) -> SteeringModel:
        """The same network, weights shared, whose gradients in eval mode are these; it predicts the same.

        Raises:
            UnsupportedModelError: without signs, or in a role in which attention acts on them, there is one derivative
                only.
        """
        if self.sign_path is None:
            raise UnsupportedModelError(
                f"attention {self.config.attention!r} has no signs, and one derivative only; leave the option out"
            )
        if self.sign_path.role not in DETACHED:
            raise UnsupportedModelError(
                f"sign_role {self.sign_path.role!r} has one derivative only; leave the option out"
            )
        view = copy.copy(self)
        view.attention_derivative = derivative
        return view

    def encode(self, frames: Frames) -> Evidence:
        """The feature map, positions in reading order, and what follows from it alone."""
        return self._encode_converted(self.converted(frames), attends=True)

    def _encode_converted(self, converted: Float[Tensor, "N 3 H W"], *, attends: bool) -> Evidence:
        maps = self.encoder(converted.contiguous(memory_format=torch.channels_last))
        return self._evidence(maps, attends=attends)

    def _evidence(self, maps: Float[Tensor, "B C h w"], *, attends: bool = True) -> Evidence:
        features = maps.permute(0, 2, 3, 1).flatten(1, 2)
        projected = self.attend.from_features(features) if attends and self.attend is not None else None
        return Evidence(features, projected, *self._sign_and_magnitude(features))

    def _sign_and_magnitude(self, features: Float[Tensor, "B L C"]) -> tuple[Tensor, Tensor | None]:
        """Source: Tashiro and Awano 2023, eqs. 5 and 6; the split is the pseudo-code's."""
        if self.config.attention != "sign":
            return features, None
        split = self.config.channels == "split"
        signs, magnitude = features.chunk(2, dim=2) if split else (features, features)
        magnitude = F.softplus(magnitude)
        return signs, magnitude if self.quantizer is None else self.quantizer(magnitude)

    def initial_state(self, features: Float[Tensor, "B L C"]) -> SteeringState:
        """Source: Tashiro and Awano 2023, eqs. 13 and 14; tanh as in Kim's code."""
        mean = features.mean(1)
        return SteeringState(torch.tanh(self.initial_hidden(mean)), torch.tanh(self.initial_cell(mean)))

    def forward(
        self, windows: Float[Tensor, "B T 3 H W"], state: SteeringState | None = None
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T h w"], SteeringState]:
        """Predicts every frame of B windows, the state carried from frame to frame.

        Returns the inverse turning radius (1/m), the attention maps and the state after the last frame.
        """
        return _whole(self.steps(windows, state))

    def of_features(
        self, windows: Float[Tensor, "B T C h w"], state: SteeringState | None = None
    ) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T h w"], SteeringState]:
        """As `forward`, of the features that a network of timm has of every frame: what is left to run of a frozen one.

        Args:
            windows: `TimmEncoder.features` of normalised frames.
        """
        assert isinstance(self.encoder, TimmEncoder)
        evidence = self._evidence(self.encoder.project(windows.flatten(0, 1)))
        return _whole(self._steps(evidence, windows.shape[:2], state))

    def steps(
        self, windows: Float[Tensor, "B T 3 H W"], state: SteeringState | None
    ) -> Iterator[tuple[Scores, Attention, SteeringState]]:
        """Advances B drives by T frames, which are encoded together; see `types.TakesWindows`."""
        return self._steps(self.encode(windows.flatten(0, 1)), windows.shape[:2], state)

    def _steps(
        self, of_all: Evidence, shape: tuple[int, ...], state: SteeringState | None
    ) -> Iterator[tuple[Scores, Attention, SteeringState]]:
        batch, steps = shape
        evidence = of_all.map(lambda part: part.unflatten(0, (batch, steps)))
        state = self.initial_state(evidence.features[:, 0]) if state is None else state
        if self._attention_is_idle and not self.training:
            yield from self._steps_together(evidence, state)
            return
        for frame in evidence.by_frame():
            attention = self._attention(frame, state.hidden)
            modulated = self._modulate(frame, attention)
            past, state = state, self._advance(modulated, state)
            scores = self.readout(modulated, past.hidden, state.hidden)[:, None] * self.target_scale
            yield scores, self._as_map(attention, batch), state

    def _steps_together(
        self, evidence: Evidence, state: SteeringState
    ) -> Iterator[tuple[Scores, Attention, SteeringState]]:
        """As `steps`, where the features wait for no attention: each large matrix is read once, and not for each frame."""
        batch, steps = evidence.features.shape[:2]
        frames = evidence.map(lambda part: part.flatten(0, 1))
        modulated = self._modulate(frames, self._uniform(frames))
        into_gates = F.linear(modulated, self.lstm.weight_ih, self.lstm.bias_ih).unflatten(0, (batch, steps))
        states = [state]
        for t in range(steps):
            states.append(self._remember(into_gates[:, t], states[-1]))
        hidden = torch.stack([each.hidden for each in states], 1)
        past, present = hidden[:, :-1].flatten(0, 1), hidden[:, 1:].flatten(0, 1)
        scores = self.readout(modulated, past, present)[:, None] * self.target_scale
        attention = self._as_map(self._attention(frames, past), batch * steps)
        yield from zip(
            scores.unflatten(0, (batch, steps)).unbind(1),
            attention.unflatten(0, (batch, steps)).unbind(1),
            states[1:],
            strict=True,
        )

    def _remember(self, into_gates: Float[Tensor, "B gates"], state: SteeringState) -> SteeringState:
        """The LSTM's step, of what the features add to its gates."""
        gates = into_gates + F.linear(state.hidden, self.lstm.weight_hh, self.lstm.bias_hh)
        let_in, kept, new, out = gates.chunk(4, 1)
        cell = kept.sigmoid() * state.cell + let_in.sigmoid() * new.tanh()
        return SteeringState(out.sigmoid() * cell.tanh(), cell)

    def step(self, frames: Frames, state: SteeringState | None) -> tuple[Scores, Attention, SteeringState]:
        """Advances B drives by one frame; see `types.RecurrentModel`."""
        return next(self.steps(frames.unsqueeze(1), state))

    def at(self, state: SteeringState | None) -> SteeringInstant:
        """The stateless view of the instant that follows `state`; None is the first of a drive."""
        return SteeringInstant(self, state)

    @property
    def _attention_is_idle(self) -> bool:
        """Whether attention changes no prediction: in the paper's role it turns no sign, and has a gradient alone."""
        return (
            self.sign_path is not None and self.sign_path.role == "training" and not torch.is_grad_enabled()
        )

    def _attention(
        self, frame: Evidence, hidden: Float[Tensor, "S hidden"]
    ) -> Float[Tensor, "B L channels"] | None:
        if self.config.attention == "none":
            return None
        if self.attend is None:  # By configuration.
            return self._uniform(frame)
        return self.attend(frame.projected, hidden)

    def _uniform(self, frame: Evidence) -> Float[Tensor, "B L 1"]:
        batch, positions, _ = frame.features.shape
        return frame.features.new_full((batch, positions, 1), 1 / positions, dtype=torch.float32)

    def _as_map(self, attention: Tensor | None, batch: int) -> Attention:
        if attention is None:
            positions = self.grid[0] * self.grid[1]
            return self.input_mean.new_full((batch, *self.grid), 1 / positions)
        # Of per-channel attention, only the channels that modulate anything: the map is what acts.
        return attention[..., : self.feature_channels].mean(2).unflatten(1, self.grid)

    def _modulate(self, frame: Evidence, attention: Tensor | None) -> Float[Tensor, "B features"]:
        """The features that the LSTM and the readout see. Source: eqs. 4 and 9."""
        if attention is None:
            return frame.signs.flatten(1)
        relative = (attention * attention.shape[1])[..., : frame.signs.shape[2]].to(frame.signs.dtype)
        weight = relative if self.config.attention_scale == "mean-one" else relative / attention.shape[1]
        if self.sign_path is None or frame.magnitude is None:  # Soft attention.
            return (frame.signs * weight).flatten(1)
        signs = self.sign_path(frame.signs, relative, weight, derivative=self.attention_derivative)
        return (signs * frame.magnitude).flatten(1)

    def _advance(self, modulated: Tensor, state: SteeringState) -> SteeringState:
        memory = tuple(_shared(part, len(modulated)) for part in state)
        return SteeringState(*self.lstm(self.dropout(modulated), memory))


class SteeringInstant:
    """A steering model at one instant: the past is fixed, the frame is free.

    Given S states and N frames, frame n is judged with state n // (N // S).
    """

    outputs = OUTPUTS

    def __init__(self, model: SteeringModel, state: SteeringState | None) -> None:
        self.network, self.state = model, state

    def __call__(self, frames: Frames) -> Scores:
        """The inverse turning radius (1/m) of each frame."""
        return self.of_converted(self.converted(frames))

    def converted(self, frames: Frames) -> Float[Tensor, "N 3 H W"]:
        """See `types.ConvertsPixels`."""
        return self.network.converted(frames)

    def of_converted(self, converted: Float[Tensor, "N 3 H W"]) -> Scores:
        """See `types.ConvertsPixels`."""
        model = self.network
        idle = model._attention_is_idle
        frame = model._encode_converted(converted, attends=not idle)
        past = self._past(frame)
        attention = model._uniform(frame) if idle else model._attention(frame, past.hidden)
        modulated = model._modulate(frame, attention)
        # Eq. 10 reads h_{t-1} only: nothing of the LSTM's step is needed to judge an instant.
        present = None if model.config.output == "gated" else model._advance(modulated, past).hidden
        return model.readout(modulated, past.hidden, present)[:, None] * model.target_scale

    def attention(self, frames: Frames) -> Attention:
        """The model's own attention map for each frame; sums to one.

        Raises:
            UnsupportedModelError: the model has no attention.
        """
        if self.network.config.attention == "none":
            raise UnsupportedModelError("this steering model was built with attention 'none': it has no map")
        frame = self.network.encode(frames)
        return self.network._as_map(self.network._attention(frame, self._past(frame).hidden), len(frames))

    def _past(self, frame: Evidence) -> SteeringState:
        if self.state is None:
            return self.network.initial_state(frame.features)
        frames, states = len(frame.features), len(self.state.hidden)
        if frames % states:
            raise ValueError(f"got {frames} frames for {states} states; expected a multiple")
        return self.state


class GatedReadout(nn.Module):
    """u = (sigmoid(W h_{t-1} + b) * x) . w + b. Source: Tashiro and Awano 2023, eq. 10."""

    def __init__(self, width: int, config: SteeringConfig) -> None:
        super().__init__()
        self.gate = nn.Linear(config.hidden_size, width)
        self.weigh = nn.Linear(width, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, modulated: Tensor, past: Tensor, present: Tensor | None) -> Float[Tensor, " B"]:
        opened = _shared(torch.sigmoid(self.gate(past)), len(modulated))
        return self.weigh(self.dropout(opened * modulated)).squeeze(1)


class LinearReadout(nn.Module):
    """u = w . h_t + b."""

    def __init__(self, width: int, config: SteeringConfig) -> None:
        super().__init__()
        self.weigh = nn.Linear(config.hidden_size, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, modulated: Tensor, past: Tensor, present: Tensor) -> Float[Tensor, " B"]:
        return self.weigh(self.dropout(present)).squeeze(1)


class ContextReadout(nn.Module):
    """u = w . dropout(W h_t + V x). Source: the structure of Kim and Canny's released decoder."""

    def __init__(self, width: int, config: SteeringConfig) -> None:
        super().__init__()
        self.from_hidden = nn.Linear(config.hidden_size, 64)
        self.from_features = nn.Linear(width, 64)
        self.weigh = nn.Linear(64, 1)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, modulated: Tensor, past: Tensor, present: Tensor) -> Float[Tensor, " B"]:
        mixed = self.from_hidden(self.dropout(present)) + self.from_features(modulated)
        return self.weigh(self.dropout(mixed)).squeeze(1)


_READOUTS = {"gated": GatedReadout, "linear": LinearReadout, "context": ContextReadout}


def _whole(
    steps: Iterator[tuple[Scores, Attention, SteeringState]],
) -> tuple[Float[Tensor, "B T"], Float[Tensor, "B T h w"], SteeringState]:
    scores, maps, states = zip(*steps, strict=True)
    return torch.cat(scores, 1), torch.stack(maps, 1), states[-1]


def _folded(chain: nn.Sequential) -> nn.Sequential:
    folded: list[nn.Module] = []
    for layer in chain:
        if isinstance(layer, nn.BatchNorm2d):
            convolution = folded.pop()
            assert isinstance(convolution, nn.Conv2d)
            folded.append(fuse_conv_bn_eval(convolution, layer))
        else:
            folded.append(layer)
    return nn.Sequential(*folded).to(memory_format=torch.channels_last)


def _xavier(module: nn.Module) -> None:
    for name, parameter in module.named_parameters(recurse=False):
        if parameter.dim() > 1:
            nn.init.xavier_uniform_(parameter)
        elif "bias" in name:
            nn.init.zeros_(parameter)
