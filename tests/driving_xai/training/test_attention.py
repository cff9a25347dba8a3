"""CBAM trained beside a network that stays as it is."""

from __future__ import annotations

import copy

import pytest
import torch

from driving_xai.data.images import classes_of
from driving_xai.errors import CheckpointError, DataError, UnsupportedModelError
from driving_xai.explain.cam import AttentionGuidedCAM
from driving_xai.explain.registry import fitted
from driving_xai.models.channel_spatial import drawn_block, load_block
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.models.label_columns import label_columns
from driving_xai.models.wrap import wrap
from driving_xai.targets import output
from driving_xai.training.attention import AttentionTraining, feature_maps, train_attention, train_to_file
from tests.driving_xai.training.pictures import SIDE, Pictures


def _model(network: str = "small-cnn") -> Classifier:
    torch.manual_seed(0)
    config = ClassifierConfig(
        classes=("green", "red"), network=network, image_size=(SIDE, SIDE), channels=(8, 8), pooled=1
    )
    return Classifier(config).eval()


def test_training_lowers_the_loss_and_touches_nothing_but_the_block():
    pictures, model = Pictures(), _model()
    labels, rows = classes_of(pictures), pictures.rows("train")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = []
    for epochs in (1, 20):
        how = AttentionTraining(reduction=2, epochs=epochs, batch_size=12, learning_rate=0.02)
        block = train_attention(model, pictures, rows, labels, how, seed=1)
        assert not block.training
        with torch.no_grad():
            pooled = block(feature_maps(model, pictures.frames(rows))).mean((2, 3))
            losses.append(
                torch.nn.functional.cross_entropy(model.feature_map.head(pooled), labels[rows]).item()
            )
    assert losses[1] < losses[0]
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_seed_gives_the_same_block():
    pictures, model = Pictures(), _model()
    how = AttentionTraining(reduction=2, epochs=2, batch_size=12)
    blocks = [
        train_attention(model, pictures, pictures.rows("train"), classes_of(pictures), how, seed=seed)
        for seed in (3, 3, 4)
    ]
    weights = [block.describe[0].weight for block in blocks]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_maps_that_take_too_much_memory_are_computed_again_to_the_same_block():
    pictures, model = Pictures(), _model()
    blocks = []
    for keep_mib in (2048, 0):
        how = AttentionTraining(reduction=2, epochs=2, batch_size=12, keep_mib=keep_mib)
        blocks.append(
            train_attention(model, pictures, pictures.rows("train"), classes_of(pictures), how, seed=3)
        )
    for kept, again in zip(blocks[0].state_dict().values(), blocks[1].state_dict().values(), strict=True):
        torch.testing.assert_close(kept, again, rtol=1e-4, atol=1e-6)


def test_a_network_without_a_pooled_head_is_refused():
    model = _model()
    model.network.append(torch.nn.Tanh())
    model._head = None
    with pytest.raises(UnsupportedModelError, match="no linear head on a pooled feature map"):
        train_attention(
            model, Pictures(), Pictures().rows("train"), classes_of(Pictures()), AttentionTraining(), seed=0
        )


def test_a_file_of_a_block_explains_as_the_block_does(tmp_path):
    """Options B and C by the options that text can say, against modules handed over."""
    pictures, model, how = Pictures(), _model(), AttentionTraining(reduction=3, epochs=3, batch_size=12)
    path, frames = tmp_path / "block.safetensors", pictures.frames(pictures.rows("test"))
    losses = train_to_file(model, pictures, path, how, seed=2, described={})
    block = train_attention(model, pictures, pictures.rows("train"), classes_of(pictures), how, seed=2)
    with torch.no_grad():
        maps = feature_maps(model, pictures.frames(pictures.rows("train")))
        scores = model.feature_map.head(block(maps).mean((2, 3)))
    wanted = classes_of(pictures)[pictures.rows("train")]
    assert losses["loss_with"] == pytest.approx(float(torch.nn.functional.cross_entropy(scores, wanted)))

    for options, module in (
        ({"attention": str(path)}, block),
        ({"attention": "random", "reduction": 3}, drawn_block(8, reduction=3, seed=5)),
    ):
        named = fitted("attention-guided-cam", model, seed=5, options=options)(model, frames, output(1))
        handed = AttentionGuidedCAM(attention=module)(model, frames, output(1))
        assert torch.equal(named, handed)
    often = fitted("attention-guided-cam", model, options={"attention": str(path)})
    before = often(model, frames, output(1))
    often(copy.deepcopy(model).bfloat16(), frames.bfloat16(), output(1))
    assert torch.equal(often(model, frames, output(1)), before), "half precision rounded the block"
    channel = fitted("attention-guided-cam", model, options={"attention": str(path), "parts": "channel"})
    block.parts = "channel"
    handed = AttentionGuidedCAM(attention=block)(model, frames, output(1))
    assert torch.equal(channel(model, frames, output(1)), handed)


def test_a_file_without_a_block_or_for_another_network_is_refused(tmp_path):
    pictures, model = Pictures(), _model()
    how = AttentionTraining(reduction=2, epochs=1, batch_size=12)
    path = tmp_path / "block.safetensors"
    train_to_file(model, pictures, path, how, seed=0, described={"model_sha256": "0"})
    with pytest.raises(CheckpointError, match="cannot be read"):
        fitted("attention-guided-cam", model, options={"attention": str(tmp_path / "gone")})
    other = tmp_path / "other.pt"
    torch.save({"weight": torch.zeros(2)}, other)
    with pytest.raises(CheckpointError, match="holds no channel and spatial attention"):
        load_block(other)
    wider = wrap(
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 5, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(5, 2)
        ),
        outputs="multiclass",
        names=("green", "red"),
    ).eval()
    with pytest.raises(UnsupportedModelError, match="maps of 8 channels and this layer has 5; train it"):
        fitted("attention-guided-cam", wider, options={"attention": str(path)})
    # A network of somebody else has its own block.
    train_to_file(wider, pictures, path, how, seed=0, described={})
    assert load_block(path).channels == 5


def test_labels_are_found_by_name_or_by_synset():
    words = [f"word {place}" for place in range(1000)]
    assert label_columns(["n02123045", "n01440764"], words) == [281, 0]
    assert label_columns(["word 7", "word 3"], words) == [7, 3]
    with pytest.raises(DataError, match="label 'n02123045' is none of the model's 2 outputs"):
        label_columns(["n02123045"], ["cat", "dog"])
