"""Explainers of other libraries: the same numbers as in their plain use, and nothing of the model is left changed."""

import sys
import warnings
from collections import OrderedDict
from importlib.metadata import EntryPoint

import captum.attr
import numpy as np
import pytest
import pytorch_grad_cam
import torch
import torchvision
import zennit.attribution
import zennit.canonizers
import zennit.composites
import zennit.torchvision
from pytorch_grad_cam.utils.image import scale_cam_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
from torch import nn

from driving_xai import targets
from driving_xai.errors import OptionError, UnsupportedModelError
from driving_xai.explain import adapters
from driving_xai.explain.adapters import load_explainer
from driving_xai.explain.cam import GradCAM

CAPTUM = {
    "Saliency": {},
    "InputXGradient": {},
    "IntegratedGradients": {"n_steps": 8},
    "GradientShap": {"n_samples": 3, "stdevs": 0.1},
    "Occlusion": {"sliding_window_shapes": (3, 4, 4), "strides": (3, 2, 2)},
    "DeepLift": {},
    "GuidedBackprop": {},
    "Deconvolution": {},
}
CAMS = (
    *("GradCAM", "HiResCAM", "GradCAMElementWise", "GradCAMPlusPlus", "XGradCAM", "LayerCAM"),
    *("ScoreCAM", "EigenCAM", "EigenGradCAM", "RandomCAM"),
)
ZENNIT = ("EpsilonPlus", "EpsilonPlusFlat", "EpsilonAlpha2Beta1", "GuidedBackprop", "ExcitationBackprop")
EVERY = (
    *(f"captum:{name}" for name in CAPTUM),
    *(f"grad-cam:{name}" for name in CAMS),
    *(f"zennit:{name}" for name in ZENNIT),
)


def network(*, inplace: bool = False) -> nn.Sequential:
    """Its last feature map is as large as the frame, so that nothing is upsampled."""
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 6, 3, padding=1),
            norm=nn.BatchNorm2d(6),
            one=nn.ReLU(inplace=inplace),
            second=nn.Conv2d(6, 5, 3, padding=1),
            two=nn.ReLU(inplace=inplace),
            pool=nn.AdaptiveAvgPool2d(1),
            flat=nn.Flatten(),
            head=nn.Linear(5, 3),
        )
    ).double().eval()  # fmt: skip


def frames(count: int = 3) -> torch.Tensor:
    return torch.rand(count, 3, 20, 24, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def seeded(run):
    """As adapters do it: random numbers from seed 0, and no warnings."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        return run()


@pytest.mark.parametrize("name", CAPTUM)
def test_captums_numbers(name) -> None:
    net, shown, options = network(), frames(), CAPTUM[name]
    found = load_explainer(f"captum:{name}", **options)(net, shown, targets.output(1))
    extra = {"baselines": torch.zeros_like(shown[:1])} if name == "GradientShap" else {}
    plain = seeded(
        lambda: getattr(captum.attr, name)(net).attribute(
            shown.clone().requires_grad_(), target=1, **options, **extra
        )
    )
    torch.testing.assert_close(found, plain.sum(1).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", CAMS)
def test_grad_cams_numbers_before_they_are_stretched(name) -> None:
    net, shown = network(), frames()
    found = load_explainer(f"grad-cam:{name}", layer="second")(net, shown, targets.output(1))

    def plain():
        with getattr(pytorch_grad_cam, name)(net, [net.second]) as cam:
            return cam(shown.clone(), targets=[ClassifierOutputTarget(1)] * len(shown))

    # The library stretches the map of a layer, and then their mean once more.
    stretched = scale_cam_image(scale_cam_image(found.numpy()))
    np.testing.assert_allclose(stretched, seeded(plain), rtol=0, atol=1e-6)
    assert found.amin() >= 0
    assert not np.allclose(found.amax((1, 2)), 1, atol=1e-3), "raw, and not stretched to [0, 1]"


def test_a_cam_of_the_library_lies_where_ours_does() -> None:
    """Cells of padded, strided convolutions are centred off an even grid: what is compared is the method alone."""
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 5, 3, 2, 1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)),
    ).double().eval()  # fmt: skip
    theirs = load_explainer("grad-cam:GradCAM")(net, frames(), targets.output(1))
    torch.testing.assert_close(theirs, GradCAM()(net, frames(), targets.output(1)), rtol=1e-6, atol=1e-9)
    assert not torch.allclose(theirs, GradCAM(cells="even")(net, frames(), targets.output(1)), rtol=1e-3)


@pytest.mark.parametrize("name", ZENNIT)
def test_zennits_numbers(name) -> None:
    net, shown = network(), frames()
    found = load_explainer(f"zennit:{name}")(net, shown, targets.output(1))
    composite = getattr(zennit.composites, name)(canonizers=[zennit.canonizers.SequentialMergeBatchNorm()])
    with zennit.attribution.Gradient(net, composite) as attributor:
        _, relevance = attributor(shown.clone(), torch.eye(3, dtype=torch.float64)[[1] * len(shown)])
    torch.testing.assert_close(found, relevance.sum(1), rtol=1e-10, atol=1e-12)


def test_zennit_reads_relevance_behind_the_models_own_normalisation() -> None:
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = network()

        def forward(self, shown):
            return self.net((shown - 0.4) / torch.tensor([0.1, 0.2, 0.4], dtype=shown.dtype)[:, None, None])

    whole, shown = Normalised().eval(), frames()
    inside = (shown - 0.4) / torch.tensor([0.1, 0.2, 0.4], dtype=shown.dtype)[:, None, None]
    explain = load_explainer("zennit:EpsilonPlus")
    torch.testing.assert_close(
        explain(whole, shown, targets.output(1)), explain(whole.net, inside, targets.output(1))
    )


def test_zennits_numbers_on_torchvisions_residual_network() -> None:
    torch.manual_seed(0)
    net = torchvision.models.resnet18(weights=None, num_classes=3).double().eval()
    shown = torch.rand(2, 3, 64, 64, dtype=torch.float64)
    found = load_explainer("zennit:EpsilonPlusFlat")(net, shown, targets.output(1))
    composite = zennit.composites.EpsilonPlusFlat(canonizers=[zennit.torchvision.ResNetCanonizer()])
    for module in net.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    with zennit.attribution.Gradient(net, composite) as attributor:
        _, relevance = attributor(shown.clone(), torch.eye(3, dtype=torch.float64)[[1, 1]])
    torch.testing.assert_close(found, relevance.sum(1), rtol=1e-8, atol=1e-12)


def state_of(net: nn.Module) -> list:
    return [
        (module.training, getattr(module, "inplace", None), *(len(getattr(module, hooks)) for hooks in
         ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")))
        for module in net.modules()
    ]  # fmt: skip


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("text", EVERY)
def test_nothing_of_the_model_is_left_changed(text, fails) -> None:
    net, shown = network(inplace=True), frames()
    net.norm.training = False
    net.flat.training = True
    net.head.weight.grad = torch.ones_like(net.head.weight)
    net.first.weight.requires_grad_(False)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes, copy = state_of(net), shown.clone()
    torch.manual_seed(5)
    np.random.seed(5)  # noqa: NPY002
    drawn = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    calls = []

    def target(scores):
        calls.append(1)
        if fails and len(calls) > 1:
            raise RuntimeError("no such\nluck")
        return scores[:, 1]

    explain = load_explainer(text)
    # EigenCAM asks for no target.
    if fails and text != "grad-cam:EigenCAM":
        with pytest.raises(UnsupportedModelError, match="no such") as caught:
            explain(net, shown, target)
        assert "\n" not in str(caught.value)
    else:
        with torch.no_grad():
            found = explain(net, shown, target)
        assert not found.requires_grad
    assert state_of(net) == modes
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert torch.equal(net.head.weight.grad, torch.ones_like(net.head.weight))
    assert net.second.weight.grad is None
    assert not net.first.weight.requires_grad
    assert torch.equal(shown, copy)
    assert torch.equal(torch.random.get_rng_state(), drawn[0])
    assert np.array_equal(np.random.get_state()[1], drawn[1])  # noqa: NPY002


@pytest.mark.parametrize("text", [each for each in EVERY if "Shap" not in each and "Random" not in each])
def test_a_frames_map_does_not_depend_on_its_batch_nor_on_in_place_activations(text) -> None:
    net, shown = network(), frames()
    columns = torch.tensor([2, 0, 1])

    def own_class(scores):
        # Of B frames, or of the V variants of each: those of one frame stand together.
        return scores.gather(1, columns.repeat_interleave(len(scores) // 3)[:, None])[:, 0]

    explain = load_explainer(text)
    together = explain(network(inplace=True), shown, own_class)
    for row, column in enumerate(columns):
        alone = explain(net, shown[row : row + 1], targets.output(int(column)))
        torch.testing.assert_close(together[row], alone[0], rtol=1e-6, atol=1e-9)


class Instants:
    """A view of three drives, each with an offset of its own; edited frames stand together by drive."""

    def __init__(self, net: nn.Module, offsets: torch.Tensor) -> None:
        self.network, self.offsets = net, offsets

    def __call__(self, shown):
        offsets = self.offsets.repeat_interleave(len(shown) // len(self.offsets))
        return self.network(shown * offsets[:, None, None, None])


@pytest.mark.parametrize("text", EVERY)
def test_a_drives_instants_keep_their_pasts_apart_or_are_refused(text) -> None:
    net, shown, offsets = network(), frames(), torch.tensor([1.0, -1.0, 2.0], dtype=torch.float64)
    explain = load_explainer(text)
    alone = [
        explain(Instants(net, offsets[row : row + 1]), shown[row : row + 1], targets.output(1))
        for row in range(3)
    ]
    if text in ("captum:DeepLift", "captum:GuidedBackprop", "captum:Deconvolution") or "captum" not in text:
        with pytest.raises(UnsupportedModelError, match="one frame at a time"):
            explain(Instants(net, offsets), shown, targets.output(1))
        return
    together = explain(Instants(net, offsets), shown, targets.output(1))
    if "Shap" not in text:
        torch.testing.assert_close(together, torch.cat(alone))


def test_what_does_not_fit_is_one_line() -> None:
    shared = nn.ReLU()
    twice = nn.Sequential(
        nn.Conv2d(3, 4, 3), shared, nn.Conv2d(4, 4, 3), shared, nn.Flatten(), nn.Linear(1280, 2)
    )
    with pytest.raises(UnsupportedModelError, match="captum:DeepLift does not run on Sequential") as caught:
        load_explainer("captum:DeepLift")(twice.double().eval(), frames(), targets.output(1))
    assert "\n" not in str(caught.value)
    with pytest.raises(UnsupportedModelError, match="training mode"):
        load_explainer("captum:Saliency")(network().train(), frames(), targets.output(1))
    with pytest.raises(UnsupportedModelError, match="layer 'third' is unknown"):
        load_explainer("grad-cam:GradCAM", layer="third")(network(), frames(), targets.output(1))
    with pytest.raises(UnsupportedModelError, match=r"is no torch\.nn\.Module"):
        load_explainer("captum:Saliency")(lambda shown: shown.mean((2, 3)), frames(), targets.output(1))


@pytest.mark.parametrize(
    ("text", "options", "kind", "message"),
    [
        ("captum:Nothing", {}, ValueError, "captum has no method 'Nothing' here; it has Saliency"),
        ("grad-cam:Nothing", {}, ValueError, "it has GradCAM"),
        ("zennit:Nothing", {}, ValueError, "it has EpsilonPlus"),
        ("captum:IntegratedGradients", {"steps": 3}, OptionError, "no option 'steps'; it has .*n_steps"),
        ("zennit:EpsilonPlus", {"sigma": 3}, OptionError, "no option 'sigma'; it has .*epsilon"),
        ("nowhere", {}, ValueError, "is unknown; expected captum:METHOD"),
        ("nowhere.at.all:Class", {}, ValueError, "no module nowhere in"),
        ("driving_xai.targets:nothing", {}, ValueError, "has no nothing"),
        ("collections:OrderedDict", {}, ValueError, "gave a OrderedDict; expected a class"),
        ("driving_xai.explain.gradient:Gradient", {"nope": 1}, OptionError, "nope"),
    ],
)
def test_names_and_options_that_there_are_not_are_one_line(text, options, kind, message) -> None:
    with pytest.raises(kind, match=message) as caught:
        load_explainer(text, **options)
    assert "\n" not in str(caught.value)


def makes_an_explainer():
    return lambda model, shown, target: shown.mean(1)


def test_explainers_of_the_users_own(monkeypatch) -> None:
    found = load_explainer("driving_xai.explain.gradient:Gradient", times="input")
    assert found.times == "input"

    offered = [EntryPoint("mine", f"{__name__}:makes_an_explainer", "driving_xai.explainers")]
    monkeypatch.setattr(adapters, "entry_points", lambda group: offered)
    assert load_explainer("mine")(torch.nn.Identity(), frames(), None).shape == (3, 20, 24)


def test_a_missing_library_is_one_line_that_names_the_extra(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "driving_xai.explain.adapters.zennit", raising=False)
    monkeypatch.setitem(sys.modules, "zennit.composites", None)
    with pytest.raises(ValueError, match=r"zennit is not installed .*driving-xai\[peers\]"):
        load_explainer("zennit:EpsilonPlus")
