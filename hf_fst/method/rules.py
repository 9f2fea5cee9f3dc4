"""The six rules: what happens to the teacher φ before the student θ takes its real step.

Every real step is θ_{t+1} = θ_t - γ∇L(θ_t | φ_{t+1}); a rule says what φ_{t+1} is. The verbs (`step.…`) are those of
`hf_fst.method.lookahead.Step`; `virtual_steps` counts the optimizer steps that a rule takes and undoes, `followings`
how often it moves the teacher. μ is `teacher_momentum`, μ' is `lookahead_momentum`. "Learning from Future" (2022).

The rules below look ahead at every step. With `every` = M > 1 they do so at steps 0, M, 2M, …, where a following of a
future stands for M of them (μ'^M instead of μ'), and the steps between are those of a mean teacher.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_fst.method.options import check, option


@dataclass(frozen=True)
class Supervised:
    """No teacher: the student learns from labels alone (SourceOnly, SupOnly)."""

    virtual_steps: ClassVar[int] = 0
    followings: ClassVar[int] = 0

    def look_ahead(self, step) -> None:
        """φ is unused."""


@dataclass(frozen=True)
class MeanTeacher:
    """Self-training (ST): φ_{t+1} = μφ_t + (1-μ)θ_t."""

    virtual_steps: ClassVar[int] = 0
    followings: ClassVar[int] = 1

    def look_ahead(self, step) -> None:
        """φ_{t+1} = μφ_t + (1-μ)θ_t."""
        step.teacher_follows_present()


@dataclass(frozen=True)
class NaiveFST:
    """φ_{t+1} = μφ_t + (1-μ)(θ_t - γ∇L(θ_t | φ_t)): the teacher follows one virtual step, not the present."""

    batches: str = option("same", "lookahead_batches")
    virtual_steps: ClassVar[int] = 1
    followings: ClassVar[int] = 1

    def __post_init__(self):
        check(self)

    def look_ahead(self, step) -> None:
        """θ̃ = θ_t - γ∇L(θ_t | φ_t); φ_{t+1} = μφ_t + (1-μ)θ̃."""
        with step.imagine():
            for group in step.groups(1, self.batches):
                step.descend(group)
                step.teacher_follows_future(step.settings.mu)


@dataclass(frozen=True)
class ImprovedFST:
    """φ' = μφ_t + (1-μ)θ_t;  φ_{t+1} = μ'φ' + (1-μ')(θ_t - γ∇L(θ_t | φ'))."""

    batches: str = option("same", "lookahead_batches")
    every: int = option(1, "lookahead_every")
    virtual_steps: ClassVar[int] = 1
    followings: ClassVar[int] = 2

    def __post_init__(self):
        check(self)

    def look_ahead(self, step) -> None:
        """The teacher first follows the present, then one virtual step taken with its labels."""
        step.teacher_follows_present()
        with step.imagine():
            for group in step.groups(1, self.batches):
                step.descend(group)
                step.teacher_follows_future()


@dataclass(frozen=True)
class DeepFST:
    """FST-D: K virtual steps, the teacher following each.

    φ̃ = μφ_t + (1-μ)θ_t, θ̃ = θ_t; K times: θ̃ ← θ̃ - γ∇L(θ̃ | φ̃), φ̃ ← μ'φ̃ + (1-μ')θ̃;  φ_{t+1} = φ̃.
    """

    num_steps: int = option(3, "lookahead_steps")
    batches: str = option("same", "lookahead_batches")
    every: int = option(1, "lookahead_every")

    def __post_init__(self):
        check(self)

    @property
    def virtual_steps(self) -> int:
        """Optimizer steps that are undone, K."""
        return self.num_steps

    @property
    def followings(self) -> int:
        """The present and K futures."""
        return self.num_steps + 1

    def look_ahead(self, step) -> None:
        """φ̃ follows the present, then K futures, each reached with the labels of the φ̃ before it."""
        step.teacher_follows_present()
        with step.imagine():
            for group in step.groups(self.num_steps, self.batches):
                step.descend(group)
                step.teacher_follows_future()


@dataclass(frozen=True)
class WideFST:
    """FST-W: N virtual students, one step each from θ_t, the teacher following their mean.

    φ' = μφ_t + (1-μ)θ_t;  φ_{t+1} = μ'φ' + (1-μ')·(1/N)Σ_i(θ_t - γ∇L_i(θ_t | ψ)), ψ = φ' (`labels="followed"`, the
    authors' code) or φ_t (`labels="present"`, as printed). Each student starts from the present parameters, buffers and
    optimizer state and draws its own noise.
    """

    num_students: int = option(3, "lookahead_students")
    batches: str = option("different", "lookahead_batches")
    labels: str = option("followed", "lookahead_labels")
    every: int = option(1, "lookahead_every")
    followings: ClassVar[int] = 2

    def __post_init__(self):
        check(self)

    @property
    def virtual_steps(self) -> int:
        """Optimizer steps that are undone, N."""
        return self.num_students

    def look_ahead(self, step) -> None:
        """The teacher follows the present and then the mean of N futures."""
        if self.labels == "followed":
            step.teacher_follows_present()
        with step.imagine():
            for group in step.groups(self.num_students, self.batches):
                step.return_to_present()
                step.descend(group)
                step.remember_future(1 / self.num_students)
        if self.labels == "present":
            step.teacher_follows_present()
        step.teacher_follows_mean_future()


RULES = {
    "supervised": Supervised,
    "mean_teacher": MeanTeacher,
    "naive_fst": NaiveFST,
    "improved_fst": ImprovedFST,
    "fst_d": DeepFST,
    "fst_w": WideFST,
}
