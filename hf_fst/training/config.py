"""Options of a run: `transformers.TrainingArguments` and what self-training adds to them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from hf_fst.errors import UserError
from hf_fst.method.augmentation import DRAWS
from hf_fst.method.lookahead import FOLLOWS, STATES, WARMUP_COUNTS
from hf_fst.method.losses import REDUCTIONS
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.objectives.class_mix import CLASS_SOURCES
from hf_fst.method.objectives.pseudo_label import WEIGHTINGS
from hf_fst.method.presets import PRESETS, preset_values
from hf_fst.method.rules import RULES, make_rule, rule_settings
from hf_fst.method.teacher import BUFFER_POLICIES

NO_DEEPSPEED = "DeepSpeed keeps its own copy of the weights, which a look-ahead cannot put back; use DDP or FSDP2."

# what an objective takes where a number is left out: the published recipe of each
OBJECTIVE_DEFAULTS = {
    "unlabeled_weighting": {
        "class_mix": "quality",
        "cut_mix": "threshold",
        "pseudo_label": "constant",
        "entropy_drop": "constant",
    },
    "confidence_threshold": {"class_mix": 0.968, "cut_mix": 0.95, "pseudo_label": 0.968, "entropy_drop": 0.95},
    "jitter_probability": {"class_mix": 0.8, "cut_mix": 0.8, "pseudo_label": 0.0, "entropy_drop": 0.0},
    "blur_probability": {"class_mix": 0.5, "cut_mix": 0.5, "pseudo_label": 0.0, "entropy_drop": 0.0},
}


def _option(default, help: str):
    """A field that `hf-fst train --help` explains."""
    return field(default=default, metadata={"help": help})


@dataclass
class FSTConfig(TrainingArguments):
    r"""
    Options of [`FSTTrainer`]: all of [`~transformers.TrainingArguments`], with some defaults changed, and those below.
    Options left at `None` take the value that the rule or objective is published with; after construction of the
    trainer they hold the values in force.

    Attributes:
        > Parameters that choose between the paper and the authors' code

        preset (`str`, *optional*):
            Options left at `None` take hf_fst's choice, with `"paper"` that of the equations, with `"official"` that of
            the authors' code for the objective at hand (domain adaptation or semi-supervised).

        > Parameters that control the look-ahead

        rule (`str`, *optional*, defaults to `"fst_d"`):
            What happens to the teacher before the student's real step: `"supervised"`, `"mean_teacher"`, `"naive_fst"`,
            `"improved_fst"`, `"fst_d"` (K virtual steps deep) or `"fst_w"` (N virtual students wide).
        lookahead_steps (`int`, *optional*, defaults to 3):
            K of `fst_d`, 0 or more; 0 is the mean teacher. Each costs one more forward and backward pass a step.
        lookahead_students (`int`, *optional*, defaults to 3):
            N of `fst_w`, 1 or more.
        lookahead_batches (`str`, *optional*):
            Whether virtual steps learn from the `"same"` batch as the real one (default of `fst_d`, `naive_fst` and
            `improved_fst`) or from `"different"` ones drawn for them (default of `fst_w`).
        lookahead_labels (`str`, *optional*, defaults to `"followed"`):
            Who labels for the virtual students of `fst_w`: the teacher after it `"followed"` the present student (the
            authors' code) or the teacher as it is at `"present"` (as printed in the paper).
        lookahead_state (`str`, *optional*, defaults to `"restore"`):
            What comes back after virtual steps: `"restore"` puts back parameters, buffers, optimizer state and random
            number generators, `"carry"` parameters alone, as the authors' code does.
        lookahead_start (`int`, *optional*, defaults to 0):
            The first step (from 0) that looks ahead. Earlier ones are those of a mean teacher that follows the student
            after the step as well (the authors' domain adaptation code: 1).

        > Parameters that control the teacher

        teacher_momentum (`float`, *optional*, defaults to 0.999):
            μ in [0, 1]: φ ← μφ + (1-μ)θ when the teacher follows the present student.
        lookahead_momentum (`float`, *optional*, defaults to the value of `teacher_momentum`):
            μ' in [0, 1], when it follows a virtual one. `fst_d` moves the teacher K+1 times a step, so that its memory
            is about 1/(K+1) as long as that of a mean teacher of the same momentum.
        teacher_follows (`str`, *optional*, defaults to `"before"`):
            When it follows the present student: `"before"` the real step (the equations), `"after"` it, or `"both"` (the
            authors' semi-supervised code, so that θ_{t+1} enters twice).
        momentum_warmup (`bool`, *optional*, defaults to `True`):
            Use min(1 - 1/(t+1), μ) at step t (and the same for μ'), so that the teacher starts as the student. The
            authors' code does; the paper prints a constant.
        warmup_counts (`str`, *optional*, defaults to `"steps"`):
            What t counts: `"steps"`, or training `"forwards"`, virtual ones too (the authors' domain adaptation code).
        teacher_buffers (`str`, *optional*, defaults to `"copy"`):
            BatchNorm statistics of the teacher: `"copy"` those of whom it follows, `"ema"` average them as well, or label
            with those of the `"batch"` at hand (the authors' domain adaptation code).
        sync_batchnorm (`bool`, *optional*, defaults to `False`):
            Take BatchNorm statistics over all processes (`torch.nn.SyncBatchNorm`), so that two GPUs of two images are
            one of four. On GPUs; on CPUs, with a warning, and without it each process normalizes by its own images.

        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"class_mix"`, with rule `"supervised"` to `"supervised"`):
            What the student learns: `"supervised"`, `"pseudo_label"`, `"class_mix"` (DACS, DAFormer: domain adaptation),
            `"cut_mix"` (semi-supervised) or `"entropy_drop"` (the authors' semi-supervised loop).
        unlabeled_weight (`float`, *optional*, defaults to 1.0):
            λ, 0 or more: weight of the unlabeled term.
        unlabeled_weighting (`str`, *optional*):
            `"constant"` uses λ as it is (default of `pseudo_label`); `"quality"` multiplies it by the share of confident
            pixels (default of `class_mix`); `"threshold"` keeps confident pixels alone (default of `cut_mix`).
        confidence_threshold (`float`, *optional*):
            In [0, 1]; above it a pseudo-label counts as confident. Defaults to 0.968, for `cut_mix` to 0.95.
        pseudo_ignore_top (`int`, *optional*, defaults to 0):
            Rows at the top of the unlabeled crop whose pseudo-labels get weight 0 (the domain adaptation recipes: 15).
        pseudo_ignore_bottom (`int`, *optional*, defaults to 0):
            Rows at its bottom (the recipes: 120, the car's hood).
        mix_classes (`str`, *optional*, defaults to `"image"`):
            ClassMix chooses among the classes of each labeled `"image"` or of the whole `"batch"` (the authors' code).
        cut_probability (`float`, *optional*, defaults to 0.5):
            With which `cut_mix` and `entropy_drop` cut an image.
        entropy_drop_percent (`float`, *optional*, defaults to 80.0):
            In [0, 100]: `entropy_drop` drops the pseudo-labels whose entropy is at this percentile of the batch or above.
        ohem_threshold (`float`, *optional*):
            In [0, 1]: where set, the labeled loss of `entropy_drop` is over pixels whose right class has at most this
            probability (the authors' Cityscapes recipe: 0.7).
        ohem_min_kept (`int`, *optional*, defaults to 100000):
            At least so many pixels of a batch, the hardest.
        feature_distance_weight (`float`, *optional*, defaults to 0.0):
            0 or more: weight of the distance of the student's last features on labeled images from those of a frozen
            network (`reference_model` of the trainer; DAFormer and the authors' code: 0.005). Not with `entropy_drop`.
        feature_distance_classes (`list[int]`, *optional*):
            Classes on whose places the distance is taken (the authors' code: Cityscapes' things); all if not given.
        jitter_probability (`float`, *optional*):
            With which an image that the student sees is color-jittered. Defaults to 0.8, for `pseudo_label` to 0.
        jitter_strength (`float`, *optional*, defaults to 0.2):
            Brightness, contrast, saturation and hue are drawn within ± this.
        blur_probability (`float`, *optional*):
            With which it is blurred. Defaults to 0.5, for `pseudo_label` to 0.
        augmentation_draw (`str`, *optional*, defaults to `"image"`):
            Whether each `"image"` or the whole `"batch"` is jittered, blurred and cut or not (the authors' code).
        loss_reduction (`str`, *optional*, defaults to `"valid"`):
            Means are taken over `"valid"` pixels or over `"all"`, ignored ones included (the authors' code).
        auxiliary_loss_weight (`float`, *optional*, defaults to 0.4):
            Weight of each auxiliary head, for models that return `auxiliary_logits`.
        auxiliary_pseudo_weight (`bool`, *optional*, defaults to `True`):
            Whether pixels with pseudo-labels weigh in auxiliary heads what they weigh in the main one, or 1 (the authors'
            code).

        > Parameters that control the run

        unlabeled_per_labeled (`int`, *optional*, defaults to 1):
            Unlabeled images in a batch for each labeled one.
        max_nonfinite_steps (`int`, *optional*, defaults to 10):
            A step whose loss is not finite is skipped and counted; so many in a row stop the run.
        eval_window (`int`, *optional*):
            Side of the sliding window used in evaluation, in pixels; whole images if not given.
        eval_stride (`int`, *optional*, defaults to two thirds of the window):
            Distance between windows.
        eval_classes (`list[int]`, *optional*):
            Ids of the classes that the logged means, and with them the choice of the best model, are over, such as
            `hf_fst.evaluation.CLASS_LISTS["synthia_16"]`; all classes if not given. The IoU of every class is logged.
        picture_steps (`int`, *optional*):
            Every so many optimizer steps, and at the first, a picture of what training sees goes to
            `output_dir/pictures/step-N.png` and to TensorBoard, trackio and W&B where `report_to` names them; none if
            not given or 0. The weights do not change by it.
        report (`bool`, *optional*, defaults to `True`):
            Write the model card, curves, per-class bars and sample pictures into the output directory after training.
    """

    preset: str | None = _option(None, "what options left out are: 'paper', 'official', or hf_fst's choice")

    rule: str | None = _option(None, "what the teacher does before each step: " + ", ".join(RULES))
    lookahead_steps: int | None = _option(None, "how many steps fst_d looks ahead: K, 0 or more (3)")
    lookahead_students: int | None = _option(None, "how many virtual students fst_w has: N, 1 or more (3)")
    lookahead_batches: str | None = _option(
        None, "what virtual steps learn from: the 'same' images as the real one or 'different' ones"
    )
    lookahead_labels: str | None = _option(
        None, "who labels for fst_w's students: the teacher that 'followed', or as it is at 'present'"
    )
    lookahead_state: str | None = _option(
        None, "after virtual steps 'restore' everything, or 'carry' all but weights over (restore)"
    )
    lookahead_start: int | None = _option(None, "first step that looks ahead, from 0 (0)")

    teacher_momentum: float = _option(0.999, "how slowly the teacher follows the student: mu in [0, 1] (0.999)")
    lookahead_momentum: float | None = _option(
        None, "how slowly it follows virtual students: mu' in [0, 1] (teacher_momentum)"
    )
    teacher_follows: str | None = _option(
        None, "when it follows the student: 'before' the step, 'after' it or 'both' (before)"
    )
    momentum_warmup: bool | None = _option(
        None, "let the teacher follow faster at the start: min(1 - 1/(t+1), mu) (true)"
    )
    warmup_counts: str | None = _option(None, "what t counts: 'steps', or 'forwards', virtual ones too (steps)")
    teacher_buffers: str | None = _option(
        None, "BatchNorm statistics of the teacher: 'copy', 'ema' or those of the 'batch' (copy)"
    )

    sync_batchnorm: bool = _option(False, "take BatchNorm statistics over all processes (false)")

    objective: str | None = _option(None, "what the student learns: " + ", ".join(OBJECTIVES))
    unlabeled_weight: float = _option(1.0, "weight of the unlabeled term: lambda, 0 or more (1)")
    unlabeled_weighting: str | None = _option(
        None, "weigh pseudo-labels by 'constant', 'quality' of all, or 'threshold': sure pixels alone"
    )
    confidence_threshold: float | None = _option(None, "from which confidence on the teacher is sure, in [0, 1]")
    pseudo_ignore_top: int = _option(0, "rows at the top of unlabeled crops that are not learned from (0)")
    pseudo_ignore_bottom: int = _option(0, "rows at their bottom (0)")
    mix_classes: str | None = _option(
        None, "class_mix chooses among the classes of each 'image' or of the 'batch' (image)"
    )
    cut_probability: float = _option(0.5, "how often cut_mix and entropy_drop cut an image, in [0, 1] (0.5)")
    entropy_drop_percent: float = _option(
        80.0, "entropy_drop leaves out pixels from this percentile of entropy on (80)"
    )
    ohem_threshold: float | None = _option(
        None, "entropy_drop learns only from labeled pixels of at most this probability (all)"
    )
    ohem_min_kept: int = _option(100_000, "but from at least so many of a batch (100000)")
    feature_distance_weight: float = _option(0.0, "weight of the distance to a frozen network's features (0)")
    feature_distance_classes: list[int] | None = _option(None, "ids of the classes where that is taken (all)")
    jitter_probability: float | None = _option(None, "how often colors are jittered, in [0, 1]")
    jitter_strength: float = _option(0.2, "by how much, 0 to 0.5 (0.2)")
    blur_probability: float | None = _option(None, "how often images are blurred, in [0, 1]")
    augmentation_draw: str | None = _option(
        None, "draw jitter, blur and cuts for each 'image' or once for the 'batch' (image)"
    )
    loss_reduction: str | None = _option(None, "a loss is the mean over 'valid' or 'all' pixels (valid)")
    auxiliary_loss_weight: float = _option(0.4, "weight of the loss of each auxiliary head (0.4)")
    auxiliary_pseudo_weight: bool | None = _option(
        None, "auxiliary heads weigh pseudo-labels as the main head does (true)"
    )

    unlabeled_per_labeled: int = _option(1, "unlabeled images for each labeled one in a batch (1)")
    max_nonfinite_steps: int = _option(10, "steps in a row without a finite loss that stop the run (10)")
    eval_window: int | None = _option(None, "evaluate in windows of this side in pixels (whole images)")
    eval_stride: int | None = _option(None, "pixels from window to window (two thirds of it)")
    eval_classes: list[int] | None = _option(None, "ids of the classes that means are over (all)")
    picture_steps: int | None = _option(None, "draw what training sees every so many steps, into pictures/ (never)")
    report: bool = _option(True, "write model card and pictures after training (true)")

    # defaults of TrainingArguments that do not suit pairs of images and label maps
    remove_unused_columns: bool | None = _option(False, "batches are flat dicts: keep False")
    batch_eval_metrics: bool = _option(True, "evaluation counts as it goes: keep True")

    def __post_init__(self):
        if self.deepspeed:
            raise UserError(f"deepspeed is given, but {NO_DEEPSPEED}")
        # unless told so, several processes on a machine without accelerator do not meet: each makes a run of its own
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # else every loader warns
        self.label_names = ["labels"] if self.label_names is None else self.label_names
        self._check_choices()
        self._check_ranges()
        if self.rule is not None:
            make_rule(self.rule, self.rule_settings())
        if self.lookahead_momentum is None:
            self.lookahead_momentum = self.teacher_momentum

    def _settle(self) -> None:
        """Fill in what follows from the rule and the objective."""
        self._check_choices()
        if self.objective is None:
            self.objective = "supervised" if self.rule == "supervised" else "class_mix"
        by_objective = {name: values.get(self.objective) for name, values in OBJECTIVE_DEFAULTS.items()}
        for name, value in (by_objective | preset_values(self.preset, self.rule, self.objective)).items():
            if getattr(self, name) is None:
                setattr(self, name, value)
        if self.lookahead_labels == "present" and self.teacher_follows != "before":
            raise UserError(
                "lookahead_labels 'present' wants labels of the teacher before it follows the student, which "
                f"teacher_follows {self.teacher_follows!r} does not keep; use teacher_follows 'before'."
            )
        if self.objective == "entropy_drop" and self.feature_distance_weight:
            raise UserError("objective 'entropy_drop' has no feature distance; leave feature_distance_weight at 0.")
        # where the best weights are wanted without saying by what, `TrainingArguments` says loss, but for one strategy
        wanted = "loss" if self.save_strategy == "best" else None
        if (self.metric_for_best_model or wanted) == "loss":
            network = "student" if self.rule == "supervised" else "teacher"
            self.metric_for_best_model, self.greater_is_better = f"{network}_mean_iou", True

    def _check_choices(self) -> None:
        choices = {
            "objective": OBJECTIVES,
            "lookahead_state": STATES,
            "teacher_buffers": BUFFER_POLICIES,
            "unlabeled_weighting": WEIGHTINGS,
            "mix_classes": CLASS_SOURCES,
            "loss_reduction": REDUCTIONS,
            "preset": PRESETS,
            "teacher_follows": FOLLOWS,
            "warmup_counts": WARMUP_COUNTS,
            "augmentation_draw": DRAWS,
        }
        for name, accepted in choices.items():
            value = getattr(self, name)
            if value is not None and value not in accepted:
                raise UserError(f"{name} is {value!r}; use one of {', '.join(accepted)}.")
        if self.rule == "supervised" and self.objective not in (None, "supervised"):
            raise UserError(
                f"rule 'supervised' has no teacher, but objective {self.objective!r} learns from its labels; "
                "use objective 'supervised' or another rule."
            )

    def _check_ranges(self) -> None:
        unit = ["teacher_momentum", "lookahead_momentum", "confidence_threshold", "cut_probability"]
        for name in [*unit, "jitter_probability", "blur_probability", "ohem_threshold"]:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise UserError(f"{name} is {value}; use a number from 0 to 1.")
        at_least = {
            "unlabeled_weight": 0,
            "pseudo_ignore_top": 0,
            "pseudo_ignore_bottom": 0,
            "auxiliary_loss_weight": 0,
            "unlabeled_per_labeled": 1,
            "max_nonfinite_steps": 1,
            "lookahead_start": 0,
            "ohem_min_kept": 0,
            "feature_distance_weight": 0,
            "eval_window": 1,
            "eval_stride": 1,
            "picture_steps": 0,
        }
        for name, smallest in at_least.items():
            value = getattr(self, name)
            if value is not None and value < smallest:
                raise UserError(f"{name} is {value}; use {smallest} or more.")
        if self.eval_classes is not None and (not self.eval_classes or min(self.eval_classes) < 0):
            raise UserError(f"eval_classes is {self.eval_classes}; give ids of classes, 0 or more, or None for all.")
        if not 0 <= self.entropy_drop_percent <= 100:
            raise UserError(f"entropy_drop_percent is {self.entropy_drop_percent}; use a number from 0 to 100.")
        if not 0 <= self.jitter_strength <= 0.5:
            raise UserError(f"jitter_strength is {self.jitter_strength}; use a number from 0 to 0.5.")
        if self.eval_stride is not None and (self.eval_window is None or self.eval_stride > self.eval_window):
            raise UserError(
                f"eval_stride is {self.eval_stride} and eval_window {self.eval_window}; give a window at least as "
                "large as the stride, or pixels would be left out."
            )

    def rule_settings(self) -> dict[str, object]:
        """The options that belong to a rule, None where left out."""
        names = ("lookahead_steps", "lookahead_students", "lookahead_batches", "lookahead_labels")
        return {name: getattr(self, name) for name in names}

    def resolve(self, rule=None, objective: str | None = None):
        """The rule object in force; after this the options hold every number in force.

        Args:
            rule: an object of `hf_fst.method.rules`, the name of one, or None for what the options say.
            objective: the name of one, or None for what the options say.

        Raises:
            ValueError: what is given disagrees with the options.
        """
        if objective is not None:
            if self.objective not in (None, objective):
                raise UserError(
                    f"the trainer was given objective {objective!r} but its config says {self.objective!r}; give one."
                )
            self.objective = objective
        if rule is None or isinstance(rule, str):
            name = rule or self.rule or "fst_d"
            if self.rule is not None and name != self.rule:
                raise UserError(f"the trainer was given rule {name!r} but its config says {self.rule!r}; give one.")
            rule = make_rule(name, self.rule_settings())
        else:
            names = {cls: name for name, cls in RULES.items()}
            name = names.get(type(rule), type(rule).__name__)
            if self.rule is not None and name != self.rule:
                raise UserError(f"the trainer was given rule {rule} but its config says {self.rule!r}; give one.")
            own = rule_settings(rule) if dataclasses.is_dataclass(rule) else {}
            for key, value in self.rule_settings().items():
                if value is not None and own.get(key) != value:
                    raise UserError(
                        f"the trainer was given rule {rule} but its config says {key}={value}; give the number once."
                    )
        self.rule = name
        if dataclasses.is_dataclass(rule):
            for key, value in rule_settings(rule).items():
                setattr(self, key, value)
        self._settle()
        return rule
