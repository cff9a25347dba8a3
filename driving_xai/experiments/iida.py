"""ID and PID scores of lambda attention branch networks, and their ablation (Iida et al. 2022, Tables 2 to 5)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from torch import Tensor

from driving_xai.data.images import ImageSet, classes_of, mean_image
from driving_xai.errors import DataError
from driving_xai.evaluation.config import CONTROLS
from driving_xai.experiments.iida_claims import (
    COARSE,
    EXACT,
    SCORES,
    compare_conditions,
    compare_maps,
    lines_of_tests,
)
from driving_xai.experiments.iida_failures import FAILED_BY, confusions, failures, lines_of_counts
from driving_xai.experiments.image_sets import MemoryImages, NamedImages, open_images
from driving_xai.experiments.networks import trained_classifier
from driving_xai.experiments.recipes import planned, require_unset
from driving_xai.experiments.runs import Found, Mean, each_run, values_of
from driving_xai.experiments.stand_ins import Spots, spotted_discs
from driving_xai.experiments.tables import write_results
from driving_xai.explain.base import Explainer
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import fitted, require_methods, todays_names, without_label
from driving_xai.metrics.confidence import OfClass
from driving_xai.metrics.curves import insertion_deletion, patch_insertion_deletion, rank
from driving_xai.metrics.perturbation_curves import patch_count
from driving_xai.metrics.registry import PATCHES_PX
from driving_xai.models.classify import Classifier, ClassifierConfig
from driving_xai.perturb import Fill
from driving_xai.targets import ExplainedScore, explained_by, outputs_at
from driving_xai.training.augment import Augmentation
from driving_xai.training.classify import ClassifierTraining
from driving_xai.training.labn import LabnLoss
from driving_xai.training.recipe import Device
from driving_xai.types import Frames, Saliency, Target

LABN = "labn"
_ABLATIONS: Mapping[str, tuple[bool, bool]] = {
    # KL divergence, bias image among the training images: conditions (i) to (iv).
    "neither": (False, False),
    "bias image": (False, True),
    "divergence": (True, False),
    "both": (True, True),
}
# Table 2, IDRiD then DeFN, and Table 4, DeFN; ID, then PID for m = 2, 4, 8, 16.
_PAPER_2 = {
    "rise": ((0.319, 0.179, 0.130, 0.136, 0.101), (0.235, 0.261, 0.296, 0.379, 0.461)),
    "lambda-attention": ((-0.101, -0.105, -0.116, -0.123, -0.093), (0.374, 0.414, 0.403, 0.378, 0.291)),
    LABN: ((0.431, 0.458, 0.473, 0.470, 0.455), (0.506, 0.748, 0.755, 0.757, 0.756)),
}
_PAPER_4 = {
    "neither": (0.044, 0.311, 0.489, 0.523, 0.556),
    "bias image": (0.124, 0.446, 0.405, 0.388, 0.382),
    "divergence": (0.460, 0.774, 0.792, 0.808, 0.807),
    "both": (0.506, 0.748, 0.755, 0.757, 0.756),
}
_METHODS = ("rise", "lambda-attention", LABN, "grad-cam")
_COARSE_PX = 6.0
"""Deviation of the Gaussian that turns the known causes into a coarse map."""


def _recipe() -> ClassifierTraining:
    network = ClassifierConfig(
        network=LABN, stages=(1, 1), width=8, stem="imagenet", context=7, split=1, threshold=0.5
    )
    return ClassifierTraining(
        model=network,
        augmentation=Augmentation(flip=True, brightness=0.2, contrast=0.2),
        labn=LabnLoss(branch_weight=1.0),
        epochs=12,
        batch_size=32,
        learning_rate=3e-3,
        patience=None,
    )


@dataclass(frozen=True, kw_only=True)
class Iida:
    """What is trained, explained and measured."""

    training: ClassifierTraining = field(default_factory=_recipe)
    """Its seed, and for Table 4 its losses, are replaced in turn."""
    methods: tuple[str, ...] = ()
    """Compared in Table 2 beyond the paper's, by name or label: `rise@many`."""
    options: OptionsOf = field(default_factory=dict)
    """Of methods by name or label: `{"rise@many": {"samples": 2000}}`; see docs/methods.md."""
    positive: str | None = None
    """The class that is explained, as the paper does; None is the last."""
    seeds: int = 4
    images: int = 24
    """Positives tested in each run."""
    rise_masks: int = 300
    """The paper draws 10,000."""
    explained_score: ExplainedScore = "probability"
    """What RISE and LIME explain, as in `score`; see `targets.explained_by`."""
    fill: Literal["bias", "black"] = "bias"
    """What PID's patches are inserted into and deleted to: the training images' mean (eq. 16), or black as in
    the authors' code. ID is on black, by its definition."""
    curve_steps: int = 16
    """At most, of each insertion and deletion curve; the authors take 39 to 157."""
    patches_per_step: tuple[int, ...] = ()
    """Of PID for each side in `PATCHES_PX`; () goes by `curve_steps`. The authors take 500, 100, 20, 10, 5 for images
    of 224 px, and 10000, 2500, 500, 100, 20 for 512 px."""
    batch_size: int = 64
    pictures: tuple[int, ...] = (400, 40, 120)
    """Of the stand-in, to train, validate and test on."""
    spots: Spots = field(default_factory=Spots)
    """Of the stand-in."""

    def __post_init__(self) -> None:
        if (
            min(self.seeds, self.images, self.batch_size, self.rise_masks, self.curve_steps) < 1
            or len(self.pictures) != 3
        ):
            raise ValueError(
                f"seeds is {self.seeds}, images {self.images}, rise_masks {self.rise_masks}, curve_steps "
                f"{self.curve_steps}, pictures {list(self.pictures)}; expected 1 or more, and three numbers"
            )
        if self.patches_per_step and (
            len(self.patches_per_step) != len(PATCHES_PX) or min(self.patches_per_step) < 1
        ):
            raise ValueError(
                f"got patches_per_step {list(self.patches_per_step)}; expected a number from 1 on for each of the sides "
                f"{', '.join(map(str, PATCHES_PX))}"
            )
        require_methods((*_METHODS, *self.methods), self.options, also=CONTROLS)


def table2(
    data: Path | None,
    out: Path,
    how: Iida,
    *,
    device: Device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Scores of LABN's map, RISE, lambda attention, Grad-CAM and controls, on the same networks.

    Args:
        data: shards of images of one class each, or None for the stand-in.
        out: gets `runs/` and `models/` for each seed, `results.json` and `table.md`.
    """
    _require_used(data, how)
    source = _source(data, how)
    plan = _plan("iida-table2", how, source)
    runs = each_run(
        out / "runs",
        plan,
        how.seeds,
        lambda seed: _compared(
            source, how, _network(source, out, how, how.training.labn, "both", seed, device), seed
        ),
        on_progress,
    )
    results = {**_results(plan, how, source, runs), "tests": compare_maps(runs)}
    write_results(out, results, _text2(results))
    return results


def table4(
    data: Path | None,
    out: Path,
    how: Iida,
    *,
    device: Device = "cpu",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """LABN without the divergence, without the bias image, without both. Arguments as for `table2`."""
    _require_used(data, how)
    explained = "Table 4 explains with LABN alone"
    varied = "Table 4 varies it"
    unused = dict.fromkeys(("methods", "options", "explained_score"), explained)
    require_unset(how, {**unused, "training.labn.bias_image": varied})
    source = _source(data, how)
    plan = _plan("iida-table4", how, source)

    def work(seed: int) -> Found:
        found = {}
        for name, (divergence, bias_image) in _ABLATIONS.items():
            loss = replace(
                how.training.labn,
                divergence_weight=how.training.labn.divergence_weight if divergence else 0.0,
                bias_image="negative-sample" if bias_image else "mask-only",
            )
            model = _network(source, out, how, loss, name.replace(" ", "-"), seed, device)
            _, frames, classes = _positives(source.images, how, seed)
            saliency = _map(model, fitted(LABN, model), frames, classes, how, LABN)
            found[name] = {
                **_means(_scores_of_frames(source, model, frames, saliency, classes, how, seed)),
                **_accuracy(source, model),
            }
        return found

    runs = each_run(out / "runs", plan, how.seeds, work, on_progress)
    results = {**_results(plan, how, source, runs), "tests": compare_conditions(runs)}
    write_results(out, results, _text4(results))
    return results


def _require_used(data: Path | None, how: Iida) -> None:
    reasons = {
        "training.seed": "run i draws with seed i",
        "training.model.classes": "the images have classes",
        "training.model.image_size": "the images have a size",
    }
    if data is not None:
        reasons |= dict.fromkeys(("pictures", "spots"), "it is of the stand-in, and images are given")
    if "samples" in todays_names("rise", how.options.get("rise", {})):
        reasons["rise_masks"] = "options.rise.samples is set too"
    require_unset(how, reasons)


def _source(data: Path | None, how: Iida) -> NamedImages:
    train_count, val_count, test_count = how.pictures
    stand_in = (
        spotted_discs(train=train_count, val=val_count, test=test_count, how=how.spots, seed=0)
        if data is None
        else None
    )
    return open_images(data, stand_in, "spotted discs (synthetic stand-in for IDRiD and DeFN)")


def _plan(name: str, how: Iida, source: NamedImages) -> dict[str, Any]:
    return {"experiment": name, "how": planned(how), "images": dict(source.described)}


def _network(
    source: NamedImages, out: Path, how: Iida, loss: LabnLoss, name: str, seed: int, device: Device
) -> Classifier:
    """The LABN of a seed and a condition, trained where `out` does not hold it."""
    folder = out / "models" / f"{name}-{seed}"
    return trained_classifier(source, folder, replace(how.training, labn=loss, seed=seed), device=device)


def _positives(images: ImageSet, how: Iida, seed: int) -> tuple[np.ndarray, Frames, Tensor]:
    """Tested images of the positive class, their frames, and that class for each."""
    names = images.label_names
    wanted = len(names) - 1 if how.positive is None else _place(names, how.positive)
    rows = images.rows("test")
    rows = rows[(classes_of(images)[rows] == wanted).numpy()]
    if not len(rows):
        raise DataError(f"no test image is of the class {names[wanted]!r}; prepare a test split")
    rows = np.sort(np.random.default_rng(seed).permutation(rows)[: how.images])
    return rows, images.frames(rows), torch.full((len(rows),), wanted)


def _place(names: Sequence[str], name: str) -> int:
    if name not in names:
        raise DataError(f"positive is {name!r}; the classes are {', '.join(names)}")
    return list(names).index(name)


def _compared(source: NamedImages, how: Iida, model: Classifier, seed: int) -> Found:
    """Every method on one network, and the known causes as a sparse and as a coarse map."""
    rows, frames, classes = _positives(source.images, how, seed)
    maps = {}
    for name in (*_METHODS, *how.methods, *CONTROLS):
        options: dict[str, Any] = dict(how.options.get(name, {}))
        if without_label(name) == "rise":
            usual = {"samples": how.rise_masks, "grid": 9, "shown": 0.3}
            options = {**usual, **todays_names(name, options)}
        explainer = fitted(name, model, seed=seed, batch_size=how.batch_size, options=options)
        maps[name] = _map(model, explainer, frames, classes, how, name)
    if isinstance(source.images, MemoryImages) and source.images.causes is not None:
        maps.update(_known(source.images.causes[torch.from_numpy(rows)], seed))
    found, failed = {}, {}
    for name, saliency in maps.items():
        scores = _scores_of_frames(source, model, frames, saliency, classes, how, seed)
        found[name] = _means(scores)
        if name == LABN:
            with torch.no_grad():
                right = torch.cat([model(part).argmax(1) for part in frames.split(how.batch_size)]) == classes
            highlighted = how.training.labn.mask_threshold
            failed = failures(scores[FAILED_BY], right, saliency, highlighted=highlighted)
    counts = {"confusions": _confusions(source, model, int(classes[0])), "failures": failed}
    return {"network": _accuracy(source, model), **found, **counts}


def _known(causes: Tensor, seed: int) -> dict[str, Saliency]:
    """The causes themselves and blurred, both over the same faint noise that orders what they leave equal."""
    faint = 1e-3 * torch.rand(causes.shape, generator=torch.Generator().manual_seed(seed))
    exact = causes.float()
    blurred = torch.from_numpy(
        np.stack([cv2.GaussianBlur(each.numpy(), (0, 0), _COARSE_PX) for each in exact])
    )
    return {EXACT: exact + faint, COARSE: blurred + 1e-3 * faint * blurred.amax()}


def _map(
    model: Classifier, explainer: Explainer, frames: Frames, classes: Tensor, how: Iida, method: str
) -> Saliency:
    def explained(own: Tensor) -> Target:
        return explained_by(method, outputs_at(own), model.outputs, score=how.explained_score)

    parts = zip(frames.split(how.batch_size), classes.split(how.batch_size), strict=True)
    return torch.cat([explainer(model, part, explained(own)).detach() for part, own in parts])


def _means(scores: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(values.double().mean()) for name, values in scores.items()}


def _scores_of_frames(
    source: NamedImages,
    model: Classifier,
    frames: Frames,
    saliency: Saliency,
    classes: Tensor,
    how: Iida,
    seed: int,
) -> dict[str, Tensor]:
    """ID as in the paper (m = 1, black) and as in RISE, and PID for every side, of each frame."""
    bias: Fill | Tensor = "black"
    if how.fill == "bias":
        bias = mean_image(source.images, source.images.rows("train"))
    totals: dict[str, list[Tensor]] = {}
    for part in torch.arange(len(frames)).split(8):
        own, value = frames[part], OfClass(classes=classes[part])
        ranks = rank(saliency[part], torch.Generator().manual_seed(seed))
        height, width = own.shape[2:]
        by_rise = insertion_deletion(
            model,
            own,
            ranks,
            value,
            pixels_per_step=-(-height * width // how.curve_steps),
            batch_size=how.batch_size,
        )
        totals.setdefault("ID, RISE", []).append(by_rise.score)
        steps = {m: -(-patch_count((height, width), m) // how.curve_steps) for m in PATCHES_PX}
        steps |= dict(zip(PATCHES_PX, how.patches_per_step, strict=False))
        plain: tuple[int, Fill | Tensor, str] = (1, "black", "ID")
        for m, fill, name in (plain, *((m, bias, f"PID {m}") for m in PATCHES_PX)):
            found = patch_insertion_deletion(
                model,
                own,
                ranks,
                value,
                patch_px=m,
                fill=fill,
                patches_per_step=steps[m],
                batch_size=how.batch_size,
            )
            totals.setdefault(name, []).append(found.score)
    return {name: torch.cat(values) for name, values in totals.items()}


def _confusions(source: NamedImages, model: Classifier, positive: int) -> dict[str, float]:
    rows = source.images.rows("test")
    return confusions(_predicted(source, model), classes_of(source.images)[rows], positive)


def _predicted(source: NamedImages, model: Classifier) -> Tensor:
    """The class of each test image."""
    frames = source.images.frames(source.images.rows("test"))
    with torch.no_grad():
        return torch.cat([model(part) for part in frames.split(64)]).argmax(1)


def _accuracy(source: NamedImages, model: Classifier) -> dict[str, float]:
    wanted = classes_of(source.images)[source.images.rows("test")]
    return {"accuracy": float((_predicted(source, model) == wanted).double().mean())}


def _results(
    plan: Mapping[str, Any], how: Iida, source: NamedImages, runs: Sequence[Found]
) -> dict[str, Any]:
    means = {
        name: {each: asdict(Mean.of(values_of(runs, name, each))) for each in values}
        for name, values in runs[0].items()
    }
    return {
        "experiment": plan["experiment"],
        "config": asdict(how),
        "images": dict(source.described),
        "explained": "the true class of positives",
        "means": means,
        "runs": list(runs),
    }


_COLUMNS = (*SCORES, "ID, RISE")
_COUNTS = ("network", "confusions", "failures")
"""Rows of a run that are of no map."""


def _heading(results: Mapping[str, Any]) -> list[str]:
    config = results["config"]
    return [
        f"Images: {results['images']['name']}. {config['seeds']} runs of at most {config['images']} positives; "
        f"PID is filled with {'the bias image' if config['fill'] == 'bias' else 'black'}; mean and standard error over runs.",
        "",
    ]


def _line(name: str, means: Mapping[str, Mapping[str, float]]) -> str:
    cells = [f"{means[each]['mean']:.3f} ± {means[each]['standard_error']:.3f}" for each in _COLUMNS]
    return f"| {name} | {' | '.join(cells)} |"


def _printed(name: str, values: Sequence[float]) -> str:
    """A row of the paper's, which has ID and m = 2 to 16."""
    first, *rest = (f"{value:g}" for value in values)
    return f"| {name} | {first} | | {' | '.join(rest)} | |"


def _text2(results: Mapping[str, Any]) -> str:
    means = results["means"]
    accuracy = means["network"]["accuracy"]
    lines = [
        *_heading(results),
        f"Accuracy {accuracy['mean']:.3f} ± {accuracy['standard_error']:.3f}.",
        "",
        f"| method | {' | '.join(_COLUMNS)} |",
        f"|---|{'---|' * len(_COLUMNS)}",
        *(_line(name, values) for name, values in means.items() if name not in _COUNTS),
    ]
    for name, (idrid, defn) in _PAPER_2.items():
        lines += [_printed(f"paper, IDRiD: {name}", idrid), _printed(f"paper, DeFN: {name}", defn)]
    lines += ["", *lines_of_tests(results["tests"])]
    # Runs that were kept from before there were counts have none.
    if all("failures" in run for run in results["runs"]):
        lines += ["", *lines_of_counts(results["runs"], results["config"]["positive"] or "the last class")]
    return "\n".join(lines)


def _text4(results: Mapping[str, Any]) -> str:
    lines = [
        *_heading(results),
        f"| trained with | {' | '.join(_COLUMNS)} | accuracy |",
        f"|---|{'---|' * (len(_COLUMNS) + 1)}",
    ]
    for name, values in results["means"].items():
        accuracy = values["accuracy"]
        lines.append(f"{_line(name, values)} {accuracy['mean']:.3f} ± {accuracy['standard_error']:.3f} |")
    lines += [f"{_printed(f'paper, DeFN: {name}', values)} |" for name, values in _PAPER_4.items()]
    return "\n".join([*lines, "", *lines_of_tests(results["tests"])])
