"""Single images explained: what the picture shows and what the numbers say."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data_prep.geometry import Geometry
from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.data.input_rule import InputRule
from driving_xai.errors import DataError, NonFiniteError, UnsupportedModelError
from driving_xai.evaluation.explain_images import ExplainConfig, explain_images
from driving_xai.explain.registry import fitted
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.targets import magnitude
from driving_xai.viz.heat import enlargement

GEOMETRY = Geometry(height=32, width=48, crop_top=0.5)


def saved(path: Path, kind: str, model: torch.nn.Module, input_rule: dict) -> Checkpoint:
    config = {"kind": kind, "model": asdict(model.config), "input": input_rule}
    checkpoint.save(path, model, config, {})
    return checkpoint.load(path)


@pytest.fixture
def steering(tmp_path) -> Checkpoint:
    torch.manual_seed(0)
    how = SteeringConfig(attention="soft", hidden_size=8, height=32, width=48, temperature=0.2)
    return saved(
        tmp_path / "steering", "steering", SteeringModel(how), {"geometry": asdict(GEOMETRY), "vehicle": None}
    )


@pytest.fixture
def actions(tmp_path) -> Checkpoint:
    torch.manual_seed(0)
    tiny = {"backbone": "vit_tiny_patch16_224", "embed_dim": 24, "depth": 2, "blocks": 2, "heads": 2}
    model = ActionModel(ActionConfig(**tiny, image_size=(32, 48)))
    with torch.no_grad():
        model.head.bias.copy_(torch.tensor([2.0, -2.0, 2.0, -2.0]))
    return saved(tmp_path / "actions", "actions", model, {"geometry": None, "short_side_px": 32})


@pytest.fixture
def image(tmp_path) -> Path:
    path = tmp_path / "frame.png"
    pixels = np.random.default_rng(0).integers(0, 256, (120, 160, 3), dtype=np.uint8)
    cv2.imwrite(str(path), pixels)
    return path


def test_the_map_lies_on_the_part_that_the_model_sees(steering, image, tmp_path):
    config = ExplainConfig(methods=("soft-attention", "random"), save_maps=True)
    (told,) = explain_images(steering, [image], tmp_path / "out", config)
    found = json.loads(told.read_text())
    assert found["seen"] == {"region": {"top": 60, "bottom": 120, "left": 0, "right": 160}, "size": [32, 48]}
    assert [each["method"] for each in found["maps"]] == ["soft-attention", "random"]
    source = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
    frames = torch.from_numpy(GEOMETRY.apply(source)).permute(2, 0, 1)[None].float() / 255
    view = steering.model.at(None)
    with torch.no_grad():
        assert found["scores"]["inverse turning radius"]["value"] == pytest.approx(view(frames).item())
    expected = fitted("soft-attention", steering.model)(view, frames, magnitude)[0].numpy()
    of_attention = found["maps"][0]
    np.testing.assert_array_equal(np.load(tmp_path / "out" / of_attention["files"]["map"]), expected)
    highest = of_attention["highest"]
    assert (
        expected[highest["row"], highest["column"]] == expected.max() == pytest.approx(of_attention["high"])
    )
    picture = cv2.imread(str(tmp_path / "out" / of_attention["files"]["picture"]))
    larger = cv2.resize(cv2.imread(str(image)), (640, 480), interpolation=cv2.INTER_CUBIC)
    assert picture.shape == (480 + 26, 640, 3)
    np.testing.assert_array_equal(picture[:240], larger[:240], "what the model does not see is untouched")
    assert (picture[240:480] != larger[240:]).mean() > 0.2


def test_each_predicted_action_gets_its_map(actions, image, tmp_path):
    config = ExplainConfig(methods=("gradient",), target="every-predicted")
    (told,) = explain_images(actions, [image], tmp_path / "out", config)
    found = json.loads(told.read_text())
    likely = [name for name, score in found["scores"].items() if score["probability"] > 0.5]
    assert likely == ["forward", "left"] == [each["target"] for each in found["maps"]]
    assert found["seen"]["size"] == [32, 42]
    names = {each["files"]["picture"] for each in found["maps"]}
    assert names == {"frame.gradient.forward.png", "frame.gradient.left.png"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names | {"frame.json"}


def test_predicted_is_the_highest_and_a_named_action_is_taken(actions, image, tmp_path):
    for target, expected in ((None, "forward"), ("stop", "stop")):
        config = ExplainConfig(methods=("gradient",), target=target)
        (told,) = explain_images(actions, [image], tmp_path / str(target), config)
        assert json.loads(told.read_text())["maps"][0]["target"] == expected


def test_what_cannot_be_explained_is_one_line(actions, image, tmp_path):
    text = tmp_path / "text.jpg"
    text.write_text("no image")
    twin = tmp_path / "other" / "frame.png"
    how = ExplainConfig(methods=("gradient",))
    for images, message in (
        ([tmp_path / "none.png"], "no such image; give a JPEG or PNG file"),
        ([text], "neither JPEG nor PNG"),
        ([image, twin], "two images are called 'frame'"),
    ):
        with pytest.raises(DataError, match=message):
            explain_images(actions, images, tmp_path / "out", how)
    with pytest.raises(DataError, match="'sideways' is unknown"):
        explain_images(
            actions, [image], tmp_path / "out", ExplainConfig(methods=("gradient",), target="sideways")
        )
    for methods in ((), ("cam",)):
        with pytest.raises(ValueError, match="expected some of: sign-attention"):
            ExplainConfig(methods=methods)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_prediction_that_is_not_finite_is_refused(actions, image, tmp_path, value):
    """Its gradient may well be finite."""
    with torch.no_grad():
        actions.model.head.bias[0] = value
    with pytest.raises(NonFiniteError, match=f"{image.name}: its prediction is NaN or infinite"):
        explain_images(actions, [image], tmp_path / "maps", ExplainConfig(methods=("gradient",)))
    assert not [*(tmp_path / "maps").glob("*.json")]


def test_a_rule_cuts_first_and_resizes_then():
    image = np.random.default_rng(0).integers(0, 256, (100, 200, 3), dtype=np.uint8)
    rule = InputRule(geometry=Geometry(height=50, width=100, crop_bottom=0.2), short_side_px=25)
    assert rule.apply(image).shape == (25, 50, 3)
    assert tuple(rule.region(100, 200)) == (0, 80, 0, 200)
    whole = InputRule(geometry=None, short_side_px=None)
    assert whole.apply(image) is image
    assert tuple(whole.region(100, 200)) == (0, 100, 0, 200)


@pytest.mark.parametrize("edit", ["deletion", "insertion"])
def test_edited_frames_are_those_of_one_edit_after_the_other(actions, image, tmp_path, edit):
    """A slow twin of pictures and numbers: the pixels in the order of the map, each percent by itself."""
    config = ExplainConfig(
        methods=("gradient",), target="stop", edited=(0, 5, 25, 100), edit=edit, fill="mean", save_maps=True
    )
    (written,) = explain_images(actions, [image], tmp_path / "out", config)
    found = json.loads(written.read_text())
    (entry,) = found["maps"]
    assert found["edits"] == {"edit": edit, "fill": "mean"}
    assert [each["percent"] for each in entry["edited"]] == [0, 5, 25, 100]
    saliency = np.load(tmp_path / "out" / entry["files"]["map"])
    order = np.argsort(-saliency, axis=None, kind="stable")
    height, width = saliency.shape
    source = cv2.cvtColor(cv2.imread(str(image)), cv2.COLOR_BGR2RGB)
    pixels = np.ascontiguousarray(InputRule.of(actions).apply(source))
    frame = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
    mean = frame.mean((1, 2), keepdim=True).expand_as(frame)
    drawn = cv2.imread(str(tmp_path / "out" / entry["files"]["edited"]))[..., ::-1]
    factor = enlargement(height, width)
    for number, each in enumerate(entry["edited"]):
        first = np.zeros(height * width, dtype=bool)
        first[order[: round(each["percent"] / 100 * height * width)]] = True
        removed = torch.from_numpy(first if edit == "deletion" else ~first).view(height, width)
        edited = torch.where(removed, mean, frame)
        with torch.no_grad():
            assert each["value"] == pytest.approx(
                actions.model(edited[None]).sigmoid()[0, 1].item(), rel=1e-4
            )
        left = number * (width * factor + 4)
        shown = drawn[: height * factor : factor, left : left + width * factor : factor]
        expected = (edited * 255).round().byte().permute(1, 2, 0).numpy()
        np.testing.assert_array_equal(shown, expected)


def test_edited_frames_of_steering_say_its_output(steering, image, tmp_path):
    config = ExplainConfig(methods=("random",), edited=(0, 50))
    (written,) = explain_images(steering, [image], tmp_path / "out", config)
    found = json.loads(written.read_text())
    whole = found["maps"][0]["edited"][0]["value"]
    assert whole == pytest.approx(found["scores"]["inverse turning radius"]["value"], rel=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"edited": (5, 5)}, "expected rising percents from 0 to 100"),
        ({"edited": (0, 101)}, "expected rising percents from 0 to 100"),
        ({"edited": (5,), "fill": "white"}, "fill is 'white'; expected one of black, mean, blur"),
        ({"fill": "mean"}, "and no edited frames"),
    ],
)
def test_edits_that_say_nothing_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExplainConfig(methods=("gradient",), **settings)


def test_percents_of_too_few_pixels_are_refused(steering, image, tmp_path):
    config = ExplainConfig(methods=("random",), edited=(1, 1.001))
    with pytest.raises(DataError, match="expected rising steps of a pixel or more"):
        explain_images(steering, [image], tmp_path / "out", config)


def tile_of(panel: np.ndarray, row: int, column: int, height: int) -> np.ndarray:
    """One picture of a panel, without its caption."""
    top, left = row * (height + 26 + 4) + 26, column * (480 + 4)
    return panel[top : top + height, left : left + 480]


def test_a_panel_holds_every_map_of_every_model(steering, image, tmp_path):
    """Each tile is the picture of a run of that model and method alone, shrunk."""
    torch.manual_seed(5)
    other = saved(
        tmp_path / "other", "steering", SteeringModel(steering.model.config), dict(steering.config["input"])
    )
    config = ExplainConfig(methods=("soft-attention", "gradient"), panel=True)
    (told,) = explain_images(steering, [image], tmp_path / "out", config, others={"seed 5": other})
    found = json.loads(told.read_text())
    assert found["panel"]["file"] == "frame.panel.png"
    (beside,) = found["panel"]["others"]
    assert (beside["label"], beside["checkpoint"]["sha256"]) == ("seed 5", other.sha256)
    panel = cv2.imread(str(tmp_path / "out" / "frame.panel.png"))
    assert panel.shape == (2 * (360 + 26 + 4), 3 * 484 - 4, 3)
    for row, model in enumerate((steering, other)):
        alone = tmp_path / f"alone-{row}"
        explain_images(model, [image], alone, ExplainConfig(methods=config.methods))
        for column, method in enumerate(config.methods, start=1):
            picture = cv2.imread(str(alone / f"frame.{method}.magnitude.png"))[:480]
            expected = cv2.resize(picture, (480, 360), interpolation=cv2.INTER_AREA)
            np.testing.assert_array_equal(tile_of(panel, row, column, 360), expected)
    one = ExplainConfig(methods=("soft-attention",), panel=True, label="T = 0.2")
    explain_images(steering, [image], tmp_path / "grid", one, others={f"T = {n}": other for n in range(4)})
    assert json.loads((tmp_path / "grid" / "frame.json").read_text())["panel"]["label"] == "T = 0.2"
    grid = cv2.imread(str(tmp_path / "grid" / "frame.panel.png"))
    assert grid.shape == (2 * 390, 4 * 484 - 4, 3), "the image and five maps, four in a row"
    np.testing.assert_array_equal(tile_of(grid, 1, 0, 360), tile_of(grid, 1, 1, 360))


def test_every_head_is_drawn_and_their_mean_is_the_map_of_all(actions, image, tmp_path):
    config = ExplainConfig(methods=("raw-attention", "gradient"), heads="each", save_maps=True, panel=True)
    (told,) = explain_images(actions, [image], tmp_path / "heads", config)
    found = json.loads(told.read_text())
    names = [each["method"] for each in found["maps"]]
    assert names == ["raw-attention@head-0", "raw-attention@head-1", "gradient"]
    heads = [np.load(tmp_path / "heads" / each["files"]["map"]) for each in found["maps"][:2]]
    explain_images(
        actions, [image], tmp_path / "mean", ExplainConfig(methods=("raw-attention",), save_maps=True)
    )
    mean = np.load(tmp_path / "mean" / "frame.raw-attention.forward.npy")
    np.testing.assert_allclose(np.mean(heads, 0), mean, atol=1e-7)
    assert not np.allclose(heads[0], heads[1])


def test_the_blur_is_of_the_picture_alone(steering, image, tmp_path):
    plain = ExplainConfig(methods=("gradient",), save_maps=True)
    blurred = ExplainConfig(methods=("gradient",), save_maps=True, smooth_px=3)
    for name, config in (("plain", plain), ("blurred", blurred)):
        explain_images(steering, [image], tmp_path / name, config)
    name = "frame.gradient.magnitude"
    maps = [np.load(tmp_path / each / f"{name}.npy") for each in ("plain", "blurred")]
    np.testing.assert_array_equal(*maps)
    pictures = [cv2.imread(str(tmp_path / each / f"{name}.png")) for each in ("plain", "blurred")]
    assert (pictures[0] != pictures[1]).mean() > 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"label": "T = 1"}, "no panel to write it in"),
        ({"heads": "each"}, "which raw-attention alone has"),
        (
            {
                "methods": ("raw-attention",),
                "heads": "each",
                "options": {"raw-attention": {"head": 1}},
            },
            "give one of them",
        ),
        ({"smooth_px": -1.0}, "smooth_px"),
        ({"attention_derivative": "real"}, "attention_derivative"),
    ],
)
def test_drawing_that_would_say_nothing_is_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExplainConfig(**{"methods": ("gradient",), **settings})


def test_models_without_a_panel_or_a_label_of_their_own_are_refused(steering, actions, image, tmp_path):
    for panel, label, message in ((False, "b", "no panel"), (True, "steering", "two models called")):
        how = ExplainConfig(methods=("gradient",), panel=panel)
        with pytest.raises(ValueError, match=message):
            explain_images(steering, [image], tmp_path / "out", how, others={label: actions})
    how = ExplainConfig(methods=("gradient",), attention_derivative="straight-through")
    for model, message in ((steering, "has no signs"), (actions, "holds kind 'actions'")):
        with pytest.raises(UnsupportedModelError, match=message):
            explain_images(model, [image], tmp_path / "out", how)
