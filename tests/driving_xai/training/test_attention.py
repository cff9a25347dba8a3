"""CBAM trained beside a network that stays as it is."""

from __future__ import annotations

import pytest
import torch

from driving_xai.data.images import classes_of
from driving_xai.errors import UnsupportedModelError
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.training.attention import AttentionTraining, feature_maps, train_attention
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


def test_a_network_without_a_pooled_head_is_refused():
    model = _model()
    model._head = None
    with pytest.raises(UnsupportedModelError, match="no linear head on a pooled feature map"):
        train_attention(
            model, Pictures(), Pictures().rows("train"), classes_of(Pictures()), AttentionTraining(), seed=0
        )
