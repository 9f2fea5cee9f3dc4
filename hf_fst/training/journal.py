"""What happens between two log entries: loss terms, health of the pseudo-labels, skipped steps."""

from __future__ import annotations

import itertools
import math
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import torch

from hf_fst.data.pairing import SKIPPED
from hf_fst.errors import RunError

# what a resumed run restores
KEPT = ("skipped", "skipped_images", "in_a_row", "_losses", "_steps", "_all", "_all_steps")


def summed(counts: Iterable[dict[str, int]]) -> dict[str, int]:
    """Numbers by name, added up."""
    return dict(sum(map(Counter, counts), Counter()))


class Journal:
    """Collects on the device; it reads back only whether the loss is finite, once per real step or one step later.

    Args:
        max_nonfinite_steps: real steps in a row without a finite loss that stop the run.
    """

    def __init__(self, max_nonfinite_steps: int):
        self.max_nonfinite_steps = max_nonfinite_steps
        self.skipped = {"real": 0, "virtual": 0}
        self.skipped_images: dict[str, int] = {}  # how often, by error message
        self.in_a_row = 0
        self.health: dict[str, float] = {}
        self._later: list[torch.Tensor] = []  # of virtual steps whether they were finite, on the device
        self._last: tuple | None = None  # the last real step, if nobody waited for it: what `catch_up` needs
        self._losses: dict[str, torch.Tensor] = {}
        self._steps = 0
        self._all, self._all_steps = 0.0, 0  # the loss of all steps logged so far, summed, and their number

    def is_finite(self, losses: dict[str, torch.Tensor], accelerator, virtual: bool) -> bool:
        """One check for all numbers of a virtual or real step, the same answer on every process; counts what fails.

        Args:
            losses: terms and the norm of the gradient by name, scalars.
            accelerator: the run's `Accelerator`.
            virtual: whether the step is imagined.
        """
        total, *later = torch.stack([_total(losses, accelerator), *self._later]).tolist()
        self._later, finite = [], math.isfinite(total)
        self._count(finite, virtual, later)
        return finite

    def is_finite_later(self, losses: dict[str, torch.Tensor], accelerator, step: int | None = None) -> torch.Tensor:
        """The check as a bool on the device, (), for which the host does not wait.

        That of a virtual step is counted with the real one. That of a real one is counted before the next check, log
        entry, or checkpoint.

        Args:
            losses, accelerator: as of `is_finite`.
            step: number of the real step, None for a virtual one.

        Raises:
            RunError: see `stop_after_too_many`, of the step before.
        """
        self.catch_up()
        finite = _total(losses, accelerator).isfinite()
        self._later.append(finite.double())
        if step is not None:
            found, copied = torch.stack(self._later).to("cpu", non_blocking=True), None
            if finite.is_cuda:
                copied = torch.cuda.Event()
                copied.record()
            self._later, self._last = [], (found, copied, losses, step)
        return finite

    def catch_up(self) -> None:
        """Count the last real step, if nobody waited for it.

        Raises:
            RunError: see `stop_after_too_many`.
        """
        if self._last is None:
            return
        (found, copied, losses, step), self._last = self._last, None
        if copied is not None:
            copied.synchronize()
        *virtual, real = found.tolist()
        self._count(bool(real), False, virtual)
        if not real:
            self._steps -= 1
            self.stop_after_too_many(losses, step)

    def _count(self, finite: bool, virtual: bool, later: list[float]) -> None:
        """Count a step, and virtual ones before it (1 for finite)."""
        self.skipped["virtual"] += later.count(0.0)
        if not finite:
            self.skipped["virtual" if virtual else "real"] += 1
        if not virtual:
            self.in_a_row = 0 if finite else self.in_a_row + 1

    def stop_after_too_many(self, losses: dict[str, torch.Tensor], step: int) -> None:
        """End the run after `max_nonfinite_steps` skipped real steps in a row.

        Args:
            losses: what was checked of the last one.
            step: number of the optimizer step, for the message.

        Raises:
            RunError: with the step and what was not finite.
        """
        if self.in_a_row >= self.max_nonfinite_steps:
            bad = [name for name, loss in losses.items() if not math.isfinite(loss.item())]
            raise RunError(
                f"The loss or its gradient was not finite for {self.in_a_row} steps in a row (last: step {step}, "
                f"{', '.join(bad) or 'on another process'}); lower the learning rate or look at their images."
            )

    def add(self, losses: dict[str, torch.Tensor]) -> None:
        """Note the terms of a real step: one that was taken, or with zeros one that `catch_up` may find was not."""
        self._losses = {name: self._losses.get(name, 0) + loss for name, loss in losses.items()}
        self._steps += 1

    def note_skipped_images(self, group: list[dict]) -> None:
        """Removes the reports of skipped images from the batches of a group, and counts them."""
        for message in itertools.chain.from_iterable(batch.pop(SKIPPED, ()) for batch in group):
            self.skipped_images[message] = self.skipped_images.get(message, 0) + 1

    def tell(self, logs: dict[str, float], accelerator) -> None:
        """Replace `loss` and `train_loss` of an entry by means over the steps taken; remove them if there is none."""
        for key, of_steps_taken in (("loss", self.entries), ("train_loss", self.summary)):
            if key in logs:
                shown = of_steps_taken(accelerator)
                if key not in shown:
                    del logs[key]
                logs |= shown

    def entries(self, accelerator) -> dict[str, float]:
        """The contents of a log entry: `loss` and its terms (means over the steps since the last), health, skipped steps.

        Without a step taken there is no `loss`.
        """
        self.catch_up()
        logs = {}
        if self._steps:
            values = torch.stack([loss.double() for loss in self._losses.values()])
            values = (accelerator.reduce(values, "mean") / self._steps).tolist()
            logs = {"loss": sum(values), **dict(zip(self._losses, values, strict=True))}
            self._all, self._all_steps = self._all + logs["loss"] * self._steps, self._all_steps + self._steps
        logs |= self.health
        logs |= {f"skipped_{kind}_steps": count for kind, count in self.skipped.items() if count}
        self._losses, self.health, self._steps = {}, {}, 0
        return logs

    def summary(self, accelerator) -> dict[str, float]:
        """`train_loss`, the mean over all steps taken, those before a resume included; nothing without one."""
        self.entries(accelerator)  # steps after the last log entry
        return {"train_loss": self._all / self._all_steps} if self._all_steps else {}

    def save(self, directory: str | os.PathLike, process: int, processes: int) -> None:
        """Write `journal_<process>.pt` into a checkpoint."""
        self.catch_up()
        kept = {"processes": processes, **{name: getattr(self, name) for name in KEPT}}
        torch.save(kept, Path(directory, f"journal_{process}.pt"))

    def load(self, directory: str | os.PathLike, process: int, processes: int, device: torch.device) -> None:
        """Restore from a checkpoint; with another number of processes each gets the mean."""
        paths = {int(path.stem.removeprefix("journal_")): path for path in Path(directory).glob("journal_*.pt")}
        pages = [torch.load(path, "cpu", weights_only=True) for path in paths.values()]
        kept = dict(zip(paths, pages, strict=True)).get(process, pages[0])
        if kept.pop("processes") != processes:
            kept["skipped_images"] = summed(page["skipped_images"] for page in pages) if process == 0 else {}
            kept["_losses"] = {n: sum(page["_losses"][n] for page in pages) / len(pages) for n in kept["_losses"]}
        kept["_losses"] = {name: loss.to(device) for name, loss in kept["_losses"].items()}
        for name, value in kept.items():
            setattr(self, name, value)


def _total(losses: dict[str, torch.Tensor], accelerator) -> torch.Tensor:
    """The sum of all numbers over all processes, (), float64, which is finite if each of them is."""
    total = torch.stack([loss.double() for loss in losses.values()]).sum()
    return accelerator.reduce(total, "sum") if accelerator.num_processes > 1 else total
