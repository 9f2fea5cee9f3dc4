"""Plots: which panels and numbers they show."""

import math

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from hf_fst.drawing import plots

LOG = [
    {"step": 10, "loss": 2.0, "labeled_loss": 1.5, "unlabeled_loss": 0.5, "pseudo_confidence": 0.6},
    {"step": 10, "eval_student_mean_iou": 0.20, "eval_teacher_mean_iou": 0.10, "eval_loss": 3.0},
    {"step": 20, "loss": 1.0, "labeled_loss": 0.75, "unlabeled_loss": 0.25, "pseudo_confidence": 0.8},
    {"step": 20, "eval_student_mean_iou": 0.30, "eval_teacher_mean_iou": 0.40},
    {"step": 30, "eval_student_mean_iou": 0.35, "eval_teacher_mean_iou": 0.38},
    {"step": 30, "train_runtime": 12.0, "train_loss": 1.5},
]


@pytest.fixture
def drawn(monkeypatch):
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path: figures.append(figure))
    return figures


def lines_of(axes):
    return {line.get_label(): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.get_lines()}


def titles_of(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def test_panels_without_data_are_left_out_and_values_are_those_of_the_log(drawn):
    plots.curves(LOG, "unused.png")
    assert titles_of(drawn[0]) == ["Training loss", "Validation mIoU", "Pseudo-label quality"]
    loss, miou, quality = map(lines_of, drawn[0].axes)
    assert loss == {
        "total": ([10, 20], [2.0, 1.0]),
        "labeled": ([10, 20], [1.5, 0.75]),
        "unlabeled": ([10, 20], [0.5, 0.25]),
    }
    assert miou["student"] == ([10, 20, 30], [0.20, 0.30, 0.35])
    assert miou["teacher"] == ([10, 20, 30], [0.10, 0.40, 0.38])
    assert quality == {"mean confidence": ([10, 20], [0.6, 0.8])}
    assert drawn[0].axes[1].get_ylabel() == "mIoU (%)"


def test_best_point_is_the_highest_teacher_or_the_step_that_was_kept(drawn):
    plots.curves(LOG, "unused.png")
    assert lines_of(drawn[0].axes[1])["best teacher: 40.0 at step 20"] == ([20], [0.40])
    plots.curves(LOG, "unused.png", best_step=30)
    assert lines_of(drawn[1].axes[1])["best teacher: 38.0 at step 30"] == ([30], [0.38])


def test_one_line_where_student_and_teacher_are_the_same(drawn):
    log = [{"step": s, "eval_student_mean_iou": s / 100, "eval_teacher_mean_iou": s / 100} for s in (10, 20)]
    plots.curves(log, "unused.png")
    assert "student = teacher" in lines_of(drawn[0].axes[0])
    assert "student" not in lines_of(drawn[0].axes[0])


def test_change_and_disagreement_have_a_panel_of_their_own(drawn):
    log = [{"step": s, "pseudo_disagreement": 0.1, "pseudo_changed": 0.001, "pseudo_accuracy": 0.7} for s in (1, 2)]
    plots.curves(log, "unused.png")
    assert titles_of(drawn[0]) == ["Pseudo-label quality", "Pseudo labels that differ"]
    assert set(lines_of(drawn[0].axes[1])) == {"teacher and student disagree", "changed by the look-ahead"}


def heights_of(axes):
    """Top of each area of a stack at its first step, by label."""
    return {area.get_label(): max(y for x, y in area.get_paths()[0].vertices if x == 1) for area in axes.collections}


def test_class_shares_are_stacked_in_the_colors_of_the_classes(drawn):
    log = [{"step": s, "pseudo_share_road": 0.5, "pseudo_share_car": 0.2, "pseudo_share_sky": 0.3} for s in (1, 2)]
    plots.curves(log, "unused.png", names=["road", "car", "sky"], palette=[[255, 0, 0], [0, 255, 0], [0, 0, 255]])
    [axes] = drawn[0].axes
    assert heights_of(axes) == pytest.approx({"road": 0.5, "car": 0.7, "sky": 1.0})
    assert [area.get_facecolor()[0][:3].tolist() for area in axes.collections] == np.eye(3).tolist()


def test_of_many_classes_the_rare_ones_are_shown_together(drawn):
    names = [f"class {i}" for i in range(15)]
    shares = {f"pseudo_share_{name}": 0.1 if index < 5 else 0.05 for index, name in enumerate(names)}
    plots.curves([{"step": step} | shares for step in (1, 2)], "unused.png", names=names)
    labels = [area.get_label() for area in drawn[0].axes[0].collections]
    assert labels == [*names[:11], "4 other classes"]
    assert heights_of(drawn[0].axes[0])["4 other classes"] == pytest.approx(1.0)  # 5 × .1 + 10 × .05


def test_nan_is_skipped_and_a_step_logged_again_after_a_resume_counts_once():
    log = [{"step": 1, "loss": 3.0}, {"step": 2, "loss": math.nan}, {"step": 3, "loss": 1.0}, {"step": 1, "loss": 2.0}]
    steps, values = plots.series(log, "loss")
    assert (steps.tolist(), values.tolist()) == ([1, 3], [2.0, 1.0])


def test_long_noisy_lines_get_their_running_mean(drawn):
    plots.curves([{"step": step, "loss": float(step % 2)} for step in range(60)], "unused.png")
    smooth = lines_of(drawn[0].axes[0])["loss"]  # 60 // 30 = 2 neighbors: always the mean of 0 and 1
    assert smooth[0][0] == 0.5 and len(smooth[1]) == 59
    assert np.allclose(smooth[1], 0.5)


def test_nothing_to_draw_writes_nothing(tmp_path):
    plots.curves([{"step": 1, "epoch": 0.1}], tmp_path / "curves.png")
    plots.curves([], tmp_path / "curves.png")
    assert not (tmp_path / "curves.png").exists()


def test_class_bars_have_the_length_of_the_values(drawn):
    plots.class_bars([0.2, None, 0.6], [0.5, math.nan, 0.7], ["road", "car", "sky"], "unused.png")
    [axes] = drawn[0].axes
    student, teacher = axes.containers
    assert [bar.get_width() for bar in student] == [0.2, 0, 0.6]
    assert [bar.get_width() for bar in teacher] == [0.5, 0, 0.7]
    assert [text.get_text() for text in axes.texts] == ["20.0", "absent", "60.0", "50.0", "absent", "70.0"]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == [
        "student (mean 40.0)",
        "teacher (mean 60.0)",
    ]
    assert [text.get_text() for text in axes.get_yticklabels()] == ["road", "car", "sky"]


def test_class_bars_take_the_mean_over_the_classes_that_count(drawn):
    plots.class_bars(None, [0.5, 0.1, 0.7], ["road", "car", "sky"], "unused.png", scored=[0, 2])
    axes = drawn[0].axes[0]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["teacher (mean 60.0)"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "(car)", "sky"]


def test_sampling_bars_are_shares_and_draws(drawn):
    plots.sampling_bars([0.75, 0.25, 0.0], [0.00001, 0.99999, 0.0], ["road", "car", "sky"], "unused.png")
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.75, 0.25, 0.0, 0.00001, 0.99999, 0.0]
    assert [text.get_text() for text in axes.texts] == ["75.0", "25.0", "0.0", "< 0.01", "100.0", "0.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["road", "car", "sky"]


def test_pictures_are_written_and_not_blank(tmp_path):
    plots.curves(LOG, tmp_path / "curves.png")
    plots.class_bars([0.2], [0.5], ["road"], tmp_path / "bars.png")
    for name in ("curves.png", "bars.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 150
            assert len(np.unique(np.asarray(picture.convert("L")))) > 10
