"""Plots of a run: its curves, and per-class IoU of student and teacher. They read the trainer's `log_history`.

Colors are Okabe and Ito's, which stay apart for color-blind readers; student and teacher also differ in marker and
line.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from hf_fst.drawing.overlays import default_palette
from hf_fst.drawing.tables import in_a_picture, in_brackets, interval

STUDENT = {"color": "#E69F00", "marker": "s", "linestyle": "--"}
TEACHER = {"color": "#0072B2", "marker": "o", "linestyle": "-"}
LINE_COLORS = ("#000000", "#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", ":")
LOSS, MIOU, QUALITY, MOVEMENT, SHARES = PANELS = (
    "Training loss",
    "Validation mIoU",
    "Pseudo-label quality",
    "Pseudo labels that differ",
    "Classes of the pseudo labels",
)
AXIS_LABELS = {
    LOSS: "loss",
    MIOU: "mIoU (%)",
    QUALITY: "pixels, or mIoU (%)",
    MOVEMENT: "pixels (%)",
    SHARES: "pixels (%)",
}
LINES = {
    MIOU: {"eval_student_mean_iou": "student", "eval_teacher_mean_iou": "teacher"},
    QUALITY: {
        "pseudo_confidence": "mean confidence",
        "pseudo_above_threshold": "share above the threshold",
        "pseudo_accuracy": "pixel accuracy",
        "pseudo_mean_iou": "mIoU",
    },
    MOVEMENT: {
        "pseudo_disagreement": "teacher and student disagree",
        "pseudo_changed": "changed by the look-ahead",
    },
}
SHOWN_CLASSES = 12


def series(log_history: Sequence[Mapping], key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps (n,) and finite values (n,) of one key of the log; of a step logged twice the later entry counts."""
    points = {
        entry["step"]: float(entry[key])
        for entry in log_history
        if isinstance(entry.get(key), (int, float)) and math.isfinite(entry[key])
    }
    steps = sorted(points)
    return np.array(steps), np.array([points[step] for step in steps])


def curves(
    log_history: Sequence[Mapping],
    path: str | Path,
    best_step: int | None = None,
    names: Sequence[str] = (),
    palette: Sequence[Sequence[int]] | None = None,
) -> None:
    """Write the curves of a run: losses, mIoU, pseudo-label quality, how much pseudo labels move, and their classes.

    Panels without data are left out; without any no file is written.

    Args:
        log_history: dicts with "step" and the keys the trainer logs; fractions in 0..1.
        path: where to write the picture.
        best_step: the step of the evaluation that was kept, marked in the mIoU panel; by default the teacher's
            highest mIoU.
        names: class names, (C,), for the shares of the classes among pseudo labels.
        palette: colors of the classes, (C, 3) in 0..255.
    """
    keys = {key for entry in log_history for key in entry}
    terms = sorted(key for key in keys if key.endswith("_loss") and not key.startswith(("eval_", "test_", "train_")))
    lines = LINES | {
        LOSS: {"loss": "total" if terms else "loss"}
        | {term: term.removesuffix("_loss").replace("_", " ") for term in terms},
        SHARES: {f"pseudo_share_{name}": name for name in names},
    }
    panels = {}
    for title in PANELS:
        data = {key: (label, *series(log_history, key)) for key, label in lines[title].items()}
        if data := {key: (label, steps, values) for key, (label, steps, values) in data.items() if len(steps)}:
            panels[title] = data
    if not panels:
        return

    columns, rows = min(2, len(panels)), math.ceil(len(panels) / 2)
    last_step = max(entry["step"] for entry in log_history)
    figure = Figure(figsize=(5.8 * columns, 3.9 * rows), dpi=110, layout="constrained")
    cells = figure.add_gridspec(rows, columns)
    for index, (title, data) in enumerate(panels.items()):
        row, column = divmod(index, columns)
        alone = columns == 2 and column == 0 and index == len(panels) - 1
        axes = figure.add_subplot(cells[row, :] if alone else cells[row, column])
        if title == MIOU:
            _draw_miou(axes, data, best_step)
        elif title == SHARES:
            _draw_shares(axes, data, default_palette(len(names)) if palette is None else palette, names)
        else:
            _draw_lines(axes, data)
        _style(axes, title, last_step, wide=alone)
        axes.set_ylabel(AXIS_LABELS[title], fontsize=10)
        if title != LOSS:
            _percent_axis(axes)
    figure.savefig(path)


def _style(axes: Axes, title: str, last_step: int, wide: bool) -> None:
    """Title, then the legend, then the axes, so that the legend never hides a line."""
    handles, labels = axes.get_legend_handles_labels()
    columns = (6 if wide else 3) if title == SHARES else 2 if len(labels) in (2, 4) else 3
    axes.legend(
        handles, labels, loc="lower left", bbox_to_anchor=(-0.02, 1), ncols=columns, fontsize=9, frameon=False,
        borderaxespad=0.1, columnspacing=1.0, handlelength=2.0, handletextpad=0.6,
    )  # fmt: skip
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=8 + 16 * math.ceil(len(labels) / columns))
    axes.set_xlabel("training step", fontsize=10)
    axes.tick_params(labelsize=10)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlim(0, 1.02 * max(last_step, 1))
    axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))


def _percent_axis(axes: Axes) -> None:
    low, high = axes.get_ylim()
    axes.set_ylim(max(0.0, low), min(1.0, high))
    span = 100 * (axes.get_ylim()[1] - axes.get_ylim()[0])
    axes.yaxis.set_major_locator(MaxNLocator(nbins=7, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_formatter(
        PercentFormatter(1.0, decimals=0 if span > 5 else 1 if span > 0.5 else 2, symbol="")
    )


def _draw_lines(axes: Axes, data: Mapping[str, tuple]) -> None:
    """Thin lines; long noisy ones faint with their running mean on top."""
    for index, (label, steps, values) in enumerate(data.values()):
        look = {"color": LINE_COLORS[index % len(LINE_COLORS)], "linestyle": DASHES[index % len(DASHES)]}
        window = len(values) // 30
        if window > 1:
            axes.plot(steps, values, color=look["color"], linewidth=0.8, alpha=0.25)
            kernel = np.full(window, 1 / window)  # the mean of each `window` values beside that of their steps
            steps, values = (np.convolve(each, kernel, "valid") for each in (steps, values))
        axes.plot(
            steps, values, label=label, linewidth=1.8, marker="o" if len(values) < 15 else "", markersize=4, **look
        )


def _draw_miou(axes: Axes, data: Mapping[str, tuple], best_step: int | None) -> None:
    lines = {
        key: (look, *data[key])
        for key, look in (("eval_student_mean_iou", STUDENT), ("eval_teacher_mean_iou", TEACHER))
        if key in data
    }
    if len(lines) == 2 and np.array_equal(data["eval_student_mean_iou"][2], data["eval_teacher_mean_iou"][2]):
        look, _, steps, values = lines.pop("eval_teacher_mean_iou")
        lines = {"eval_student_mean_iou": (look, "student = teacher", steps, values)}
    for look, label, steps, values in lines.values():
        axes.plot(steps, values, label=label, linewidth=1.8, markersize=5, **look)
    key = "eval_teacher_mean_iou" if "eval_teacher_mean_iou" in data else "eval_student_mean_iou"
    label, steps, values = data[key]
    at = int(np.argmax(values)) if best_step is None else int(np.argmin(np.abs(steps - best_step)))
    axes.plot(
        steps[at], values[at], marker="*", markersize=17, color="#D55E00", markeredgecolor="white", linestyle="",
        label=f"best {label}: {100 * values[at]:.1f} at step {steps[at]}", zorder=5,
    )  # fmt: skip


def _draw_shares(
    axes: Axes, data: Mapping[str, tuple], palette: Sequence[Sequence[int]], names: Sequence[str]
) -> None:
    """Stacked shares of the most frequent classes, in the order of the labels, and of all others together."""
    steps = sorted({step for _, own_steps, _ in data.values() for step in own_steps})
    shares = {label: np.interp(steps, own_steps, values) for label, own_steps, values in data.values()}
    frequent = sorted(shares, key=lambda name: -shares[name].mean())[:SHOWN_CLASSES]
    shown = [name for name in shares if len(shares) <= SHOWN_CLASSES or name in frequent[:-1]]
    stack, colors = (
        [shares[name] for name in shown],
        [np.asarray(palette[list(names).index(name)]) / 255 for name in shown],
    )
    if rest := [shares[name] for name in shares if name not in shown]:
        stack, colors, shown = [*stack, sum(rest)], [*colors, (0.8, 0.8, 0.8)], [*shown, f"{len(rest)} other classes"]
    axes.stackplot(steps, stack, labels=[*map(in_a_picture, shown)], colors=colors, edgecolor="white", linewidth=0.4)


def class_bars(
    student: Sequence[float | None] | None,
    teacher: Sequence[float | None] | None,
    names: Sequence[str],
    path: str | Path,
    title: str = "IoU per class",
    scored: Sequence[int] | None = None,
) -> None:
    """Write a bar chart of per-class IoU, student beside teacher, with the means in the legend.

    Args:
        student: IoU in 0..1 per class, None or nan where the class does not occur, (C,); None to leave it out.
        teacher: the same of the teacher.
        names: class names, (C,).
        path: where to write the picture.
        title: over the chart.
        scored: ids of the classes the means are over, the others stand in brackets; None for all.
    """
    groups = {"student": (student, STUDENT["color"]), "teacher": (teacher, TEACHER["color"])}
    groups = {label: (np.array(ious, float), color) for label, (ious, color) in groups.items() if ious is not None}
    thickness = 0.8 / len(groups)
    figure = Figure(figsize=(8, 1.5 + 0.24 * len(groups) * len(names)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    positions = np.arange(len(names))
    for index, (label, (values, color)) in enumerate(groups.items()):
        offset = (index - (len(groups) - 1) / 2) * thickness
        counted = values if scored is None else values[list(scored)]
        mean = f"mean {100 * np.nanmean(counted):.1f}" if np.isfinite(counted).any() else "no class present"
        axes.barh(positions + offset, np.nan_to_num(values), thickness, color=color, label=f"{label} ({mean})")
        for position, value in zip(positions + offset, values, strict=True):
            text, look = (f"{100 * value:.1f}", "#222222") if math.isfinite(value) else ("absent", "#777777")
            axes.text(np.nan_to_num(value) + 0.008, position, text, va="center", fontsize=8.5, color=look)
    axes.set_xlim(0, 1.08)
    axes.set_xticks(np.linspace(0, 1, 6))
    _style_bars(axes, in_brackets(names, scored), "IoU (%)", in_a_picture(title))
    figure.savefig(path)


def curves_over_time(curves: Mapping[str, Mapping[str, Sequence[Sequence[float]]]], path: str | Path) -> None:
    """mIoU of methods against the time they took: the mean over seeds, with bars for its 95 % interval from 3 seeds on.

    Args:
        curves: by method and seed, (step, seconds, mIoU in 0..1) of every evaluation.
        path: of the picture.
    """
    figure = Figure(figsize=(7.6, 4.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    for index, (name, seeds) in enumerate(curves.items()):
        shared = set.intersection(*({step for step, *_ in points} for points in seeds.values()))
        points = [[point for point in points if point[0] in shared] for points in seeds.values()]
        minutes = np.array([[seconds / 60 for _, seconds, _ in row] for row in points]).mean(axis=0)
        spread = [interval([miou for *_, miou in column]) for column in zip(*points, strict=True)]
        mean, width = np.array(spread).T
        look = {"color": LINE_COLORS[index % len(LINE_COLORS)], "linestyle": DASHES[index // len(LINE_COLORS) % 4]}
        axes.plot(minutes, mean, label=name, marker="o", markersize=4, **look)
        if len(seeds) > 2:
            axes.errorbar(
                minutes, mean, width, color=look["color"], alpha=0.45, linestyle="none", capsize=3, linewidth=1
            )
    _percent_axis(axes)
    axes.set_xlim(left=0)
    axes.set_xlabel("minutes of training", fontsize=10)
    axes.set_ylabel("validation mIoU (%)", fontsize=10)
    axes.grid(color="#DDDDDD", linewidth=0.7)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path)


def sampling_bars(
    shares: Sequence[float], probabilities: Sequence[float], names: Sequence[str], path: str | Path
) -> None:
    """Write a bar chart of Rare Class Sampling: how frequent each class is, and how often it is drawn.

    Args:
        shares: share of the labeled pixels in 0..1, (C,).
        probabilities: of drawing the class, in 0..1, (C,).
        names: class names, (C,).
        path: where to write the picture.
    """
    figure = Figure(figsize=(8, 1.5 + 0.42 * len(names)), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    positions = np.arange(len(names))
    groups = {"of the labeled pixels": (shares, "#999999"), "of the draws": (probabilities, TEACHER["color"])}
    largest = max(*shares, *probabilities)
    for offset, (label, (values, color)) in zip((-0.2, 0.2), groups.items(), strict=True):
        axes.barh(positions + offset, values, 0.4, color=color, label=label)
        for position, value in zip(positions + offset, values, strict=True):
            text = "< 0.01" if 0 < value < 1e-4 else f"{100 * value:.{1 if value == 0 or value >= 0.1 else 2}f}"
            axes.text(value + 0.01 * largest, position, text, va="center", fontsize=8.5, color="#222222")
    axes.set_xlim(0, 1.1 * largest)
    _style_bars(axes, names, "share (%)", "How frequent and how often drawn each class is")
    figure.savefig(path)


def _style_bars(axes: Axes, names: Sequence[str], label: str, title: str) -> None:
    axes.set_yticks(np.arange(len(names)), [*map(in_a_picture, names)], fontsize=10.5)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0, symbol=""))
    axes.set_xlabel(label, fontsize=10)
    axes.set_title(title, fontsize=12, fontweight="bold", loc="left", pad=24)
    axes.grid(axis="x", color="#DDDDDD", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, fontsize=10, frameon=False, borderaxespad=0.2)
