"""Where a feature map lies in the frame: against receptive fields, and against interpolation."""

import pytest
import torch
import torch.nn.functional as F

from driving_xai.explain.grid import Cells, repeat_on_frame_grid, to_frame_grid
from driving_xai.models.steering import SteeringConfig, SteeringModel


@pytest.mark.parametrize("encoder", ["table-1", "table-1-kernels", "pseudo-code"])
def test_a_cell_is_drawn_where_its_receptive_field_is_centred(encoder: str) -> None:
    model = SteeringModel(SteeringConfig(hidden_size=4, encoder=encoder, normalisation="none")).eval()
    with torch.no_grad():
        for layer in model.encoder:
            if isinstance(layer, torch.nn.Conv2d):
                layer.weight.fill_(1e-3)
                layer.bias.zero_()
    frames = torch.ones(1, 3, 80, 160, requires_grad=True)
    features = model.encoder(frames)
    (seen,) = torch.autograd.grad(features[0, :, 5, 10].sum(), frames)
    seen = seen.abs().sum(1)[0]
    rows, columns = torch.arange(80.0), torch.arange(160.0)
    centre = (float(seen.sum(1) @ rows / seen.sum()), float(seen.sum(0) @ columns / seen.sum()))
    one_hot = torch.zeros(1, 10, 20)
    one_hot[0, 5, 10] = 1
    drawn = to_frame_grid(one_hot, frames, model.feature_map.cells)[0]
    peak = divmod(int(drawn.argmax()), 160)
    assert peak == pytest.approx(centre, abs=0.01)
    assert drawn.max() == 1


def test_even_cells_are_the_peers_interpolation() -> None:
    maps = torch.rand(2, 10, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    frames = torch.zeros(2, 3, 80, 160)
    expected = F.interpolate(maps[:, None], size=(80, 160), mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(to_frame_grid(maps, frames, Cells(3.5, 8)), expected)
    torch.testing.assert_close(to_frame_grid(maps, frames), expected)


def test_repeated_cells_are_the_nearest_ones() -> None:
    maps = torch.rand(2, 5, 7, generator=torch.Generator().manual_seed(0))
    frames = torch.zeros(2, 3, 40, 84)
    expected = F.interpolate(maps[:, None], size=(40, 84), mode="nearest-exact")[:, 0]
    assert torch.equal(repeat_on_frame_grid(maps, frames), expected)
    # Centred on every eighth pixel from the first on: the last cell reaches to the end.
    shifted = repeat_on_frame_grid(maps, frames, Cells(0, 8))
    for row in range(40):
        for column in range(84):
            nearest = min(row + 4, 39) // 8, min((column + 4) // 8, 6)
            assert torch.equal(shifted[:, row, column], maps[:, nearest[0], nearest[1]])


@pytest.mark.parametrize("cells", [None, Cells(0, 8), Cells(1.5, 5.3)])
def test_equal_cells_make_a_map_without_an_order(cells: Cells | None) -> None:
    """The weights of an interpolation add up to one only up to rounding."""
    maps = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(0))
    maps[1] = 1 / 6
    drawn = to_frame_grid(maps, torch.zeros(3, 3, 61, 47), cells)
    assert drawn[1].unique().tolist() == [maps[1, 0, 0].item()]
    alone = to_frame_grid(maps[[0, 2]], torch.zeros(2, 3, 61, 47), cells)
    assert torch.equal(drawn[[0, 2]], alone)
    assert all(each.unique().numel() > 1 for each in alone)


def test_cells_of_a_resized_frame_lie_where_the_resizing_puts_them() -> None:
    maps, frames = torch.rand(2, 3, 5), torch.rand(2, 3, 48, 100)
    even = Cells(first_px=3.5, stride_px=8, frame_px=(24, 40))
    torch.testing.assert_close(to_frame_grid(maps, frames, even), to_frame_grid(maps, frames))
    # One spot at twice the height and three times the width: pixel 4 of the network's is pixel 9 and 13 here.
    spot = torch.zeros(1, 3, 5)
    spot[0, 1, 1] = 1
    placed = to_frame_grid(spot, torch.rand(1, 3, 48, 120), Cells(2.0, 2.0, (24, 40)))[0]
    assert divmod(int(placed.argmax()), 120)[0] in (8, 9)
    assert divmod(int(placed.argmax()), 120)[1] == 13
