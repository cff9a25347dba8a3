"""Table 2 and Figs. 6, 7 and 9 of Tashiro and Awano 2023, on any drive.

Table 2 compares errors, Fig. 6 deletion curves of explanations, Fig. 7 the bits of the magnitude and
Fig. 9 the temperature of soft attention. The four share the networks of one folder.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.figure import Figure

from data_prep.shards.manifest import Manifest
from driving_xai.errors import OptionError
from driving_xai.evaluation.config import CONTROLS, ScoreConfig
from driving_xai.evaluation.results import Results
from driving_xai.evaluation.summary import describe_machine
from driving_xai.experiments import figures
from driving_xai.experiments import tashiro_tables as tables
from driving_xai.experiments.networks import Device, Networks, Variant, fitting
from driving_xai.experiments.recipes import require_unset
from driving_xai.experiments.tables import write_results
from driving_xai.experiments.tashiro_areas import Pool, compare
from driving_xai.explain.options import OptionsOf
from driving_xai.explain.registry import require_methods
from driving_xai.models.steering_config import OWN_METHOD, AttentionDerivative, AttentionKind, SignRole
from driving_xai.training.steering import SteeringTraining

Name = Literal["tashiro-table2", "tashiro-fig6", "tashiro-fig7", "tashiro-fig9"]
Progress = Callable[[int, int], None]

NONE = Variant(name="none", changes={"attention": "none"})
SOFT = Variant(name="soft", changes={"attention": "soft"})
SIGN = Variant(name="sign", changes={"attention": "sign"})
UNIFORM = Variant(name="sign-uniform", changes={"attention": "sign", "attention_weights": "uniform"})


@dataclass(frozen=True, kw_only=True)
class Tashiro:
    """Which networks are trained how often, and how their explanations are scored."""

    runs: int = 5
    """Trainings of the networks of Table 2 and Fig. 6; run i draws with seed i."""
    sweep_runs: int = 3
    """Trainings of each point of Figs. 7 and 9, of the control and of the forward-acting variants."""
    blocks: tuple[int, ...] | None = None
    """Held out in turn, run i block i modulo their number; None keeps prep's split in every run."""
    encoder_epochs: int = 0
    """Epochs over single frames of one network without attention for each run, whose convolutions all
    networks of that run start with: a short schedule for a CPU. 0 trains every network from scratch."""
    bits: tuple[int | None, ...] = (*range(2, 25, 2), None)
    """Of Fig. 7; none does not quantise, which is the paper's predecessor."""
    temperatures: tuple[float, ...] = (0.1, 0.3, 1.0, 3.0, 10.0)
    roles: tuple[SignRole, ...] = ("gate", "multiplicative", "ternary", "stochastic", "centred")
    """Forward-acting variants that Fig. 6 is extended by."""
    methods: tuple[str, ...] = ("grad-cam", "lime")
    """Compared with the networks' own attention in Fig. 6; each perhaps with a label, `lime@grid`."""
    options: OptionsOf = field(default_factory=dict)
    """Of `methods` by name or label: `{"lime": {"samples": 500}}`; see docs/methods.md."""
    measured_on: tuple[AttentionKind, ...] = ("sign", "soft")
    """The networks that `methods` explain in Fig. 6."""
    attention_derivative: AttentionDerivative = "actual"
    """That gradient methods take of sign networks in Fig. 6; see `ScoreConfig`."""
    score_every: int = 10
    """Score every n-th held-out frame."""
    methods_every: int = 10
    """The same for `methods`; a multiple of `score_every`, so that both score its frames."""
    training: SteeringTraining = field(default_factory=SteeringTraining)
    """Its seed, held-out block and the model options under study are replaced."""

    def __post_init__(self) -> None:
        for name in ("runs", "sweep_runs", "score_every", "methods_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; expected 1 or more")
        if self.methods_every % self.score_every:
            raise ValueError(
                f"methods_every is {self.methods_every}; expected a multiple of score_every, {self.score_every}"
            )
        if unknown := set(self.measured_on) - set(get_args(AttentionKind)):
            raise ValueError(f"measured_on has {sorted(unknown)}; expected some of none, soft, sign")
        require_methods(self.methods, self.options, least=0)
        for name in self.options:
            if not any(fitting((name,), each) for each in self.measured_on):
                networks = ", ".join(self.measured_on) or "none"
                raise OptionError(
                    f"options.{name} would be ignored: {name} fits no network in measured_on ({networks}); add one"
                )


@dataclass(frozen=True, kw_only=True)
class NetworkSpec:
    """Networks that an experiment needs, and what is scored on them."""

    network: Variant
    runs: int
    own: bool = True
    """Score the network's own attention, with the controls."""
    methods: bool = False
    """Score the other methods too."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What the training runs of one kind of network gave."""

    test: list[Mapping[str, float]]
    """The test metrics of each run."""
    own: list[Results]
    methods: list[Results]

    @property
    def mae_deg(self) -> list[float]:
        """Of each run."""
        return [metrics["mae_deg"] for metrics in self.test]


def run(
    name: Name,
    shards: Path,
    out: Path,
    how: Tashiro,
    *,
    device: Device = "auto",
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Trains and scores what `out` does not hold yet, and writes the table or figure.

    Args:
        shards: a folder that `prep` wrote.
        out: `networks/KIND/run-I/` for each network and its scores; `NAME/` for results.json, table.md and
            the figures.

    Returns:
        What `NAME/results.json` holds.

    Raises:
        CheckpointError: `out` holds networks that were trained otherwise.
    """
    required, present = _EXPERIMENTS[name]
    _require_used(how)
    networks = Networks(
        shards=shards,
        out=out,
        training=how.training,
        blocks=how.blocks,
        encoder_epochs=how.encoder_epochs,
        device=device,
    )
    found = _trained_and_scored(networks, required(how), how, on_progress)
    results, table, drawn = present(how, found)
    machine = describe_machine(next(networks.get(SIGN, 0).model.parameters()).device)
    saved = {
        "experiment": name,
        "config": asdict(how),
        "shards_sha256": Manifest.load(shards).sha256,
        **machine,
        **results,
    }
    _save(out / name, saved, table, drawn)
    return saved


def _require_used(how: Tashiro) -> None:
    reasons = {
        "training.seed": "run i draws with seed i",
        "training.model.attention": "each network has its own",
    }
    if how.blocks is not None:
        reasons["training.held_out.block"] = "blocks are held out in turn"
    require_unset(how, reasons)


def _save(folder: Path, results: dict[str, Any], table: str, drawn: Mapping[str, Figure]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for stem, figure in drawn.items():
        figures.save(figure, folder / stem)
    write_results(folder, results, table)


def _trained_and_scored(
    networks: Networks, required: Sequence[NetworkSpec], how: Tashiro, on_progress: Progress | None
) -> dict[str, Found]:
    """Run by run, so that an interrupted experiment leaves whole runs to compare."""
    gathered: dict[str, Found] = {spec.network.name: Found(test=[], own=[], methods=[]) for spec in required}
    tasks = [(index, spec) for index in range(max(s.runs for s in required)) for spec in required]
    tasks = [(index, spec) for index, spec in tasks if index < spec.runs]
    for done, (index, spec) in enumerate(tasks):
        network, into = spec.network, gathered[spec.network.name]
        into.test.append(networks.get(network, index).metrics["test"])
        if spec.own:
            into.own.append(networks.scores(network, index, "own", _own(network, how)))
        if spec.methods:
            into.methods.append(networks.scores(network, index, "methods", _methods(network, how)))
        if on_progress is not None:
            on_progress(done + 1, len(tasks))
    return gathered


def _own(network: Variant, how: Tashiro) -> ScoreConfig:
    """The network's own attention; without one the controls alone, which `random` asks for."""
    own = OWN_METHOD.get(network.changes["attention"], CONTROLS[0])
    return ScoreConfig(methods=(own,), measures=("deletion",), every=how.score_every)


def _methods(network: Variant, how: Tashiro) -> ScoreConfig:
    """The other methods that fit the network, with their options."""
    methods = fitting(how.methods, network.changes["attention"])
    options = {name: given for name, given in how.options.items() if name in methods}
    return ScoreConfig(
        methods=methods,
        options=options,
        measures=("deletion",),
        every=how.methods_every,
        attention_derivative=how.attention_derivative if network.changes["attention"] == "sign" else "actual",
    )


def _pools(name: str, found: Found) -> dict[tuple[str, str], Pool]:
    """Every method scored on a network; the controls from the scores of its own attention."""
    pools = {}
    for results in (found.methods, found.own):
        if results:
            for method in results[0].summary["plan"]["config"]["methods"]:
                pools[name, method] = Pool.of(results, network=name, method=method)
    return pools


Presented = tuple[dict[str, Any], str, dict[str, Figure]]


def _table2_networks(how: Tashiro) -> list[NetworkSpec]:
    return [NetworkSpec(network=network, runs=how.runs, own=False) for network in (NONE, SOFT, SIGN)]


def _table2(how: Tashiro, found: Mapping[str, Found]) -> Presented:
    rows = [tables.error_row(name, each.test) for name, each in found.items()]
    comparisons = [
        tables.compare_runs("sign", found["sign"].mae_deg, other, found[other].mae_deg)
        for other in ("soft", "none")
    ]
    results = {"rows": rows, "comparisons": comparisons}
    return results, tables.table2(rows, comparisons), {"table2": tables.table2_figure(rows)}


def _fig6_networks(how: Tashiro) -> list[NetworkSpec]:
    base = [
        NetworkSpec(
            network=network,
            runs=how.runs,
            methods=network.name in how.measured_on
            and bool(fitting(how.methods, network.changes["attention"])),
        )
        for network in (SIGN, SOFT, NONE)
    ]
    return base + [NetworkSpec(network=network, runs=how.sweep_runs) for network in (UNIFORM, *_roles(how))]


def _roles(how: Tashiro) -> list[Variant]:
    return [
        Variant(name=f"sign-{role}", changes={"attention": "sign", "sign_role": role})
        for role in how.roles
        if role in get_args(SignRole) and role != "training"
    ]


def _fig6(how: Tashiro, found: Mapping[str, Found]) -> Presented:
    pools = {key: pool for name, each in found.items() for key, pool in _pools(name, each).items()}
    own = pools["sign", "sign-attention"]
    rivals = [pool for key, pool in pools.items() if key != ("sign", "sign-attention")]
    on_its_network = [pool for pool in rivals if pool.network == "sign"]
    against = [compare(own, pool) for pool in on_its_network]
    across = [
        compare(own, pools[key], column)
        for key in pools
        if key[0] != "sign" and key[1] in ("soft-attention", "sign-attention")
        for column in ("value", "base_corrected")
    ]
    within = [
        compare(pools[key], pools[key[0], control])
        for key in pools
        for control in CONTROLS
        if key[1] not in CONTROLS and (key[0], control) in pools
    ]
    results = {
        "areas": [pool.summary() for pool in pools.values()],
        "mae_deg_by_run": {name: each.mae_deg for name, each in found.items()},
        "sign_attention_against": {"same_network": against, "other_networks": across},
        "against_controls": within,
    }
    return results, tables.fig6(results), tables.fig6_figures(results)


def _bits(how: Tashiro) -> dict[str, Variant]:
    usual = how.training.model.bits
    return {
        "none" if bits is None else str(bits): SIGN if bits == usual else _with_bits(bits)
        for bits in how.bits
    }


def _with_bits(bits: int | None) -> Variant:
    name = "sign-only" if bits is None else f"sign-{bits}-bits"
    return Variant(name=name, changes={"attention": "sign", "bits": bits})


def _fig7_networks(how: Tashiro) -> list[NetworkSpec]:
    networks = {network.name: network for network in (*_bits(how).values(), SIGN)}
    return [NetworkSpec(network=network, runs=how.sweep_runs) for network in networks.values()]


def _fig7(how: Tashiro, found: Mapping[str, Found]) -> Presented:
    points = {bits: network.name for bits, network in _bits(how).items()}
    results = _sweep("bits", points, found, "sign-attention")
    return results, tables.fig7(results), tables.fig7_figures(results)


def _temperatures(how: Tashiro) -> dict[float, Variant]:
    usual = how.training.model.temperature
    return {
        t: SOFT
        if t == usual
        else Variant(name=f"soft-t{t:g}", changes={"attention": "soft", "temperature": t})
        for t in how.temperatures
    }


def _fig9_networks(how: Tashiro) -> list[NetworkSpec]:
    networks = {network.name: network for network in (*_temperatures(how).values(), SIGN)}
    return [NetworkSpec(network=network, runs=how.sweep_runs) for network in networks.values()]


def _fig9(how: Tashiro, found: Mapping[str, Found]) -> Presented:
    points = {f"{t:g}": network.name for t, network in _temperatures(how).items()}
    results = _sweep("temperature", points, found, "soft-attention")
    sign = Pool.of(found["sign"].own, network="sign", method="sign-attention")
    # The paper compares T = 0.1 with T = 1: the lowest with what is nearest to the usual one.
    compared = (min(how.temperatures), min(how.temperatures, key=lambda t: abs(np.log(t))))
    names = [_temperatures(how)[t].name for t in compared]
    lowest, usual = (Pool.of(found[name].own, network=name, method="soft-attention") for name in names)
    results["sign"] = {**sign.summary(), "mae_deg_by_run": found["sign"].mae_deg}
    results["comparisons"] = [
        compare(ours, theirs, column)
        for ours, theirs in ((lowest, usual), (sign, lowest), (sign, usual))
        for column in ("value", "base_corrected")
    ]
    return results, tables.fig9(results), tables.fig9_figures(results)


def _sweep(option: str, points: Mapping[str, str], found: Mapping[str, Found], method: str) -> dict[str, Any]:
    rows = []
    for value, name in points.items():
        pool = Pool.of(found[name].own, network=name, method=method)
        control = Pool.of(found[name].own, network=name, method="random")
        rows.append(
            {
                option: value,
                **pool.summary(),
                "random": control.summary()["area"],
                "above_random": compare(pool, control),
                "mae_deg_by_run": found[name].mae_deg,
            }
        )
    return {"option": option, "rows": rows}


_EXPERIMENTS: Mapping[
    Name, tuple[Callable[[Tashiro], list[NetworkSpec]], Callable[[Tashiro, Mapping[str, Found]], Presented]]
] = {
    "tashiro-table2": (_table2_networks, _table2),
    "tashiro-fig6": (_fig6_networks, _fig6),
    "tashiro-fig7": (_fig7_networks, _fig7),
    "tashiro-fig9": (_fig9_networks, _fig9),
}

table2 = partial(run, "tashiro-table2")
fig6 = partial(run, "tashiro-fig6")
fig7 = partial(run, "tashiro-fig7")
fig9 = partial(run, "tashiro-fig9")
