"""What a lambda attention branch network is trained on: three losses and the bias image."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from data_prep.values import Checked, Ge, Gt, Interval
from driving_xai.models.classify import Classifier
from driving_xai.models.lambda_net import LambdaAttentionBranchNetwork


@dataclass(frozen=True, kw_only=True)
class LabnLoss(Checked):
    """L = L_perception + branch_weight L_branch + divergence_weight KL(y(x) || y(x masked)).

    Source: Iida et al. 2022, eqs. 8 to 13.
    """

    branch_weight: Annotated[float, Ge(0)] = 3.0
    """lambda_1; 3 for IDRiD and 1 for DeFN in the authors' code, the paper gives none."""
    divergence_weight: Annotated[float, Ge(0)] = 1.0
    """lambda_2; neither the paper nor its code says. 0 takes the loss and its second pass away."""
    mask_threshold: Annotated[float, Interval(ge=0, lt=1)] = 0.2
    """theta_b: where the attention is at or below it, the masked image shows the bias image."""
    through: Literal["both", "masked"] = "both"
    """Whether the divergence also moves the prediction for the whole image."""
    statistics: Literal["clean", "both"] = "clean"
    """Whose running statistics batch normalisation keeps for prediction: of whole images only, or of whole and masked
    ones by halves. Each pass is normalised by its own batch in any case."""
    classification: Literal["cross-entropy", "binary"] = "cross-entropy"
    """What both branches learn by. binary takes each logit as a label of its own against the one-hot class, as the
    authors' code does."""
    positive_weight: Annotated[float, Gt(0)] = 2.0
    """Of binary: of the wanted label in every logit, the negative class's too."""
    bias_image: Literal["negative-sample", "mask-only"] = "negative-sample"
    """Whether the training images' mean is also a training image, of the class `negative`."""
    negative: str | None = None
    """The class without anything to see; None is the first."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.classification != "binary" and self.positive_weight != 2.0:
            raise ValueError(
                "positive_weight is of classification binary; leave it out, or set class_weights"
            )

    def classified(
        self,
        scores: Float[Tensor, "B K"],
        labels: Int64[Tensor, " B"],
        class_weights: Float[Tensor, " K"] | None,
    ) -> Float[Tensor, ""]:
        """The loss of one branch's logits."""
        if self.classification == "cross-entropy":
            return F.cross_entropy(scores, labels, weight=class_weights)
        wanted = F.one_hot(labels, scores.shape[1]).to(scores)
        return F.binary_cross_entropy_with_logits(
            scores, wanted, pos_weight=scores.new_tensor(self.positive_weight)
        )


class Shares(NamedTuple):
    """What the two kinds of means over a part of a batch are multiplied by; see `processes.Part.share`."""

    cross_entropy: float
    """Its mean is weighted by class."""
    divergence: float


WHOLE = Shares(1.0, 1.0)


def labn_loss(
    model: Classifier,
    frames: Float[Tensor, "B 3 H W"],
    labels: Int64[Tensor, " B"],
    how: LabnLoss,
    *,
    bias: Float[Tensor, "3 H W"],
    class_weights: Float[Tensor, " K"] | None = None,
    shares: Shares = WHOLE,
) -> Float[Tensor, ""]:
    """The loss of a batch.

    Args:
        bias: the mean of the training images, RGB in [0, 1].
        class_weights: of both cross-entropies; None weighs classes alike.
        shares: of a process that has a part of the batch.

    Source: Iida et al. 2022, eqs. 8 to 12.
    Deviation: eq. 12 indexes the attention at the image's resolution; it is upsampled bilinearly. The paper does not
    say whose statistics batch normalisation keeps; the authors' code has no second pass, so whole images' are kept.
    """
    network = model.network
    assert isinstance(network, LambdaAttentionBranchNetwork)
    found = network.branches(model.normalised(frames))
    loss = how.classified(found.scores, labels, class_weights)
    loss = loss + how.branch_weight * how.classified(found.branch_scores, labels, class_weights)
    loss = shares.cross_entropy * loss
    if how.divergence_weight == 0:
        return loss
    masked = masked_by_attention(frames, found.attention.detach(), bias, threshold=how.mask_threshold)
    clean = found.scores.detach() if how.through == "masked" else found.scores
    with nullcontext() if how.statistics == "both" else _statistics_kept(network):
        of_masked = model(masked)
    divergence = F.kl_div(
        of_masked.log_softmax(1), clean.log_softmax(1), log_target=True, reduction="batchmean"
    )
    return loss + how.divergence_weight * (shares.divergence * divergence)


@contextmanager
def _statistics_kept(network: nn.Module) -> Iterator[None]:
    """Batch normalisation still normalises by the batch, and its running statistics stay as they are.

    Layers in eval mode, those of a frozen part, go on with their running statistics.
    """
    layers = [
        layer
        for layer in network.modules()
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training and layer.track_running_stats
    ]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


def masked_by_attention(
    frames: Float[Tensor, "B 3 H W"],
    attention: Float[Tensor, "B h w"],
    bias: Float[Tensor, "3 H W"],
    *,
    threshold: float,
) -> Float[Tensor, "B 3 H W"]:
    """Frames that show the bias image where the upsampled attention is at or below the threshold.

    Source: Iida et al. 2022, eq. 12.
    """
    size = (frames.shape[2], frames.shape[3])
    upsampled = F.interpolate(attention.unsqueeze(1), size=size, mode="bilinear", align_corners=False)
    return torch.where(upsampled > threshold, frames, bias)
