"""What is shown while a run trains: one bar, and a line for each entry of the log."""

from __future__ import annotations

import time

from tqdm.auto import tqdm
from transformers import TrainerCallback

from hf_fst.drawing.tables import duration, percent
from hf_fst.evaluation.counting import LABEL_FREE

TIMED = 5  # steps after which the remaining time is estimated
#: what the shares in a log entry mean, in the order in which they are shown
SHARES = {
    "pseudo_confidence": "mean confidence",
    "pseudo_above_threshold": "above the threshold",
    "pseudo_disagreement": "unlike the student's",
    "pseudo_changed": "changed by the look-ahead",
    "pseudo_accuracy": "right",
    "pseudo_mean_iou": "mIoU",
}
# shown elsewhere, or only for curves
LEFT_OUT = ("loss", "grad_norm", "learning_rate", "epoch", "total_flos")


class Stopwatch(TrainerCallback):
    """Seconds spent in training steps, without evaluation, saving, and the first step, which sets things up."""

    def __init__(self):
        self.steps, self.seconds, self._since = 0, 0.0, None

    @property
    def per_step(self) -> float | None:
        """Seconds of a step; None before the second one."""
        return self.seconds / self.steps if self.steps else None

    def on_step_end(self, args, state, control, **kwargs):
        if self._since is not None:
            self.seconds += time.perf_counter() - self._since
            self.steps += 1
        self._since = time.perf_counter()

    def _restart(self, args, state, control, **kwargs):
        if self._since is not None:
            self._since = time.perf_counter()

    on_evaluate = on_save = _restart


class Progress(TrainerCallback):
    """One progress bar for the training, which also shows evaluations, and above it the log in words.

    There is no bar with `disable_tqdm`, and none in a file or a pipe. The stopwatch must be called before.
    """

    def __init__(self, stopwatch: Stopwatch):
        self.stopwatch, self.bar, self.evaluated = stopwatch, None, 0

    def on_train_begin(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            hidden = True if args.disable_tqdm else None
            bounds = {"total": state.max_steps, "initial": state.global_step}
            self.bar = tqdm(desc="training", unit="step", dynamic_ncols=True, disable=hidden, **bounds)

    def on_step_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.update()
            if self.stopwatch.steps == TIMED and state.global_step < state.max_steps:
                self.bar.write(expected(self.stopwatch.per_step, state.max_steps - state.global_step))

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        self.evaluated += 1
        if self.bar is not None:
            self.bar.set_postfix_str(f"evaluating {self.evaluated}/{len(eval_dataloader)}")

    def on_evaluate(self, args, state, control, **kwargs):
        self.evaluated = 0
        if self.bar is not None:
            self.bar.set_postfix_str("")

    def on_log(self, args, state, control, logs=None, **kwargs):
        if self.bar is not None and (line := in_words(state.global_step, logs)):
            self.bar.write(line)

    def on_train_end(self, args, state, control, **kwargs):
        if self.bar is not None:
            self.bar.close()
            self.bar = None


def expected(per_step: float, steps: int) -> str:
    """What is left to do, in words."""
    left = duration(per_step * steps)
    return f"{per_step:.2g} s a step: {steps:,} steps take about {left}, evaluations not counted."


def in_words(step: int, logs: dict[str, float]) -> str:
    """Entry of the log after `step` steps as a line, shares in percent; the numbers of single classes are left out."""
    if "train_runtime" in logs:
        return f"{step:,} steps in {duration(logs['train_runtime'])}"
    found = {key.removeprefix("eval_"): value for key, value in logs.items() if key.endswith("_mean_iou")}
    if any(key.startswith("eval_") for key in logs):
        networks = [f"{key.removesuffix('_mean_iou')} {percent(found[key])}%" for key in found]
        scored = [f"validation mIoU {', '.join(networks)}"] if networks else []
        if (key := f"eval_{LABEL_FREE}") in logs:
            scored.append(f"{LABEL_FREE} {logs[key]:.3f}")
        return f"step {step}: {'; '.join(scored)}" if scored else ""
    parts = []
    if "loss" in logs:
        terms = {key.removesuffix("_loss"): value for key, value in logs.items() if key.endswith("_loss")}
        shown = " + ".join(f"{name.replace('_', ' ')} {value:.3g}" for name, value in terms.items())
        parts.append(f"loss {logs['loss']:.3g}" + (f" = {shown}" if len(terms) > 1 else ""))
    known = {key: logs[key] for key in SHARES if key in logs and (key != "pseudo_changed" or logs[key])}
    shares = [f"{SHARES[key]} {percent(value)}%" for key, value in known.items()]  # a step may not look ahead
    if shares:
        parts.append(f"pseudo-labels: {', '.join(shares)}")
    for key, value in logs.items():
        if not (key in SHARES or key in LEFT_OUT or key.endswith("_loss") or "_share_" in key):
            parts.append(f"{key.replace('_', ' ')} {value:.4g}")
    return f"step {step}: {'; '.join(parts)}" if parts else ""
