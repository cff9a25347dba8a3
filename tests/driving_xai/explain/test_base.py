"""What every explainer has from its base class: modes, sizes, copies, memory, checked keywords."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import weakref
from dataclasses import dataclass
from typing import Literal

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import driving_xai as dx
from driving_xai.errors import FrameSizeError, OptionError, UnsupportedModelError
from driving_xai.explain.base import Explainer
from driving_xai.explain.cam import GradCAM
from driving_xai.explain.gradient import Gradient, HeavierSide, IntegratedGradients
from driving_xai.explain.lime import LIME
from driving_xai.explain.perturbation import RISE, Occlusion
from driving_xai.explain.registry import METHODS, build, explainer_class, fitted, require_methods
from driving_xai.explain.visual_backprop import VisualBackProp, stages
from driving_xai.targets import output
from driving_xai.types import Cells


def small(*first: nn.Module) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        *first, nn.Conv2d(3, 6, 5, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)
    ).eval()


def transformer(**options) -> nn.Module:
    torch.manual_seed(0)
    shape = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **{**shape, **options}).eval()


def frames_of(height: int = 32, width: int = 32, count: int = 2) -> torch.Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


class Drops(nn.Module):
    """A module with parts in eval mode that reads its own mode."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.head = nn.Conv2d(3, 4, 4, 4), nn.Linear(4, 3)

    def forward(self, frames):
        return self.head(F.dropout(self.read(frames).mean((2, 3)), 0.5, self.training))


@pytest.mark.parametrize(
    ("network", "what"),
    [
        (Drops(), "Drops is in training mode"),
        (small(torchvision.ops.StochasticDepth(0.5, "row")).train(), r"layer 0 \(StochasticDepth\)"),
        (small(nn.Dropout()).train(), r"layer 0 \(Dropout\)"),
        (nn.Sequential(transformer().train(), nn.Identity()), r"layer 0 \(VisionTransformer\)"),
    ],
)
@pytest.mark.parametrize("name", ["gradient", "grad-cam", "random", "rollout"])
def test_whatever_may_draw_in_training_mode_is_refused(network, what, name) -> None:
    explainer = build(name)
    for ask in (
        lambda: explainer(network, frames_of(), output(1)),
        lambda: explainer.explain_each(network, frames_of(), [output(1)]),
        lambda: explainer.check(network, frames_of()),
    ):
        with pytest.raises(UnsupportedModelError, match=rf"{what}.*call eval\(\) on the model first"):
            ask()


def test_layers_of_torch_that_know_no_mode_may_be_in_any() -> None:
    network = nn.Sequential(small(), nn.Linear(3, 2), nn.Identity())
    assert network.training
    assert Gradient()(network, frames_of(), output(1)).abs().sum() > 0


@pytest.mark.parametrize(
    "name", ["gradient", "grad-cam", "integrated-gradients", "rise", "random", "captum:DeepLift"]
)
def test_a_network_that_works_in_place_on_its_frames_works_on_a_copy(name) -> None:
    options = {"samples": 8} if name == "rise" else {}
    explainer, frames = build(name, **options), frames_of() - 0.5
    given = frames.clone()
    found = explainer(small(nn.ReLU(inplace=True)), frames, output(1))
    assert torch.equal(frames, given)
    torch.testing.assert_close(found, explainer(small(nn.ReLU()), frames, output(1)))


def test_a_view_that_writes_on_frames_is_refused_in_one_line() -> None:
    class Writes:
        network = small()

        def __call__(self, frames):
            return self.network(frames.mul_(2))

    with pytest.raises(UnsupportedModelError, match="Writes writes on the frames"):
        GradCAM()(Writes(), frames_of(), output(1))


@pytest.mark.parametrize("name", ["gradient", "grad-cam", "rollout", "rise", "lime", "captum:Saliency"])
def test_frames_of_a_size_that_the_network_does_not_take_are_one_line(name) -> None:
    explainer, network = build(name), transformer()
    message = r"does not take frames of 64 x 48 px \(Input height \(64\) doesn't match model \(32\)"
    with pytest.raises(FrameSizeError, match=message):
        explainer(network, frames_of(64, 48), output(1))


def test_a_mistake_in_the_code_of_a_target_is_no_matter_of_the_size() -> None:
    def wrong(scores):
        raise RuntimeError("of the target")

    with pytest.raises(RuntimeError, match=r"^of the target"):
        Gradient()(small(), frames_of(), wrong)


def test_fitted_passes_over_sizes_only() -> None:
    assert isinstance(fitted("grad-cam", transformer()), GradCAM), (
        "it may take other frames than the sample's"
    )
    model = dx.wrap(small(nn.Flatten(2)), outputs="multiclass", names=("a", "b", "c"), size=(20, 20))
    with pytest.raises(UnsupportedModelError, match=r"^grad-cam: .*20 x 20"):
        fitted("grad-cam", model)

    class Broken(Explainer):
        def _explain(self, model, frames, target):
            raise NotImplementedError

        def _check(self, model, frames):
            raise RuntimeError("a mistake in the check")

    with pytest.raises(RuntimeError, match="a mistake in the check"):
        Broken().check(small(), frames_of())


@pytest.mark.parametrize("name", METHODS)
def test_no_frames_have_no_maps(name) -> None:
    maps = build(name)(small(), frames_of(count=0), output(1))
    assert maps.shape == (0, 32, 32)
    assert build(name).explain_each(small(), frames_of(count=0), [output(0), output(1)]).shape == (
        0,
        2,
        32,
        32,
    )


@pytest.mark.parametrize(
    "name",
    ["gradient", "smoothgrad", "integrated-gradients", "heavier-side-ig", "removal-pursuit"],
)
def test_a_model_without_a_gradient_is_refused_before_it_is_explained(name) -> None:
    network = small()

    def decides(frames):
        return F.one_hot(network(frames).argmax(1), 3).float()

    with pytest.raises(UnsupportedModelError, match="no gradient with respect to the frames"):
        build(name).check(decides, frames_of())
    build(name).check(network, frames_of())
    build("rise").check(decides, frames_of())


def test_a_layer_that_was_replaced_is_looked_for_again() -> None:
    network, explainer, frames = small(), GradCAM(), frames_of()
    explainer(network, frames, output(1))
    network[0] = nn.Conv2d(3, 6, 3, 2).eval()
    network[1] = nn.Tanh().eval()
    found = explainer(network, frames, output(1))
    torch.testing.assert_close(found, GradCAM()(network, frames, output(1)), rtol=0, atol=0)
    assert explainer.feature_map(network, frames).layer is network[1]
    assert explainer.feature_map(network, frames).cells == Cells(1.0, 2.0)


@pytest.mark.parametrize(
    ("name", "made"), [("rollout", transformer), ("grad-cam", small), ("visual-backprop", small)]
)
def test_what_is_remembered_keeps_no_network_alive(name, made) -> None:
    network, explainer = made(), build(name)
    explainer(network, frames_of(), output(1))
    assert explainer._found
    gone = weakref.ref(network)
    del network
    gc.collect()
    assert gone() is None
    assert not explainer._found


def test_what_two_functions_of_one_name_found_is_kept_apart() -> None:
    def named(value):
        def find(model, frames):
            return value

        return find

    explainer, network = Gradient(), small()
    first, second = named(1), named(2)
    for _ in range(2):
        assert [explainer._remembered(network, frames_of(), each) for each in (first, second)] == [1, 2]


def test_copies_look_for_themselves() -> None:
    explainer, network = GradCAM(), small()
    expected = explainer(network, frames_of(), output(1))
    for other in (copy.deepcopy(explainer), pickle.loads(pickle.dumps(explainer))):
        assert "_found" not in other.__dict__
        assert torch.equal(other(network, frames_of(), output(1)), expected)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GradCAM(cells="masured"), "GradCAM.cells is 'masured'; expected one of measured, even; did you mean measured"),
        (lambda: Gradient(channels="absolute"), "Gradient.channels is 'absolute'; expected one of sum, abs"),
        (lambda: Gradient(times="inputs"), "did you mean input?"),
        (lambda: IntegratedGradients(rule="midle"), "did you mean middle?"),
        (lambda: IntegratedGradients(fill="blak"), "did you mean black?"),
        (lambda: RISE(normalisation="observe"), "did you mean observed?"),
        (lambda: RISE(samples=4.5), "RISE.samples is 4.5; expected a whole number"),
        (lambda: Occlusion(window_px=(8,)), r"Occlusion.window_px is \(8,\); expected a list"),
        (lambda: LIME(segmentation="slik"), "did you mean slic?"),
    ],
)  # fmt: skip
def test_a_misspelt_choice_in_python_is_no_other_method(make, message) -> None:
    with pytest.raises(OptionError, match=message.replace("?", r"\?")):
        make()


@pytest.mark.parametrize("name", METHODS)
def test_every_class_checks_its_choices(name) -> None:
    """One that has a `__post_init__` of its own must call its base's."""
    entry = METHODS[name]
    made = explainer_class(entry)
    choices = [
        each for each, hint in made.__dataclass_fields__.items() if "Literal" in str(hint.type) or hint.type in
        ("Fill", "Rule", "Channels", "Product", "Memory", "ValueNorms", "Sign", "Direction", "Parts")
    ]  # fmt: skip
    for choice in choices:
        with pytest.raises(OptionError, match=f"{made.__name__}.{choice} is 'no such'"):
            made(**{each: Gradient() for each in entry.inner}, **{choice: "no such"})


def test_values_of_python_and_of_text_are_one() -> None:
    assert Occlusion(window_px=[8, 12], stride_px=[8, 12]) == Occlusion(window_px=(8, 12), stride_px=(8, 12))
    assert LIME(kernel_width="none").kernel_width is None

    @dataclass(frozen=True, kw_only=True)
    class Own(Explainer):
        how: Literal["this", "that"] = "this"

        def _explain(self, model, frames, target):
            return frames.mean(1)

    with pytest.raises(
        OptionError, match=re.escape("Own.how is 'thus'; expected one of this, that; did you mean this?")
    ):
        Own(how="thus")


def test_build_takes_what_python_can_say_and_text_cannot() -> None:
    network = small()
    assert build("grad-cam", cells=Cells(1.0, 2.0)).cells == Cells(1.0, 2.0)
    assert build("grad-cam", layer=network[0]).layer is network[0]
    chain = stages(network)
    torch.testing.assert_close(
        build("visual-backprop", stages=chain)(network, frames_of(), output(1)),
        VisualBackProp()(network, frames_of(), output(1)),
    )
    assert isinstance(build("heavier-side-ig", signed=Gradient(), share=0.5).signed, Gradient)
    with pytest.raises(OptionError, match=r"options\.grad-cam\.stages"):
        build("grad-cam", stages=chain)
    with pytest.raises(OptionError, match=r"options\.gradient\.times"):
        build("gradient", times="input")


def test_options_of_an_object_inside_are_set_there() -> None:
    inner = IntegratedGradients(steps=3)
    with pytest.raises(
        OptionError, match="steps is an option of signed, which is given as an object; set it there"
    ):
        build("heavier-side-ig", signed=inner, steps=5)
    assert build("heavier-side-ig", signed=inner) == HeavierSide(signed=inner)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("GradCAM", "grad-cam"),
        ("gradcam", "grad-cam"),
        ("RISE", "rise"),
        ("VisualBackProp", "visual-backprop"),
    ],
)
def test_the_name_of_a_class_leads_to_that_of_its_method(given, meant) -> None:
    for ask in (lambda: build(given), lambda: require_methods([given], {})):
        with pytest.raises(ValueError, match=rf"did you mean {meant}\?$"):
            ask()


@pytest.mark.parametrize("name", ["raw-attention", "rollout", "norm-attention", "generic-attention", "snna"])
@pytest.mark.parametrize("options", [{"global_pool": "avg"}, {"global_pool": "avg", "class_token": False}])
def test_a_transformer_that_pools_its_tokens_has_no_attention_of_cls(name, options) -> None:
    network = transformer(**options)
    with pytest.raises(UnsupportedModelError, match=r"global_pool='avg'.*use grad-cam, a gradient or"):
        build(name)(network, frames_of(), output(1))
    build("grad-cam").check(network, frames_of())
    assert build("gradient")(network, frames_of(), output(1)).abs().sum() > 0


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "efficientnet_b0"])
def test_a_stem_is_no_encoder(name) -> None:
    torch.manual_seed(0)
    network = torchvision.models.get_model(name, num_classes=3).eval()
    for ask in (
        lambda: VisualBackProp().check(network, frames_of(64, 64)),
        lambda: VisualBackProp()(network, frames_of(64, 64), output(1)),
    ):
        with pytest.raises(
            UnsupportedModelError, match="no plain chain of layers from the frame to its last"
        ):
            ask()
