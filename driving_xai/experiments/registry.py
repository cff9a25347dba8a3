"""The experiments by name: which paper's table or figure each reproduces, and where its code is.

Importing this table imports no experiment, so that `--help` and `--list` are quick.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

Data = Literal["drives", "actions", "classes"]
"""What an experiment is run on: drives with steering, images with actions, or images of one class each."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A table or figure that can be run."""

    paper: str
    summary: str
    """One line: what comes out."""
    run: str
    """`module:function` below `driving_xai.experiments`. It takes the data (None for a stand-in), a folder, the
    recipe, and by keyword `device` and `on_progress`; it returns what `results.json` holds."""
    recipe: str
    """`module:Class`: the dataclass of its settings."""
    data: Data
    details: str = ""
    """Further paragraphs of its help."""
    examples: tuple[str, ...]
    """What may follow `experiment NAME`."""
    unit: str = "runs"
    """What its progress counts."""
    options: tuple[str, ...] = ()
    """Settings that have an option of their own, `--NAME`."""
    device: bool = True
    """Whether it can compute on a GPU."""
    fetches: str = ""
    """`module:function` from the recipe to the backbone whose weights timm fetches, or None."""
    own_folder: bool = False
    """Results lie in OUT/NAME; OUT is shared with the paper's other experiments."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Settings of a shared recipe without effect here, and the experiments that read them."""

    def results_folder(self, name: str, out: Path) -> Path:
        """Where `results.json` and `table.md` lie."""
        return out / name if self.own_folder else out


def imported(target: str) -> Any:
    """The object that `module:name` stands for, below `driving_xai.experiments`."""
    module, _, name = target.partition(":")
    return getattr(import_module(f"driving_xai.experiments.{module}"), name)


TASHIRO = "Tashiro and Awano 2023"
ZHU = "Zhu et al. 2024"
AN = "An and Joe 2022"
IIDA = "Iida et al. 2022"
BAUMHAUER = "Baumhauer et al. 2021"
PROJECT = "This project"

_FIG6_ONLY = dict.fromkeys(
    ("roles", "methods", "options", "measured_on", "methods_every", "attention_derivative"), "tashiro-fig6"
)
_BITS = {"bits": "tashiro-fig7"}
_TEMPERATURES = {"temperatures": "tashiro-fig9"}

EXPERIMENTS: Mapping[str, Experiment] = {
    "steering-cv": Experiment(
        paper=PROJECT,
        summary="Cross-validate steering over the blocks of a drive, one model for each attention and block.",
        run="steering_cv:run",
        recipe="steering_cv:CrossValidation",
        data="drives",
        details="OUT then holds every model and its scores, results.json and table.md.",
        examples=("shards -o cv --set training.epochs=4",),
        unit="models",
    ),
    "tashiro-table2": Experiment(
        paper=TASHIRO,
        summary="Steering errors with soft attention, sign attention and none (Table 2).",
        run="tashiro:table2",
        recipe="tashiro:Tashiro",
        data="drives",
        details="The four tashiro experiments share the networks in OUT: with the same settings none is trained "
        "twice.",
        examples=("shards -o tashiro --set runs=3",),
        unit="networks",
        own_folder=True,
        unread={
            **_FIG6_ONLY,
            **_BITS,
            **_TEMPERATURES,
            "sweep_runs": "tashiro-fig6, tashiro-fig7 and tashiro-fig9",
            "score_every": "tashiro-fig6, tashiro-fig7 and tashiro-fig9",
        },
    ),
    "tashiro-fig6": Experiment(
        paper=TASHIRO,
        summary="Deletion curves and areas of sign and soft attention, Grad-CAM, LIME and others (Fig. 6).",
        run="tashiro:fig6",
        recipe="tashiro:Tashiro",
        data="drives",
        details="Also scored: random and centre-prior orders, a network with uniform attention, and the variants "
        "in which sign attention acts in the forward pass. Settings `methods`, `options` and `roles` choose.",
        examples=(
            """shards -o tashiro --set methods='["grad-cam", "lime"]'""",
            """shards -o tashiro --set methods='["lime@few"]' --set options.lime@few.samples=500""",
        ),
        unit="networks",
        own_folder=True,
        unread={**_BITS, **_TEMPERATURES},
    ),
    "tashiro-fig7": Experiment(
        paper=TASHIRO,
        summary="Area and error of sign attention by the bits of its magnitude (Fig. 7).",
        run="tashiro:fig7",
        recipe="tashiro:Tashiro",
        data="drives",
        examples=("shards -o tashiro --set bits='[2, 10, 24]'",),
        unit="networks",
        own_folder=True,
        unread={**_FIG6_ONLY, **_TEMPERATURES, "runs": "tashiro-table2 and tashiro-fig6"},
    ),
    "tashiro-fig9": Experiment(
        paper=TASHIRO,
        summary="Area and error of soft attention by its temperature, with Welch's tests (Fig. 9).",
        run="tashiro:fig9",
        recipe="tashiro:Tashiro",
        data="drives",
        examples=("shards -o tashiro --set temperatures='[0.1, 1.0]'",),
        unit="networks",
        own_folder=True,
        unread={**_FIG6_ONLY, **_BITS, "runs": "tashiro-table2 and tashiro-fig6"},
    ),
    "zhu-table1": Experiment(
        paper=ZHU,
        summary="AUPC and log-odds of attention explainers under pixel, token and attention masks (Table 1).",
        run="zhu_table1:run",
        recipe="zhu_table1:ZhuTable1",
        data="actions",
        details="The paper leaves open when an output counts as predicted: setting `rule` is sigmoid, logit or "
        "softmax over 1/2. `order` is most-first or least-first, `attention_blocks` first or all, `fill` (of masked "
        "pixels) mean, black or blur; the first of each is the default. Also: `methods`, `options`, `masks`, "
        "`target`, `split`, `every`.",
        examples=(
            "shards --checkpoint model -o table1",
            "shards --checkpoint model -o softmax --set rule=softmax",
            """shards --checkpoint model -o few --set methods='["snna@few"]' --set options.snna@few.samples=3""",
        ),
        unit="images",
        options=("checkpoint",),
    ),
    "zhu-accuracy": Experiment(
        paper=ZHU,
        summary="Accuracy and F1 of an action model, the papers' numbers, and predictors that do not look.",
        run="zhu_accuracy:run",
        recipe="zhu_accuracy:ZhuAccuracy",
        data="actions",
        details="OUT then holds every model, the features they share, results.json and table.md.",
        examples=("shards -o zhu --set training.start=backbone",),
        unit="models",
        options=("folds",),
        fetches="zhu_accuracy:fetched_backbone",
    ),
    "an-table2": Experiment(
        paper=AN,
        summary="Accuracy and top-5 error of several networks on the same images (Table 2).",
        run="an_networks:table2",
        recipe="an_networks:AnNetworks",
        data="classes",
        details="`networks` are given as `score` takes models; without any, three are trained for each seed. Folders of "
        "images are named as the networks' outputs, or by ImageNet's synsets.",
        examples=(
            "- -o table2 --set seeds=2",
            """photos -o table2 --set networks='["torchvision:resnet50", "torchvision:vgg19"]'""",
        ),
    ),
    "an-table3": Experiment(
        paper=AN,
        summary="Average drop and increase of five class activation maps (Table 3).",
        run="an:table3",
        recipe="an:An",
        data="classes",
        details="Also measured: either attention alone, CBAM trained on the frozen network, with random weights "
        "and inside the network, and two controls. Tables 3 and 4 share the runs in OUT.",
        examples=("- -o an", "photos -o an --set checkpoint=torchvision:resnet50"),
    ),
    "an-table4": Experiment(
        paper=AN,
        summary="The score that the most salient 5 to 50 % of pixels leave, for five maps (Table 4).",
        run="an:table4",
        recipe="an:An",
        data="classes",
        examples=("- -o an",),
    ),
    "iida-table2": Experiment(
        paper=IIDA,
        summary="ID and PID scores of LABN, lambda attention, RISE and controls (Table 2), confusions and failures (3, 5).",
        run="iida:table2",
        recipe="iida:Iida",
        data="classes",
        details="On the stand-in, whose spots are known, also of the spots themselves and of a coarse map of them. "
        "From 8 seeds on (--set seeds=8; the paper has 4) differences are tested.",
        examples=("- -o iida --set seeds=2",),
    ),
    "iida-table4": Experiment(
        paper=IIDA,
        summary="LABN without its divergence loss, without the bias image, without both (Table 4).",
        run="iida:table4",
        recipe="iida:Iida",
        data="classes",
        details="From 8 seeds on (--set seeds=8; the paper has 4) differences are tested.",
        examples=("- -o ablation --set training.epochs=20",),
        unread={
            **dict.fromkeys(("methods", "options", "rise_masks"), "iida-table2"),
            "training.labn.bias_image": "no experiment: Table 4 varies it",
        },
    ),
    "baumhauer-table1": Experiment(
        paper=BAUMHAUER,
        summary="What bounded logit attention and L2X cost in accuracy, over 20 paired runs (Table 1).",
        run="baumhauer:table1",
        recipe="baumhauer:Table1",
        data="classes",
        details="Heads are trained on the kept features of a frozen network, EfficientNet-B0 unless set otherwise.",
        examples=("- -o table1", "birds -o table1 --set network.weights=b0.safetensors"),
    ),
    "baumhauer-table2": Experiment(
        paper=BAUMHAUER,
        summary="Rank correlation of bounded logit attention and CAM with LIME (Table 2).",
        run="baumhauer_lime:table2",
        recipe="baumhauer_lime:Table2",
        data="classes",
        examples=("- -o table2 --set images=50",),
        unit="images",
    ),
    "baumhauer-mnist": Experiment(
        paper=BAUMHAUER,
        summary="Three against eight: bounded logit attention, L2X and a baseline, over 20 runs (Section 4.1).",
        run="baumhauer_mnist:run",
        recipe="baumhauer_mnist:Mnist",
        data="classes",
        examples=("- -o mnist",),
        device=False,
    ),
    "baumhauer-l2x": Experiment(
        paper=BAUMHAUER,
        summary="L2X at the image with two networks: accuracy by soft and by hard explanations (Section 4.1).",
        run="baumhauer_l2x:run",
        recipe="baumhauer_l2x:TwoNetworks",
        data="classes",
        details="Also measured: the judging network on as many random patches, and on all.",
        examples=("- -o l2x --set seeds=2", "cats-dogs -o l2x --set network.weights=b0.safetensors"),
        device=False,
    ),
    "baumhauer-context": Experiment(
        paper=BAUMHAUER,
        summary="Bounded logit attention with a concept vector, and sigmoids in its place (Section 3.3, Fig. 24).",
        run="baumhauer_context:run",
        recipe="baumhauer_context:Context",
        data="classes",
        examples=("- -o context",),
    ),
}
