"""Options of a run: `transformers.TrainingArguments` and what self-training adds to them."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields

import torch
from transformers import TrainingArguments

from hf_fst.data.pairing import BAD_IMAGES
from hf_fst.errors import UserError, did_you_mean, in_a_line
from hf_fst.kinds import hints_of
from hf_fst.method.lookahead import FOLLOWS, STATES, WARMUP_COUNTS
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.options import MOST, TABLE, Option, defaults_of
from hf_fst.method.presets import PRESETS
from hf_fst.method.rules import RULES
from hf_fst.method.teacher import BUFFER_POLICIES
from hf_fst.training.limits import refuse_impossible, refuse_optimizer
from hf_fst.training.settings import options, resolve

NO_DEEPSPEED = "DeepSpeed keeps its own copy of the weights, which a look-ahead cannot put back; use DDP or FSDP2."
NO_TEACHER = ("supervised",)
NO_LOOKAHEAD = ("supervised", "mean_teacher")


def option(default, help: str, *, ours=None, **facts):
    """A field of `FSTConfig`, with what there is to know of it (see `Option`).

    `ours` is in force where the option is left out and no preset says otherwise; by default it is `default`.
    """
    return field(default=default, metadata={"help": Option(help, default=default if ours is None else ours, **facts)})


def option_of_method(name: str):
    """A field for an option of rules or objectives; left out, the one that is chosen has its own default."""
    return field(default=None, metadata={"help": TABLE[name]})


@dataclass
class FSTConfig(TrainingArguments):
    """Options of [`FSTTrainer`]: all of [`~transformers.TrainingArguments`], with some defaults changed, and those below.

    A config is never written to: it holds what was given, `FSTTrainer.settings` what is in force. None stands for left
    out. Options of rules and objectives then take the default of the chosen one, in brackets here, or what `preset`
    says; one that the chosen rule or objective does not have is refused. Objective supervised, the control of any recipe,
    leaves out those of the unlabeled term.
    """

    preset: str | None = option(
        None,
        "what options default to: the equations of the 'paper', the 'official' code of its authors for the objective "
        "at hand (domain adaptation or semi-supervised), or hf_fst's own choice",
        group="Preset",
        choices=PRESETS,
    )

    rule: str | None = option(
        None,
        f"what the teacher does before each step: {', '.join(RULES)}",
        group="Look-ahead",
        ours="fst_d",
        choices=tuple(RULES),
    )
    lookahead_steps: int | None = option_of_method("lookahead_steps")
    lookahead_students: int | None = option_of_method("lookahead_students")
    lookahead_batches: str | None = option_of_method("lookahead_batches")
    lookahead_labels: str | None = option_of_method("lookahead_labels")
    lookahead_every: int | None = option_of_method("lookahead_every")
    lookahead_state: str | None = option(
        None,
        "after virtual steps 'restore' parameters, buffers, optimizer state and random numbers, or 'carry' all but the "
        "parameters over (the authors' code)",
        group="Look-ahead",
        ours="restore",
        choices=STATES,
        unused_by=NO_LOOKAHEAD,
    )
    lookahead_start: int | None = option(
        None,
        "first step that looks ahead, from 0; earlier ones are those of a mean teacher that follows the student after "
        "the step as well (the authors' domain adaptation code: 1)",
        group="Look-ahead",
        ours=0,
        low=0,
        unused_by=NO_LOOKAHEAD,
    )

    teacher_memory: float | None = option(
        None,
        "optimizer steps that the teacher remembers: the momenta of all its moves in a step multiply to 1 - 1/memory, "
        "for any rule, K, N and M; replaces teacher_momentum and lookahead_momentum",
        group="Teacher",
        ours=1000.0,
        low=1,
        unused_by=NO_TEACHER,
    )
    teacher_momentum: float | None = option(
        None,
        "how slowly the teacher follows the student, mu; teacher_memory decides if left out (0.999 where "
        "lookahead_momentum or a preset is given)",
        group="Teacher",
        low=0,
        high=1,
        unused_by=NO_TEACHER,
    )
    lookahead_momentum: float | None = option(
        None,
        "how slowly it follows virtual students, mu'; teacher_momentum if left out. fst_d moves the teacher K + 1 times "
        "a step, so that it remembers about 1/(K + 1) as long as a mean teacher of the same momentum",
        group="Teacher",
        low=0,
        high=1,
        unused_by=(*NO_LOOKAHEAD, "naive_fst"),
    )
    teacher_follows: str | None = option(
        None,
        "when it follows the student: 'before' the real step (the equations), 'after' it, or 'both' (the authors' "
        "semi-supervised code); 'live': it is the student of the step itself, momentum 0, as in methods without a "
        "teacher; 'never': it stays the network of the start",
        group="Teacher",
        ours="before",
        choices=FOLLOWS,
        unused_by=NO_TEACHER,
    )
    momentum_warmup: bool | None = option(
        None,
        "follow with min(1 - 1/(t+1), mu) at step t, and the same for mu', so that the teacher starts as the student "
        "(the authors' code); if left out, false where every weight comes from a checkpoint, the head's too",
        group="Teacher",
        ours=True,
        unused_by=NO_TEACHER,
    )
    warmup_counts: str | None = option(
        None,
        "what t counts: 'steps', or training 'forwards', virtual ones too (the authors' domain adaptation code)",
        group="Teacher",
        ours="steps",
        choices=WARMUP_COUNTS,
        unused_by=NO_TEACHER,
    )
    teacher_buffers: str | None = option(
        None,
        "BatchNorm statistics of the teacher: 'copy' those of the network it follows, 'ema' averages them as well, "
        "'batch' labels with those of the batch at hand (the authors' domain adaptation code)",
        group="Teacher",
        ours="copy",
        choices=BUFFER_POLICIES,
        unused_by=NO_TEACHER,
    )
    sync_batchnorm: bool = option(
        False,
        "take BatchNorm statistics over all processes; on CPUs each process keeps to its own images, with a warning",
        group="Teacher",
        card=False,
    )

    objective: str | None = option(
        None,
        f"what the student learns: {', '.join(OBJECTIVES)}; class_mix if left out, supervised with rule supervised",
        choices=tuple(OBJECTIVES),
    )
    unlabeled_weight: float | None = option_of_method("unlabeled_weight")
    unlabeled_weighting: str | None = option_of_method("unlabeled_weighting")
    confidence_threshold: float | None = option_of_method("confidence_threshold")
    pseudo_ignore_top: int | None = option_of_method("pseudo_ignore_top")
    pseudo_ignore_bottom: int | None = option_of_method("pseudo_ignore_bottom")
    mix_classes: str | None = option_of_method("mix_classes")
    cut_probability: float | None = option_of_method("cut_probability")
    cut_partner: str | None = option_of_method("cut_partner")
    feature_stream_weight: float | None = option_of_method("feature_stream_weight")
    strong_views_weight: float | None = option_of_method("strong_views_weight")
    feature_dropout: float | None = option_of_method("feature_dropout")
    entropy_drop_percent: float | None = option_of_method("entropy_drop_percent")
    ohem_threshold: float | None = option_of_method("ohem_threshold")
    ohem_min_kept: int | None = option_of_method("ohem_min_kept")
    feature_distance_weight: float | None = option_of_method("feature_distance_weight")
    feature_distance_classes: list[int] | None = option_of_method("feature_distance_classes")
    prototype_temperature: float | None = option_of_method("prototype_temperature")
    prototype_momentum: float | None = option_of_method("prototype_momentum")
    prototype_passes: float | None = option_of_method("prototype_passes")
    consistency_weight: float | None = option_of_method("consistency_weight")
    ramp_share: float | None = option_of_method("ramp_share")
    annealed_threshold: float | None = option_of_method("annealed_threshold")
    vat_step: float | None = option_of_method("vat_step")
    flaw_correction_weight: float | None = option_of_method("flaw_correction_weight")
    flaw_threshold: float | None = option_of_method("flaw_threshold")
    contrast_weight: float | None = option_of_method("contrast_weight")
    contrast: str | None = option_of_method("contrast")
    bank_size: int | None = option_of_method("bank_size")
    self_labeling_weight: float | None = option_of_method("self_labeling_weight")
    self_labeling: str | None = option_of_method("self_labeling")
    distillation_weight: float | None = option_of_method("distillation_weight")
    distillation: str | None = option_of_method("distillation")
    regularizer_weight: float | None = option_of_method("regularizer_weight")
    jitter_probability: float | None = option_of_method("jitter_probability")
    jitter_strength: float | None = option_of_method("jitter_strength")
    gray_probability: float | None = option_of_method("gray_probability")
    blur_probability: float | None = option_of_method("blur_probability")
    augmentation_draw: str | None = option_of_method("augmentation_draw")
    loss_reduction: str | None = option_of_method("loss_reduction")
    auxiliary_loss_weight: float | None = option_of_method("auxiliary_loss_weight")
    auxiliary_pseudo_weight: bool | None = option_of_method("auxiliary_pseudo_weight")

    schedule: str | None = option(
        None,
        "'poly': (1 - step/max)^poly_power times a linear warm-up (warmup_steps); replaces lr_scheduler_type",
        group="Optimizer",
        choices=("poly",),
    )
    poly_power: float = option(1.0, "power of the poly schedule", group="Optimizer", above=0, only_with="schedule")
    head_lr_multiplier: float | None = option(
        None, "learning rate of the heads over that of the backbone", group="Optimizer", above=0
    )
    no_decay: list[str] | None = option(
        None,
        "backbone parameters with one of these in their names do not decay; if left out, none with head_lr_multiplier, "
        "norms and biases without",
        group="Optimizer",
    )

    unlabeled_per_labeled: int = option(
        1, "unlabeled images in a batch for each labeled one", group="Run", low=1, high=MOST, unused_by=NO_TEACHER
    )
    on_bad_image: str = option(
        "stop",
        "an image of training that cannot be read ends the run ('stop'), or another draw takes its place and it is named "
        "at the end ('skip')",
        group="Run",
        choices=BAD_IMAGES,
        card=False,
    )
    joint_forward: str = option(
        "false",
        "labeled and mixed images of a micro-batch go through the student in one pass: 'true', 'false', or 'auto', where "
        "the model has no BatchNorm, whose statistics would change. Equal to rounding but for the noise of dropout; "
        "fewer and larger passes, and the activations of both in memory",
        group="Run",
        choices=("auto", "true", "false"),
        unused_by=("supervised", "entropy_drop", "unimatch", "unimatch_v2"),
    )
    capture: bool = option(
        False,
        "replay the passes of student and teacher as CUDA graphs, a launch for each; one GPU, float32 or bf16. A network "
        "that cannot be recorded runs as without",
        group="Run",
        card=False,
    )
    max_nonfinite_steps: int = option(
        10,
        "a step whose loss is not finite is skipped and counted; this many in a row stop the run",
        group="Run",
        low=1,
        card=False,
    )
    eval_window: int | None = option(
        None, "side of the sliding windows for evaluation, in pixels; whole images if left out", group="Run", low=1
    )
    eval_stride: int | None = option(
        None,
        "distance between windows, in pixels; two thirds of the window if left out",
        group="Run",
        low=1,
        only_with="eval_window",
    )
    eval_classes: list[int] | None = option(
        None,
        "ids of the classes that the logged means, and with them the choice of the best model, are over; all if left out",
        group="Run",
        low=0,
    )
    picture_steps: int | None = option(
        None,
        "save a picture of what training sees to output_dir/pictures at the first step and at every n-th; never if left "
        "out or 0",
        group="Run",
        low=0,
        card=False,
    )
    report: bool = option(True, "write model card, curves and sample pictures after training", group="Run", card=False)

    # defaults of TrainingArguments that do not suit pairs of images and label maps, or make the host wait for the GPU
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "batches are flat dicts: keep False"})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "evaluation counts as it goes: keep True"})
    logging_nan_inf_filter: bool = field(
        default=False, metadata={"help": "steps that are not finite are skipped anyway"}
    )

    def __post_init__(self):
        if self.deepspeed:
            raise UserError(f"deepspeed is given, but {NO_DEEPSPEED}")
        if isinstance(self.joint_forward, bool):  # as YAML reads it
            self.joint_forward = str(self.joint_forward).lower()
        # without use_cpu, several processes on a machine without an accelerator do not find each other: each would start
        # a run of its own
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        self.check()
        best = self.metric_for_best_model, self.greater_is_better
        try:
            super().__post_init__()
            if best[0] is None:  # a loss, unasked, which is not evaluated; see `evaluation.choose_best`
                self.metric_for_best_model, self.greater_is_better = best
            self.dataloader_pin_memory &= torch.accelerator.is_available()  # else every loader warns
            # batches are copied while the GPU works
            self.accelerator_config.non_blocking |= self.dataloader_pin_memory
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise UserError(f"The options of the run cannot be used ({in_a_line(error)}); correct them.") from error
        refuse_optimizer(self)
        self.label_names = ["labels"] if self.label_names is None else self.label_names
        if self.rule is not None or self.objective is not None:
            resolve(self)  # what contradicts itself is refused here, not hours later

    def check(self) -> None:
        """Check every option by itself, and those that depend on each other.

        Raises:
            UserError: one sentence with the name, the value and what is accepted.
        """
        hints = hints_of(type(self))
        for name, known in options(self).items():
            known.check(name, getattr(self, name), hints[name])
        for name, value in vars(self).items():
            if isinstance(value, float) and not math.isfinite(value):
                raise UserError(f"{name} is {value}; use a finite number.")
        refuse_impossible(self, hints)
        if self.eval_stride is not None and (self.eval_window is None or self.eval_stride > self.eval_window):
            raise UserError(
                f"eval_stride is {self.eval_stride} and eval_window {self.eval_window}; give a window at least as "
                "large as the stride, or pixels would be left out."
            )


def _word(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def described(name: str) -> str:
    """The help of an option and, in brackets, what is in force where it is left out, and with what it goes."""
    known = options(FSTConfig)[name]
    if name not in TABLE:
        return known if known.default is None else f"{known} [{_word(known.default)}]"
    kinds = RULES if any(name in defaults_of(kind) for kind in RULES.values()) else OBJECTIVES
    owners: dict[object, list[str]] = {}
    for owner, kind in kinds.items():
        if name in defaults_of(kind):
            owners.setdefault(defaults_of(kind)[name], []).append(owner)
    if len(owners) == 1 and sum(map(len, owners.values())) == len(kinds):
        return known if None in owners else f"{known} [{_word(*owners)}]"
    return f"{known} [{'; '.join(_with_default(*item) for item in owners.items())}]"


def _with_default(default: object, owners: list[str]) -> str:
    return ", ".join(owners) + ("" if default is None else f": {_word(default)}")


def _attributes() -> str:
    """The list of options for the docstring."""
    types = {f.name: f.type.removesuffix(" | None") for f in fields(FSTConfig) if f.name in options(FSTConfig)}
    return "\n".join(["    Attributes:", *(f"        {name} ({types[name]}): {described(name)}." for name in types)])


def _of_known_names(init: Callable[..., None]) -> Callable[..., None]:
    """`FSTConfig.__init__` that refuses names which are no option of it, in a sentence."""
    known = inspect.signature(init).parameters

    @functools.wraps(init)
    def __init__(self, *args, **given):
        for name in given.keys() - known.keys():
            hint = did_you_mean(name, known, "help(hf_fst.FSTConfig) lists them.")
            raise UserError(f"FSTConfig has no option {name!r}; {hint}")
        init(self, *args, **given)

    return __init__


FSTConfig.__init__ = _of_known_names(FSTConfig.__init__)
FSTConfig.__doc__ = f"{FSTConfig.__doc__.rstrip()}\n\n{_attributes()}\n    "
