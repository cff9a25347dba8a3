"""Pictures for notebooks: frames and maps of any kind of number, and one line for what is no picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from driving_xai.errors import NonFiniteError
from driving_xai.viz import curve_plot, overlay, panel
from driving_xai.viz.heat import smoothed

torch.manual_seed(0)
BYTES = torch.randint(0, 256, (3, 8, 12), dtype=torch.uint8)
FRAME = BYTES.float() / 255
MAP = torch.rand(8, 12)
UNKNOWN = torch.where(MAP > 0.9, torch.nan, MAP)


def test_bytes_are_the_frame_that_they_are() -> None:
    expected = np.asarray(overlay(FRAME, MAP))
    for frame in (BYTES, FRAME.double(), FRAME.clone().requires_grad_(), FRAME + 1e-9):
        assert np.array_equal(np.asarray(overlay(frame, MAP)), expected)
    # A map of zeros is transparent, so that the frame itself is seen, enlarged by 60.
    seen = np.asarray(overlay(BYTES, torch.zeros(8, 12)))[30::60, 30::60]
    assert np.array_equal(seen, BYTES.permute(1, 2, 0).numpy())


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.int32, torch.bool])
def test_maps_of_any_number_are_drawn(kind) -> None:
    saliency = (MAP * 9).to(kind)
    assert np.array_equal(np.asarray(overlay(FRAME, saliency)), np.asarray(overlay(FRAME, saliency.float())))


@pytest.mark.parametrize(
    ("frame", "saliency", "message"),
    [
        (FRAME.permute(1, 2, 0), MAP, r"frame\.permute\(2, 0, 1\) puts the channels first"),
        (FRAME[None], MAP[None], r"got a frame of shape \(1, 3, 8, 12\); expected a tensor \(3, H, W\)$"),
        (FRAME[:1], MAP, "expected a tensor"),
        (FRAME[:, :0], MAP[:0], "expected a tensor"),
        (FRAME * 255, MAP, r"with values from \d to 25\d; expected RGB in \[0, 1\], or uint8"),
        ((FRAME - 0.45) / 0.22, MAP, r"values from -2\.\d+ to 2\.\d+; expected RGB"),
        (FRAME * torch.nan, MAP, "values from nan to nan"),
        (BYTES.int(), MAP, r"got a frame of torch\.int32"),
        (FRAME, MAP.T, r"got a map of shape \(12, 8\) for a frame of shape \(3, 8, 12\)"),
        (FRAME, MAP[None], "expected .H, W. of"),
    ],
)
def test_what_is_no_frame_or_no_map_of_it_is_one_line(frame, saliency, message) -> None:
    for draw in (lambda: overlay(frame, saliency), lambda: panel(frame, {"mine": saliency})):
        with pytest.raises(ValueError, match=message) as caught:
            draw()
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_map_that_is_not_finite_is_refused(value) -> None:
    """Colours of NaN would be those of the strongest evidence, or of none, by the processor's casts."""
    with pytest.raises(NonFiniteError, match="got a map with NaN or infinity"):
        overlay(FRAME, torch.where(MAP > 0.9, value, MAP))
    with pytest.raises(NonFiniteError, match="got a map with NaN or infinity"):
        panel(FRAME, {"good": MAP, "bad": UNKNOWN})


def test_a_curve_is_the_mean_of_the_frames_that_have_one() -> None:
    curves = torch.tensor([[1.0, 0.5, 0.0], [torch.nan, 0.5, 0.0], [0.0, 0.5, 1.0]])
    (line,) = curve_plot((0, 0.5, 1), {"mine": curves.bfloat16()}).axes[0].lines
    assert line.get_ydata().tolist() == [0.5, 0.5, 0.5]
    assert line.get_xdata().tolist() == [0, 50, 100]


@pytest.mark.parametrize(
    ("fractions", "curves", "message"),
    [
        ((0, 0.5, 1), {}, r"got curves of no method; expected one or more of \(B, 3\)"),
        (
            (0, 0.5, 1),
            {"a": torch.rand(3)},
            r"got curves a of shape \(3,\); expected one or more of \(B, 3\)",
        ),
        ((0, 0.5, 1), {"a": torch.rand(2, 2, 3)}, r"a of shape \(2, 2, 3\)"),
        ((0, 0.5, 1), {"a": torch.rand(2, 3), "b": torch.rand(2, 4)}, r"b of shape \(2, 4\)"),
        ((0, 0.5, 1), {"a": torch.rand(0, 3)}, "got no finite curve of a"),
        ((0, 0.5, 1), {"a": torch.full((2, 3), torch.nan)}, "got no finite curve of a"),
        (torch.rand(1, 3), {"a": torch.rand(2, 3)}, r"got fractions of shape \(1, 3\)"),
    ],
)
def test_what_is_no_curve_is_one_line(fractions, curves, message) -> None:
    with pytest.raises(ValueError, match=message):
        curve_plot(fractions, curves)


@pytest.mark.parametrize("sigma", [0.6, 2.0])
def test_the_blur_is_scipys_gaussian(sigma) -> None:
    values = torch.rand(24, 40).numpy()
    expected = gaussian_filter(values.astype(np.float64), sigma, mode="mirror", truncate=4.0)
    np.testing.assert_allclose(smoothed(values, sigma), expected, atol=1e-5)
    plain, blurred = (np.asarray(overlay(FRAME, MAP, smooth_px=width)) for width in (0, sigma))
    assert (plain != blurred).any()
    with pytest.raises(ValueError, match="got a blur of nan px; expected 0 or more"):
        overlay(FRAME, MAP, smooth_px=float("nan"))
