"""Tables and plots of the experiments after Tashiro and Awano 2023, with the paper's numbers.

The paper gives Table 2, the four areas of Fig. 6 and the errors at both ends of its curves; Figs. 7
and 9 print no values beyond two p-values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from matplotlib.figure import Figure

from driving_xai.experiments.figures import Line, Value, interval_plot, line_plot
from driving_xai.experiments.tables import p_text
from driving_xai.experiments.tashiro_areas import paired_p, text_of, welch_p
from driving_xai.metrics.faithfulness import DELETED

PAPER_MAE_DEG = {"soft": 4.94, "sign": 4.67, "none": 4.77}
"""Table 2. It prints 4.67 and 4.07 in the lines of one row; the curve of Fig. 6 starts at 4.67."""
PAPER_AREA = {"sign-attention": 162.0, "soft-attention": 141.0, "grad-cam": 140.0, "lime": 154.0}
PAPER_CURVE_DEG = {"sign-attention": (4.67, 8.35), "soft-attention": (4.94, 6.33)}
"""Errors at 0 and 25 % removed. The text swaps the ends of the other three; these fit their areas."""
PAPER_P = {"soft at the lowest temperature against 1": 0.193, "sign against the lowest": 6.55e-5}
CONSTANTS = ("zero", "train_mean", "train_median")
_AREA = "area, deg x percent"


def error_row(name: str, test: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """A network's errors over its runs, each run weighing by its frames."""
    weights = [metrics["frames"] for metrics in test]
    errors = [metrics["mae_deg"] for metrics in test]
    return {
        "network": name,
        "mae_deg": float(np.average(errors, weights=weights)),
        "sd": float(np.std(errors, ddof=1)) if len(errors) > 1 else None,
        "by_run": errors,
        "paper": PAPER_MAE_DEG.get(name),
        "constants": {
            each: float(np.average([metrics[f"mae_deg_{each}"] for metrics in test], weights=weights))
            for each in CONSTANTS
        },
    }


def compare_runs(
    ours: str, our_errors: Sequence[float], theirs: str, their_errors: Sequence[float]
) -> dict[str, Any]:
    """Two networks' errors, run by run; each run weighs alike, as in both tests, whatever its frames."""
    return {
        "ours": ours,
        "theirs": theirs,
        "difference_deg": float(np.mean(our_errors) - np.mean(their_errors)),
        "welch_p": welch_p(our_errors, their_errors),
        "paired_t_p": paired_p(our_errors, their_errors),
    }


def table2(rows: Sequence[Mapping[str, Any]], comparisons: Sequence[Mapping[str, Any]]) -> str:
    runs = len(rows[0]["by_run"])
    lines = [
        "Mean absolute error of the steering-wheel angle on held-out frames, in degrees.",
        "",
        f"| network | paper | ours | SD over runs | {' | '.join(f'run {i}' for i in range(runs))} |",
        f"|---|---|---|---|{'---|' * runs}",
    ]
    for row in rows:
        by_run = " | ".join(f"{error:.2f}" for error in row["by_run"])
        sd = "-" if row["sd"] is None else f"{row['sd']:.2f}"
        lines.append(f"| {row['network']} | {row['paper']:.2f} | {row['mae_deg']:.2f} | {sd} | {by_run} |")
    for name in CONSTANTS:
        label = {"zero": "always straight", "train_mean": "training mean", "train_median": "training median"}
        lines.append(
            f"| {label[name]} | - | {rows[0]['constants'][name]:.2f} | - | {' | '.join('-' * runs)} |"
        )
    lines += ["", "Above, runs weigh by their frames; the differences and tests below weigh runs alike."]
    lines += [
        "",
        "| ours | against | difference, deg, runs alike | Welch p | paired t p |",
        "|---|---|---|---|---|",
    ]
    for each in comparisons:
        lines.append(
            f"| {each['ours']} | {each['theirs']} | {each['difference_deg']:+.2f} | "
            f"{p_text(each['welch_p'])} | {p_text(each['paired_t_p'])} |"
        )
    return "\n".join(lines)


def table2_figure(rows: Sequence[Mapping[str, Any]]) -> Figure:
    shown = [
        Value(
            name=row["network"],
            mean=row["mae_deg"],
            low=min(row["by_run"]),
            high=max(row["by_run"]),
            paper=row["paper"],
        )
        for row in rows
    ]
    return interval_plot(
        shown, title="Error by attention; lines span the runs, rings are the paper's", x_label="MAE, deg"
    )


def fig6(results: Mapping[str, Any]) -> str:
    lines = [
        "Area under the error as the most salient pixels are blacked out, 0 to 25 %, in degree x percent;",
        "higher is more faithful. 95 % intervals from blocks of the drive.",
        "",
        "| network | explanation | paper | area | above its own unedited error | against its clean prediction "
        "| MAE, deg | frames | by run |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in _ranked(results["areas"]):
        theirs = PAPER_AREA.get(row["method"]) if row["network"] in ("sign", "soft") else None
        by_run = ", ".join(f"{area:.0f}" for area in row["area_by_run"])
        lines.append(
            f"| {row['network']} | {row['method']} | {'-' if theirs is None else f'{theirs:.0f}'} | "
            f"{text_of(row['area'])} | {text_of(row['base_corrected'])} | "
            f"{text_of(row['against_clean'])} | {row['mae_deg']:.2f} | {row['frames']} | {by_run} |"
        )
    against = results["sign_attention_against"]
    lines += ["", "Sign attention against the others on its own network, on the same frames:", ""]
    lines += _comparison_table(against["same_network"])
    lines += [
        "",
        "Against attention of other networks (the paper's ratio to soft attention: 162 / 141 = 1.15):",
        "",
    ]
    lines += _comparison_table(against["other_networks"])
    lines += ["", "Every method against the controls on its network:", ""]
    lines += _comparison_table(results["against_controls"])
    return "\n".join(lines)


def _ranked(areas: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Network by network in the order given, the largest area of each first."""
    order = list(dict.fromkeys(row["network"] for row in areas))
    return sorted(areas, key=lambda row: (order.index(row["network"]), -(row["area"]["mean"] or 0.0)))


def _comparison_table(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = [
        "| ours | theirs | quantity | ours - theirs | ratio | Wilcoxon p, blocks | Welch p, runs | paired t p, runs |",
        "|---|---|---|---|---|---|---|---|",
    ]
    names = {"value": "area", "base_corrected": "area above the unedited error"}
    for each in comparisons:
        ratio = "-" if each["ratio"] is None else f"{each['ratio']:.2f}"
        lines.append(
            f"| {' / '.join(each['ours'])} | {' / '.join(each['theirs'])} | {names[each['quantity']]} | "
            f"{text_of(each['difference'])} | {ratio} | {p_text(each['wilcoxon_p'])} | "
            f"{p_text(each['welch_p'])} | {p_text(each['paired_t_p'])} |"
        )
    return lines


def fig6_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    percent = [100 * fraction for fraction in DELETED]
    shown = [
        Line(name=f"{row['method']}", x=percent, y=row["curve_deg"])
        for row in _ranked(results["areas"])
        if row["network"] == "sign"
    ]
    soft = [row for row in results["areas"] if row["method"] == "soft-attention"]
    shown += [Line(name="soft (own network)", x=percent, y=row["curve_deg"]) for row in soft]
    shown += [
        Line(name=f"paper: {method.removesuffix('-attention')}", x=(0, 25), y=ends, of_paper=True)
        for method, ends in PAPER_CURVE_DEG.items()
    ]
    masking = line_plot(
        shown,
        title="Error as the most salient pixels are removed, on the sign-attention network",
        x_label="pixels removed, %",
        y_label="mean absolute error, deg",
        width_in=8.5,
        height_in=4.8,
    )
    rows = [
        Value(
            name=f"{row['network']}: {row['method']}",
            mean=row["area"]["mean"],
            low=row["area"]["low"],
            high=row["area"]["high"],
            paper=PAPER_AREA.get(row["method"]) if row["network"] in ("sign", "soft") else None,
        )
        for row in _ranked(results["areas"])
    ]
    areas = interval_plot(rows, title="Deletion area; rings are the paper's", x_label=_AREA, width_in=8.5)
    return {"masking": masking, "areas": areas}


def _sweep_table(results: Mapping[str, Any]) -> list[str]:
    option = results["option"]
    lines = [
        f"| {option} | area | above its own unedited error | random | area / random | Wilcoxon p | MAE, deg | MAE by run |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in results["rows"]:
        above = row["above_random"]
        by_run = ", ".join(f"{error:.2f}" for error in row["mae_deg_by_run"])
        lines.append(
            f"| {row[option]} | {text_of(row['area'])} | {text_of(row['base_corrected'])} | "
            f"{text_of(row['random'])} | {above['ratio']:.2f} | {p_text(above['wilcoxon_p'])} | "
            f"{np.mean(row['mae_deg_by_run']):.2f} | {by_run} |"
        )
    return lines


def fig7(results: Mapping[str, Any]) -> str:
    best = max(results["rows"], key=lambda row: row["area"]["mean"])
    return "\n".join(
        [
            "Bits of the magnitude against area and error of sign attention; `none` is not quantised.",
            f"The paper's area is highest at 10 bits and its error is flat; ours is highest at {best['bits']}.",
            "",
            *_sweep_table(results),
        ]
    )


def fig7_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    numbered = [row for row in results["rows"] if row["bits"] != "none"]
    return {
        "area": _sweep_figure(numbered, "bits", "area", _AREA, log=False),
        "mae": _sweep_figure(numbered, "bits", "error", "MAE, deg", log=False),
    }


def fig9(results: Mapping[str, Any]) -> str:
    lines = [
        "Temperature of soft attention against area and error, beside sign attention.",
        f"The paper's p-values (Welch): {PAPER_P['soft at the lowest temperature against 1']} for T = 0.1 against",
        f"1, {PAPER_P['sign against the lowest']:.3g} for sign attention against T = 0.1.",
        "",
        *_sweep_table(results),
        "",
        f"Sign attention: area {text_of(results['sign']['area'])}, "
        f"MAE {np.mean(results['sign']['mae_deg_by_run']):.2f} deg.",
        "",
        *_comparison_table(results["comparisons"]),
    ]
    return "\n".join(lines)


def fig9_figures(results: Mapping[str, Any]) -> dict[str, Figure]:
    return {
        "area": _sweep_figure(results["rows"], "temperature", "area", _AREA, log=True),
        "mae": _sweep_figure(results["rows"], "temperature", "error", "MAE, deg", log=True),
    }


def _sweep_figure(
    rows: Sequence[Mapping[str, Any]],
    option: str,
    quantity: Literal["area", "error"],
    y_label: str,
    *,
    log: bool,
) -> Figure:
    """The mean over runs, in a band from the lowest run to the highest."""
    x = [float(row[option]) for row in rows]
    by_run = [row["area_by_run"] if quantity == "area" else row["mae_deg_by_run"] for row in rows]
    drawn = [
        Line(
            name="mean",
            x=x,
            y=[float(np.mean(values)) for values in by_run],
            low=[min(values) for values in by_run],
            high=[max(values) for values in by_run],
            marked=True,
        )
    ]
    if quantity == "area":
        drawn.append(Line(name="random order", x=x, y=[row["random"]["mean"] for row in rows]))
    return line_plot(
        drawn,
        title=f"{quantity} by {option}; the band spans the runs".capitalize(),
        x_label=option,
        y_label=y_label,
        x_ticks=x,
        x_log=log,
    )
