"""Options of a run: `transformers.TrainingArguments` and what self-training adds to them."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from hf_fst.augmentation import DRAWS
from hf_fst.lookahead import FOLLOWS, STATES, WARMUP_COUNTS
from hf_fst.losses import REDUCTIONS
from hf_fst.objectives import OBJECTIVES
from hf_fst.objectives.class_mix import CLASS_SOURCES
from hf_fst.objectives.pseudo_label import WEIGHTINGS
from hf_fst.presets import PRESETS, preset_values
from hf_fst.rules import RULES, make_rule, rule_settings
from hf_fst.teacher import BUFFER_POLICIES

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


@dataclass
class FSTConfig(TrainingArguments):
    r"""
    Options of [`FSTTrainer`]: all of [`~transformers.TrainingArguments`], with some defaults changed, and those below.
    Options left at `None` take the value that the rule or objective is published with; after construction of the
    trainer they hold the values in force.

    Parameters:
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
            one of four. GPUs only; without it each process normalises by its own images.

        > Parameters that control the objective

        objective (`str`, *optional*, defaults to `"class_mix"`, with rule `"supervised"` to `"supervised"`):
            What the student learns: `"supervised"`, `"pseudo_label"`, `"class_mix"` (DACS, DAFormer: domain adaptation),
            `"cut_mix"` (semi-supervised) or `"entropy_drop"` (the authors' semi-supervised loop).
        unlabeled_weight (`float`, *optional*, defaults to 1.0):
            λ, 0 or more: weight of the unlabelled term.
        unlabeled_weighting (`str`, *optional*):
            `"constant"` uses λ as it is (default of `pseudo_label`); `"quality"` multiplies it by the share of confident
            pixels (default of `class_mix`); `"threshold"` keeps confident pixels alone (default of `cut_mix`).
        confidence_threshold (`float`, *optional*):
            In [0, 1]; above it a pseudo-label counts as confident. Defaults to 0.968, for `cut_mix` to 0.95.
        pseudo_ignore_top (`int`, *optional*, defaults to 0):
            Rows at the top of the unlabelled crop whose pseudo-labels get weight 0 (the domain adaptation recipes: 15).
        pseudo_ignore_bottom (`int`, *optional*, defaults to 0):
            Rows at its bottom (the recipes: 120, the car's hood).
        mix_classes (`str`, *optional*, defaults to `"image"`):
            ClassMix chooses among the classes of each labelled `"image"` or of the whole `"batch"` (the authors' code).
        cut_probability (`float`, *optional*, defaults to 0.5):
            With which `cut_mix` and `entropy_drop` cut an image.
        entropy_drop_percent (`float`, *optional*, defaults to 80.0):
            In [0, 100]: `entropy_drop` drops the pseudo-labels whose entropy is at this percentile of the batch or above.
        ohem_threshold (`float`, *optional*):
            In [0, 1]: where set, the labelled loss of `entropy_drop` is over pixels whose right class has at most this
            probability (the authors' Cityscapes recipe: 0.7).
        ohem_min_kept (`int`, *optional*, defaults to 100000):
            At least so many pixels of a batch, the hardest.
        feature_distance_weight (`float`, *optional*, defaults to 0.0):
            0 or more: weight of the distance of the student's last features on labelled images from those of a frozen
            network (`reference_model` of the trainer; DAFormer and the authors' code: 0.005). Not with `entropy_drop`.
        feature_distance_classes (`list[int]`, *optional*):
            Classes on whose places the distance is taken (the authors' code: Cityscapes' things); all if not given.
        jitter_probability (`float`, *optional*):
            With which an image that the student sees is colour-jittered. Defaults to 0.8, for `pseudo_label` to 0.
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
            Unlabelled images in a batch for each labelled one.
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

    preset: str | None = field(
        default=None, metadata={"help": "what options left out are: 'paper', 'official', or hf_fst's choice"}
    )

    rule: str | None = field(default=None, metadata={"help": "rule of the teacher: " + ", ".join(RULES)})
    lookahead_steps: int | None = field(default=None, metadata={"help": "K of fst_d, >= 0 (3)"})
    lookahead_students: int | None = field(default=None, metadata={"help": "N of fst_w, >= 1 (3)"})
    lookahead_batches: str | None = field(
        default=None, metadata={"help": "virtual steps on 'same' or 'different' batches"}
    )
    lookahead_labels: str | None = field(
        default=None, metadata={"help": "labels of fst_w's virtual steps: 'followed' or 'present'"}
    )
    lookahead_state: str | None = field(
        default=None, metadata={"help": "'restore' all state after virtual steps, or 'carry' it (restore)"}
    )
    lookahead_start: int | None = field(default=None, metadata={"help": "first step that looks ahead, from 0 (0)"})

    teacher_momentum: float = field(default=0.999, metadata={"help": "mu in [0, 1]"})
    lookahead_momentum: float | None = field(default=None, metadata={"help": "mu' in [0, 1] (teacher_momentum)"})
    teacher_follows: str | None = field(
        default=None, metadata={"help": "the student 'before' its step, 'after' it or 'both' (before)"}
    )
    momentum_warmup: bool | None = field(default=None, metadata={"help": "use min(1 - 1/(t+1), mu) (true)"})
    warmup_counts: str | None = field(default=None, metadata={"help": "t counts 'steps' or 'forwards' (steps)"})
    teacher_buffers: str | None = field(default=None, metadata={"help": "'copy', 'ema' or 'batch' (copy)"})

    sync_batchnorm: bool = field(default=False, metadata={"help": "BatchNorm statistics over all processes"})

    objective: str | None = field(default=None, metadata={"help": "what the student learns: " + ", ".join(OBJECTIVES)})
    unlabeled_weight: float = field(default=1.0, metadata={"help": "lambda, >= 0"})
    unlabeled_weighting: str | None = field(default=None, metadata={"help": "'constant', 'quality' or 'threshold'"})
    confidence_threshold: float | None = field(default=None, metadata={"help": "in [0, 1]"})
    pseudo_ignore_top: int = field(default=0, metadata={"help": "rows at the top with weight 0"})
    pseudo_ignore_bottom: int = field(default=0, metadata={"help": "rows at the bottom with weight 0"})
    mix_classes: str | None = field(
        default=None, metadata={"help": "ClassMix classes of each 'image' or of the 'batch' (image)"}
    )
    cut_probability: float = field(default=0.5, metadata={"help": "with which cut_mix and entropy_drop cut"})
    entropy_drop_percent: float = field(default=80.0, metadata={"help": "entropy percentile that is dropped from"})
    ohem_threshold: float | None = field(default=None, metadata={"help": "labeled loss over pixels this hard"})
    ohem_min_kept: int = field(default=100_000, metadata={"help": "at least so many of them"})
    feature_distance_weight: float = field(default=0.0, metadata={"help": "of the distance to a frozen network"})
    feature_distance_classes: list[int] | None = field(default=None, metadata={"help": "ids of its classes (all)"})
    jitter_probability: float | None = field(default=None, metadata={"help": "of colour jitter"})
    jitter_strength: float = field(default=0.2, metadata={"help": "of colour jitter"})
    blur_probability: float | None = field(default=None, metadata={"help": "of Gaussian blur"})
    augmentation_draw: str | None = field(
        default=None, metadata={"help": "jitter, blur and cuts drawn for each 'image' or the 'batch' (image)"}
    )
    loss_reduction: str | None = field(default=None, metadata={"help": "mean over 'valid' or 'all' pixels (valid)"})
    auxiliary_loss_weight: float = field(default=0.4, metadata={"help": "of each auxiliary head"})
    auxiliary_pseudo_weight: bool | None = field(
        default=None, metadata={"help": "weigh pseudo-labels in auxiliary heads too (true)"}
    )

    unlabeled_per_labeled: int = field(default=1, metadata={"help": "unlabelled images for each labelled one"})
    max_nonfinite_steps: int = field(default=10, metadata={"help": "skipped steps in a row that stop the run"})
    eval_window: int | None = field(default=None, metadata={"help": "side of the sliding window in evaluation"})
    eval_stride: int | None = field(default=None, metadata={"help": "distance between windows"})
    eval_classes: list[int] | None = field(default=None, metadata={"help": "ids of the classes the means are over"})
    picture_steps: int | None = field(
        default=None, metadata={"help": "a picture of what training sees every so many steps; 0 for none"}
    )
    report: bool = field(default=True, metadata={"help": "write card and pictures after training"})

    # defaults of TrainingArguments that do not suit pairs of images and label maps
    remove_unused_columns: bool | None = field(default=False, metadata={"help": "batches are flat dicts: keep False"})
    batch_eval_metrics: bool = field(default=True, metadata={"help": "evaluation counts as it goes: keep True"})

    def __post_init__(self):
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
            raise ValueError(
                "lookahead_labels 'present' wants labels of the teacher before it follows the student, which "
                f"teacher_follows {self.teacher_follows!r} does not keep; use teacher_follows 'before'."
            )
        if self.objective == "entropy_drop" and self.feature_distance_weight:
            raise ValueError("objective 'entropy_drop' has no feature distance; leave feature_distance_weight at 0.")
        if self.metric_for_best_model in (None, "loss"):
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
                raise ValueError(f"{name} is {value!r}; use one of {', '.join(accepted)}.")
        if self.rule == "supervised" and self.objective not in (None, "supervised"):
            raise ValueError(
                f"rule 'supervised' has no teacher, but objective {self.objective!r} learns from its labels; "
                "use objective 'supervised' or another rule."
            )

    def _check_ranges(self) -> None:
        unit = ["teacher_momentum", "lookahead_momentum", "confidence_threshold", "cut_probability"]
        for name in [*unit, "jitter_probability", "blur_probability", "ohem_threshold"]:
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; use a number from 0 to 1.")
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
                raise ValueError(f"{name} is {value}; use {smallest} or more.")
        if self.eval_classes is not None and (not self.eval_classes or min(self.eval_classes) < 0):
            raise ValueError(f"eval_classes is {self.eval_classes}; give ids of classes, 0 or more, or None for all.")
        if not 0 <= self.entropy_drop_percent <= 100:
            raise ValueError(f"entropy_drop_percent is {self.entropy_drop_percent}; use a number from 0 to 100.")
        if not 0 <= self.jitter_strength <= 0.5:
            raise ValueError(f"jitter_strength is {self.jitter_strength}; use a number from 0 to 0.5.")
        if self.eval_stride is not None and (self.eval_window is None or self.eval_stride > self.eval_window):
            raise ValueError(
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
            rule: an object of `hf_fst.rules`, the name of one, or None for what the options say.
            objective: the name of one, or None for what the options say.

        Raises:
            ValueError: what is given disagrees with the options.
        """
        if objective is not None:
            if self.objective not in (None, objective):
                raise ValueError(
                    f"the trainer was given objective {objective!r} but its config says {self.objective!r}; give one."
                )
            self.objective = objective
        if rule is None or isinstance(rule, str):
            name = rule or self.rule or "fst_d"
            if self.rule is not None and name != self.rule:
                raise ValueError(f"the trainer was given rule {name!r} but its config says {self.rule!r}; give one.")
            rule = make_rule(name, self.rule_settings())
        else:
            names = {cls: name for name, cls in RULES.items()}
            name = names.get(type(rule), type(rule).__name__)
            if self.rule is not None and name != self.rule:
                raise ValueError(f"the trainer was given rule {rule} but its config says {self.rule!r}; give one.")
            own = rule_settings(rule) if dataclasses.is_dataclass(rule) else {}
            for key, value in self.rule_settings().items():
                if value is not None and own.get(key) != value:
                    raise ValueError(
                        f"the trainer was given rule {rule} but its config says {key}={value}; give the number once."
                    )
        self.rule = name
        if dataclasses.is_dataclass(rule):
            for key, value in rule_settings(rule).items():
                setattr(self, key, value)
        self._settle()
        return rule
