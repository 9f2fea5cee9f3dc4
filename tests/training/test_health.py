"""What is logged of pseudo-labels, from counts worked by hand."""

from types import SimpleNamespace

import pytest
import torch

from hf_fst.errors import UserError
from hf_fst.training import health

SUMS = {
    "pixels": torch.tensor(8),
    "confidence": torch.tensor(6.0),
    "above_threshold": torch.tensor(2),
    "disagreement": torch.tensor(4),
    "changed": torch.tensor(1),
    "histogram": torch.tensor([5, 2, 1]),
    # rows are the truth: 4 of 5 pixels of class 0 found, 1 of 2 of class 1, the one of class 2 taken for class 1
    "confusion": torch.tensor([[4, 0, 1], [1, 1, 0], [0, 1, 0]]),
}


def watcher(names=("sky", "road", "car"), scored=None, **more):
    """The callback of a stand-in for a trainer."""
    objective = SimpleNamespace(confidence_threshold=0.9, align_corners=False)
    settings = SimpleNamespace(eval_classes=scored)
    return health.Health(SimpleNamespace(class_names=names, settings=settings, learning_objective=objective, **more))


def logs(scored=None):
    return watcher(scored=scored).logs(SUMS)


def test_shares_are_of_all_pixels():
    found = logs()
    assert found["pseudo_confidence"] == 0.75 and found["pseudo_above_threshold"] == 0.25
    assert found["pseudo_disagreement"] == 0.5 and found["pseudo_changed"] == 0.125
    assert [found[f"pseudo_share_{name}"] for name in ("sky", "road", "car")] == [0.625, 0.25, 0.125]
    assert found["pseudo_accuracy"] == 5 / 8
    assert found["pseudo_mean_iou"] == pytest.approx((4 / 6 + 1 / 3 + 0) / 3)


def test_truth_is_over_the_scored_classes():
    found = logs(scored=[0, 1])
    assert found["pseudo_accuracy"] == 5 / 7 and found["pseudo_mean_iou"] == pytest.approx((4 / 6 + 1 / 3) / 2)
    assert found["pseudo_share_car"] == 0.125


def test_an_objective_that_gives_no_pseudo_labels_is_told_what_to_give():
    with pytest.raises(UserError, match="gives no pseudo_confidence, which are logged"):
        watcher().sums(None, {"pseudo_labels": torch.zeros(1, 2, 4, dtype=torch.int64)})


@pytest.mark.parametrize(
    ("shares", "warned_at"), [({}, [200]), ({150: 0.1}, []), ({250: 0.1}, [200])], ids=["never", "before", "later"]
)
def test_pseudo_labels_that_stay_below_the_threshold_are_warned_of_once(monkeypatch, shares, warned_at):
    told = []
    monkeypatch.setattr(health, "sum_over_processes", lambda accelerator, sums: sums)
    monkeypatch.setattr(health.logger, "warning", lambda text: told.append(int(text.split()[1])))
    state = SimpleNamespace(global_step=0, logging_steps=50)
    watching = watcher(accelerator=None, state=state, journal=SimpleNamespace())
    watching.on_train_begin(None, None, None)
    for step in range(50, 301, 50):
        logs = {"pseudo_above_threshold": shares.get(step, 0.0), "pseudo_confidence": 0.3}
        watching.sums, watching.logs = lambda *_: {}, lambda _, logs=logs: logs
        state.global_step = step - 1
        watching.after(None, {})
    assert told == warned_at
