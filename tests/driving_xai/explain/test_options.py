"""Options of methods: what they set, what is refused in which words, and that runs tell them apart."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from driving_xai.errors import DataError, OptionError, UnsupportedModelError
from driving_xai.evaluation.config import ScoreConfig
from driving_xai.evaluation.explain_images import ExplainConfig
from driving_xai.evaluation.results import SUMMARY
from driving_xai.evaluation.run import score
from driving_xai.evaluation.sanity import SanityConfig
from driving_xai.explain.cam import GradCAM
from driving_xai.explain.gradient import HeavierSide, IntegratedGradients, SmoothGrad
from driving_xai.explain.lime import LIME, Grid
from driving_xai.explain.options import described, planned
from driving_xai.explain.perturbation import RISE, Occlusion
from driving_xai.explain.registry import FAMILIES, METHODS, fitted, options_of
from driving_xai.explain.vit.flow import AttentionGradient, GenericAttention, NormAttention
from driving_xai.explain.vit.smoothing import SNNA, AttentionIG
from driving_xai.explain.vit.tiles import tile_rows_for
from driving_xai.models.actions import ActionConfig, ActionModel
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.models.steering import SteeringConfig, SteeringModel
from driving_xai.replay.config import ReplayConfig
from driving_xai.targets import magnitude, output
from driving_xai.types import Cells
from tests.driving_xai.explain.transformers import TappedViT

SIZE = (32, 48)
CAMS = FAMILIES["class activation maps"]


def _steering() -> SteeringModel:
    torch.manual_seed(0)
    return SteeringModel(
        SteeringConfig(hidden_size=8, attention="sign", height=SIZE[0], width=SIZE[1])
    ).eval()


def _resnet() -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(classes=("a", "b"), network="resnet18", image_size=(64, 96))
    return Classifier(config).eval()


@pytest.mark.parametrize(
    ("name", "options", "twin"),
    [
        (
            "snna",
            {"samples": 3, "norms": "query", "product": "literal", "smoothing": "signed"},
            SNNA(samples=3, norms="query", product="literal", smoothing="signed", seed=3),
        ),
        ("snna", {"samples": 0, "noise": 1}, SNNA(samples=0)),
        (
            "attention-gradient",
            {"form": "last-block", "memory": "recompute"},
            AttentionGradient(form="last-block"),
        ),
        ("norm-attention", {"form": "heads"}, NormAttention(form="heads")),
        (
            "generic-attention",
            {"product": "literal", "tile_rows": 3},
            GenericAttention(product="literal"),
        ),
        (
            "attention-ig",
            {"mask": "pixels", "steps": 4},
            AttentionIG(mask="pixels", steps=4),
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_a_transformer_s_forms_are_reached_by_name(name, options, twin) -> None:
    model, frames = TappedViT(), torch.rand(2, 3, 24, 40, dtype=torch.float64)
    found = fitted(name, model, seed=3, options=options)(model, frames, output(1))
    torch.testing.assert_close(found, twin(model, frames, output(1)), rtol=1e-10, atol=1e-14)
    if name != "snna":
        plain = fitted(name, model, seed=3)(model, frames, output(1))
        assert not torch.allclose(found, plain, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "options", "twin"),
    [
        (
            "rise",
            {"masks": 20, "grid": 3, "normalisation": "centred", "fill": "mean"},
            RISE(samples=20, grid=3, normalisation="centred", fill="mean", seed=3),
        ),
        (
            "lime",
            {"samples": 60, "segmentation": "grid", "kernel_width": "none", "ridge": 0},
            LIME(segmentation=Grid(), samples=60, kernel_width=None, ridge=0, seed=3),
        ),
        (
            "integrated-gradients",
            {"steps": 3, "baseline": "blur", "rule": "middle"},
            IntegratedGradients(steps=3, fill="blur", rule="middle"),
        ),
        ("smoothgrad", {"samples": 2, "noisy": "free"}, SmoothGrad(samples=2, noisy="free", seed=3)),
        (
            "occlusion",
            {"window_px": [8, 12], "stride_px": [8, 12]},
            Occlusion(window_px=(8, 12), stride_px=(8, 12)),
        ),
        (
            "heavier-side-ig",
            {"steps": 3, "share": 0.1},
            HeavierSide(signed=IntegratedGradients(steps=3), share=0.1),
        ),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_options_as_toml_says_them_are_the_explainer_s_own(name, options, twin) -> None:
    model, frames = _steering(), torch.rand(2, 3, *SIZE)
    view = model.at(None)
    found = fitted(name, model, seed=3, options=options)(view, frames, magnitude)
    torch.testing.assert_close(found, twin(view, frames, magnitude), rtol=1e-5, atol=1e-9)


def test_every_option_says_what_it_takes_and_none_is_of_the_model_or_the_run() -> None:
    known = {name: set(options_of(name)) for name in METHODS}
    assert known["snna"] == {
        *("samples", "noise", "noise_std", "noise_on", "norms", "product", "smoothing", "memory", "tile_rows")
    }
    assert known["attention-guided-cam"] == {"layer", "cells", "parts", "attention", "reduction"}
    assert known["lime"] == {"segmentation", "samples", "shown", "kernel_width", "ridge", "fill"}
    assert "head" in known.pop("raw-attention"), "that of the attention, no layer of the model"
    assert not set().union(*known.values()) & {"seed", "batch_size", "vit", "head", "stages"}


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        (
            "snna",
            {"sample": 3},
            "options.snna.sample is no option; snna has samples, noise_std, noise_on, norms",
        ),
        ("snna", {"seed": 3}, "options.snna.seed is no option"),
        ("random", {"row": 1}, "options.random.row is no option; random has no options"),
        ("snna", {"samples": "three"}, "options.snna.samples is 'three'; expected a whole number"),
        ("snna", {"samples": True}, "is True; expected a whole number"),
        ("snna", {"noise": float("nan")}, "is nan; expected a number"),
        ("snna", {"norms": "both"}, "options.snna.norms is 'both'; expected one of none, key, query"),
        ("occlusion", {"window_px": [4]}, r"expected a list \[a whole number, a whole number\]"),
        ("lime", {"kernel_width": "wide"}, "is 'wide'; expected a number or none"),
    ],
)
def test_what_a_method_does_not_take_is_refused_before_there_is_a_model(name, options, said) -> None:
    recipes = [
        lambda: ScoreConfig(methods=(name,), options={name: options}),
        lambda: SanityConfig(methods=(name,), options={name: options}),
        lambda: ExplainConfig(methods=(name,), options={name: options}),
        lambda: ReplayConfig(method=name, options={name: options}),
    ]
    for recipe in recipes:
        with pytest.raises(OptionError, match=said):
            recipe()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"snna": {}}, r"options.snna is of no method of this run \(rise, random, centre-prior\)"),
        ({"rise": 3}, "options.rise is 3; expected a table"),
        ({"rise@few": {"masks": 3}}, "options.rise@few is of no method of this run"),
    ],
)
def test_options_of_a_method_that_does_not_run_are_refused(options, said) -> None:
    with pytest.raises(ValueError, match=said):
        ScoreConfig(methods=("rise",), options=options)


def test_numbers_of_numpy_are_options_and_are_checked() -> None:
    assert RISE(samples=np.int64(5), shown=np.float32(0.5)) == RISE(samples=5)
    assert type(RISE(samples=np.int64(5)).samples) is int
    with pytest.raises(OptionError, match=r"RISE.seed is 3.5; expected a whole number"):
        RISE(seed=np.float64(3.5))


def test_a_value_out_of_range_names_the_method() -> None:
    for name, options, said in (
        ("rise", {"masks": 0}, "method 'rise': got samples 0"),
        ("occlusion", {"window_px": [4, 4]}, "method 'occlusion': got window 4 px, stride 8 px"),
        ("centre-prior", {"spread": 0.0}, "method 'centre-prior': got spread 0.0, expected over 0"),
    ):
        with pytest.raises(OptionError, match=said):
            fitted(name, _steering(), options=options)
    with pytest.raises(OptionError, match="method 'snna': got samples -1; expected 0 or more"):
        fitted("snna", TappedViT(), options={"samples": -1})


@pytest.mark.parametrize("name", CAMS)
def test_a_cam_weighs_any_layer_named(name) -> None:
    model, frames = _resnet(), torch.rand(1, 3, 64, 96)
    explainer = fitted(name, model, options={"layer": "network.layer3"})
    at = explainer.feature_map(model, frames)
    assert at.layer is model.network.layer3
    # A ResNet pads every kernel by half of it: cells are centred on every sixteenth pixel.
    assert (at.head, at.cells) == (None, Cells(0.0, 16.0))
    assert explainer(model, frames, output(1)).isfinite().all()
    own = fitted(name, model, options={"layer": "network.layer4"}).feature_map(model, frames)
    assert own == fitted(name, model).feature_map(model, frames)
    assert (own.layer, own.cells) == (model.feature_map.layer, Cells(0.0, 32.0))


def test_a_layer_within_a_model_of_drives_is_placed_too() -> None:
    model, frames = _steering(), torch.rand(2, 3, *SIZE)
    explainer = fitted("grad-cam", model, options={"layer": "encoder.0"})
    cells = explainer.feature_map(model, frames).cells
    assert cells.stride_px == 2
    twin = GradCAM(layer=model.encoder[0], cells=cells)
    found = explainer(model.at(None), frames, magnitude)
    torch.testing.assert_close(found, twin(model.at(None), frames, magnitude))
    assert not torch.allclose(found, fitted("grad-cam", model)(model.at(None), frames, magnitude))


def test_a_layer_that_does_not_serve_is_refused_in_words_that_help() -> None:
    with pytest.raises(UnsupportedModelError, match=r"'network\.layer9' is unknown: network has conv1, bn1"):
        fitted("grad-cam", _resnet(), options={"layer": "network.layer9"})
    with pytest.raises(UnsupportedModelError, match="puts out no feature map of more than one cell"):
        fitted("xgrad-cam", nn.Sequential(nn.Flatten(2), nn.Linear(224 * 224, 2)))


def test_tiles_are_large_on_a_gpu_and_change_rounding_only() -> None:
    model, frames = TappedViT(), torch.rand(1, 3, 24, 40, dtype=torch.float64)
    expected = fitted("snna", model)(model, frames, output(0))
    assert tile_rows_for(SimpleNamespace(is_cuda=True), None) == 512
    assert tile_rows_for(SimpleNamespace(is_cuda=True), 64) == 64
    explainer = fitted("snna", model, options={"tile_rows": 512})
    assert explainer.noise_on == "cpu", "the same map on every device"
    torch.testing.assert_close(explainer(model, frames, output(0)), expected, rtol=1e-10, atol=1e-14)


def test_one_method_runs_twice_under_labels(actions, streets, tmp_path) -> None:
    config = ScoreConfig(
        methods=("snna", "snna@literal"),
        options={"snna": {"samples": 1}, "snna@literal": {"samples": 1, "product": "literal"}},
        measures=("deletion",),
        split="all",
        every=10,
    )
    checkpoint = actions()
    found = score(checkpoint, streets, tmp_path / "both", config)
    values = {
        name: found.select(method=name, measure="deletion", reference="target")["value"].tolist()
        for name in config.methods
    }
    assert values["snna"]
    assert values["snna"] != values["snna@literal"]
    assert found.summary["methods"] == ["snna", "snna@literal"]
    assert found.summary["plan"]["config"]["options"] == config.options
    alone = ScoreConfig(
        methods=("snna",), options={"snna": {"samples": 1, "product": "literal"}}, split="all", every=10
    )
    single = score(checkpoint, streets, tmp_path / "one", alone)
    assert (
        single.select(method="snna", measure="deletion", reference="target")["value"].tolist()
        == values["snna@literal"]
    )
    with pytest.raises(
        ValueError, match="'snna' twice, expected each once; with other options call it snna@LABEL"
    ):
        ScoreConfig(methods=("snna", "snna"))


def test_a_run_with_other_options_is_another_run(actions, streets, tmp_path) -> None:
    checkpoint, out = actions(), tmp_path / "out"
    plain = {"methods": ("rollout",), "split": "all", "every": 20}
    score(checkpoint, streets, out, ScoreConfig(**plain))
    assert "options" not in json.loads((out / SUMMARY).read_text())["plan"]["config"]
    chosen = ScoreConfig(**plain, options={"rollout": {"tile_rows": 64}})
    with pytest.raises(DataError, match="scored with another options; give another folder"):
        score(checkpoint, streets, out, chosen, resume=True)
    score(checkpoint, streets, tmp_path / "chosen", chosen)
    with pytest.raises(DataError, match="scored with another options; give another folder"):
        score(checkpoint, streets, tmp_path / "chosen", ScoreConfig(**plain), resume=True)


def test_a_caption_says_what_is_particular() -> None:
    assert described("snna", {"snna": {"samples": 3, "norms": "query"}}) == "snna samples=3 norms=query"
    assert described("snna", {}) == "snna"


def test_an_action_cnn_has_layers_too() -> None:
    torch.manual_seed(0)
    model = ActionModel(ActionConfig(backbone="resnet18")).eval()
    explainer = fitted("grad-cam", model, options={"layer": "cnn.layer2"})
    assert explainer.feature_map(model, torch.rand(1, 3, 64, 96)).cells == Cells(0.0, 8.0)


@pytest.mark.parametrize(
    "name", ["snna@", "snna@a/b", "snna@../x", "snna@x.y", "snna@a@b", "snna@" + 41 * "a"]
)
def test_a_label_is_part_of_a_file_s_name(name) -> None:
    with pytest.raises(ValueError, match="expected a label of up to 40 letters, digits, - and _ after one @"):
        ExplainConfig(methods=(name,))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("rise", {"masks": 10**20}),
        ("centre-prior", {"spread": 1e300}),
        ("integrated-gradients", {"max_gap": -1.0}),
    ],
)
def test_an_absurd_value_is_refused_before_anything_runs(name, options) -> None:
    with pytest.raises(OptionError, match=f"{name}"):
        fitted(name, _steering(), options=options)


def test_none_is_no_layer_s_name() -> None:
    model = _resnet()
    explainer = fitted("grad-cam", model, options={"layer": "none"})
    assert explainer.feature_map(model, torch.rand(1, 3, 64, 96)) == model.feature_map


def test_an_empty_table_of_options_is_none() -> None:
    plain = planned(ScoreConfig(methods=("rollout",)))
    assert planned(ScoreConfig(methods=("rollout",), options={"rollout": {}})) == plain
