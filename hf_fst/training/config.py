"""Options of a run: `transformers.TrainingArguments` and what self-training adds to them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import TrainingArguments

from hf_fst.errors import UserError
from hf_fst.method.augmentation import DRAWS
from hf_fst.method.lookahead import FOLLOWS, STATES, WARMUP_COUNTS
from hf_fst.method.losses import REDUCTIONS
from hf_fst.method.objectives import OBJECTIVES
from hf_fst.method.objectives.class_mix import CLASS_SOURCES
from hf_fst.method.objectives.pseudo_label import WEIGHTINGS
from hf_fst.method.presets import PRESETS
from hf_fst.method.rules import BATCHES, LABELS, RULES
from hf_fst.method.teacher import BUFFER_POLICIES
from hf_fst.training.options import check, documented, option
from hf_fst.training.settings import resolve

NO_DEEPSPEED = "DeepSpeed keeps its own copy of the weights, which a look-ahead cannot put back; use DDP or FSDP2."

PRESET = "Parameters that choose between the paper and the authors' code"
LOOKAHEAD = "Parameters that control the look-ahead"
TEACHER = "Parameters that control the teacher"
OBJECTIVE = "Parameters that control the objective"
OPTIMIZER = "Parameters that control the optimizer"
RUN = "Parameters that control the run"


@documented
@dataclass
class FSTConfig(TrainingArguments):
    """
    Options of [`FSTTrainer`]: all of [`~transformers.TrainingArguments`], with some defaults changed, and those below.

    Options left at `None` take the value that the preset, the rule or the objective has for them; `FSTTrainer.settings`
    holds the values in force. The config itself is never written to, so that one can be given to several trainers. An
    option that the rule or the objective does not have is refused; `"supervised"` leaves out those of the unlabeled term.
    """

    preset: str | None = option(
        None,
        "Values of the options left out: hf_fst's choice, with 'paper' that of the equations, with "
        "'official' that of the authors' code for the objective at hand (domain adaptation or semi- "
        "supervised).",
        group=PRESET,
        choices=PRESETS,
    )

    rule: str | None = option(
        None,
        "What happens to the teacher before the student's real step: 'supervised', 'mean_teacher', "
        "'naive_fst', 'improved_fst', 'fst_d' (the default: K virtual steps deep) or 'fst_w' (N virtual "
        "students wide).",
        group=LOOKAHEAD,
        choices=RULES,
    )
    lookahead_steps: int | None = option(
        None,
        "K of fst_d, 0 or more (3); 0 is the mean teacher. Each costs one more forward and backward pass a step.",
        group=LOOKAHEAD,
    )
    lookahead_students: int | None = option(None, "N of fst_w, 1 or more (3).", group=LOOKAHEAD)
    lookahead_batches: str | None = option(
        None,
        "Whether virtual steps learn from the 'same' batch as the real one (default of fst_d, naive_fst "
        "and improved_fst) or from 'different' ones drawn for them (default of fst_w).",
        group=LOOKAHEAD,
        choices=BATCHES,
    )
    lookahead_labels: str | None = option(
        None,
        "Who labels for the virtual students of fst_w: the teacher after it 'followed' the present "
        "student (default, the authors' code) or the teacher as it is at 'present' (as printed in the "
        "paper).",
        group=LOOKAHEAD,
        choices=LABELS,
    )
    lookahead_state: str | None = option(
        None,
        "What comes back after virtual steps: 'restore' (default) puts back parameters, buffers, "
        "optimizer state and random number generators, 'carry' parameters alone, as the authors' code "
        "does.",
        group=LOOKAHEAD,
        choices=STATES,
    )
    lookahead_start: int | None = option(
        None,
        "The first step, from 0, that looks ahead (0). Earlier steps are those of a mean teacher that "
        "follows the student after the step as well (the authors' domain adaptation code: 1).",
        group=LOOKAHEAD,
        low=0,
    )

    teacher_momentum: float = option(
        0.999,
        "μ in [0, 1]: φ ← μφ + (1-μ)θ when the teacher follows the present student.",
        group=TEACHER,
        low=0,
        high=1,
    )
    lookahead_momentum: float | None = option(
        None,
        "μ' in [0, 1], when it follows a virtual student (default: teacher_momentum). fst_d moves the "
        "teacher K+1 times a step, so that its memory is about 1/(K+1) as long as that of a mean teacher "
        "of the same momentum.",
        group=TEACHER,
        low=0,
        high=1,
    )
    teacher_follows: str | None = option(
        None,
        "When the teacher follows the present student: 'before' the real step (default, the equations), "
        "'after' it, or 'both' (the authors' semi-supervised code, so that θ_{t+1} enters twice).",
        group=TEACHER,
        choices=FOLLOWS,
    )
    momentum_warmup: bool | None = option(
        None,
        "Use min(1 - 1/(t+1), μ) at step t (and the same for μ'), so that the teacher starts as the "
        "student (true). The authors' code does; the paper prints a constant.",
        group=TEACHER,
    )
    warmup_counts: str | None = option(
        None,
        "What t counts: 'steps' (default), or training 'forwards', virtual ones too (the authors' domain "
        "adaptation code).",
        group=TEACHER,
        choices=WARMUP_COUNTS,
    )
    teacher_buffers: str | None = option(
        None,
        "BatchNorm statistics of the teacher: 'copy' those of the network it follows (default), 'ema' "
        "averages them as well, 'batch' labels with those of the batch at hand (the authors' domain "
        "adaptation code).",
        group=TEACHER,
        choices=BUFFER_POLICIES,
    )
    sync_batchnorm: bool = option(
        False,
        "Take BatchNorm statistics over all processes (torch.nn.SyncBatchNorm), so that two GPUs with "
        "two images each are one with four. GPUs only: on CPUs each process normalizes by its own "
        "images, with a warning.",
        group=TEACHER,
        card=False,
    )

    objective: str | None = option(
        None,
        "What the student learns: 'supervised', 'pseudo_label', 'class_mix' (the default; DACS, "
        "DAFormer: domain adaptation), 'cut_mix' (semi-supervised) or 'entropy_drop' (the authors' semi- "
        "supervised loop). Rule 'supervised' implies objective 'supervised'.",
        group=OBJECTIVE,
        choices=OBJECTIVES,
    )
    unlabeled_weight: float | None = option(
        None, "λ, 0 or more (1): weight of the unlabeled term.", group=OBJECTIVE, low=0
    )
    unlabeled_weighting: str | None = option(
        None,
        "'constant' uses λ as it is (default of pseudo_label); 'quality' multiplies it by the share of "
        "confident pixels (default of class_mix); 'threshold' keeps confident pixels alone (default of "
        "cut_mix).",
        group=OBJECTIVE,
        choices=WEIGHTINGS,
    )
    confidence_threshold: float | None = option(
        None,
        "In [0, 1]; from this confidence on a pseudo-label counts as confident (0.968; cut_mix and "
        "entropy_drop: 0.95).",
        group=OBJECTIVE,
        low=0,
        high=1,
    )
    pseudo_ignore_top: int | None = option(
        None,
        "Rows at the top of unlabeled crops whose pseudo-labels get weight 0 (0; the domain adaptation recipes: 15).",
        group=OBJECTIVE,
        low=0,
    )
    pseudo_ignore_bottom: int | None = option(
        None, "The same at their bottom (0; the recipes: 120, the hood of the car).", group=OBJECTIVE, low=0
    )
    mix_classes: str | None = option(
        None,
        "ClassMix chooses among the classes of each labeled 'image' (default) or of the whole 'batch' "
        "(the authors' code).",
        group=OBJECTIVE,
        choices=CLASS_SOURCES,
    )
    cut_probability: float | None = option(
        None, "In [0, 1]: how often cut_mix and entropy_drop cut an image (0.5).", group=OBJECTIVE, low=0, high=1
    )
    entropy_drop_percent: float | None = option(
        None,
        "In [0, 100]: entropy_drop drops the pseudo-labels whose entropy is at this percentile of the "
        "batch or above (80).",
        group=OBJECTIVE,
        low=0,
        high=100,
    )
    ohem_threshold: float | None = option(
        None,
        "In [0, 1]: where set, the labeled loss of entropy_drop is over pixels whose right class has at "
        "most this probability (the authors' Cityscapes recipe: 0.7).",
        group=OBJECTIVE,
        low=0,
        high=1,
    )
    ohem_min_kept: int | None = option(
        None, "At least so many pixels of a batch, the hardest (100000).", group=OBJECTIVE, low=0
    )
    feature_distance_weight: float | None = option(
        None,
        "0 or more (0): weight of the distance of the student's last features on labeled images from "
        "those of a frozen network (reference_model of the trainer; DAFormer and the authors' code: "
        "0.005). Not with entropy_drop.",
        group=OBJECTIVE,
        low=0,
    )
    feature_distance_classes: list[int] | None = option(
        None,
        "Ids of the classes on whose places the distance is taken (the authors' code: Cityscapes' "
        "things); all if not given.",
        group=OBJECTIVE,
    )
    jitter_probability: float | None = option(
        None,
        "In [0, 1]: how often the colors of an image that the student sees are jittered (0.8; "
        "pseudo_label and entropy_drop: 0).",
        group=OBJECTIVE,
        low=0,
        high=1,
    )
    jitter_strength: float | None = option(
        None,
        "Brightness, contrast, saturation and hue are drawn within ± this, 0 to 0.5 (0.2).",
        group=OBJECTIVE,
        low=0,
        high=0.5,
    )
    blur_probability: float | None = option(
        None,
        "In [0, 1]: how often it is blurred (0.5; pseudo_label and entropy_drop: 0).",
        group=OBJECTIVE,
        low=0,
        high=1,
    )
    augmentation_draw: str | None = option(
        None,
        "Whether each 'image' (default) or the whole 'batch' is jittered, blurred and cut or not (the authors' code).",
        group=OBJECTIVE,
        choices=DRAWS,
    )
    loss_reduction: str | None = option(
        None,
        "Means are taken over 'valid' pixels (default) or over 'all', ignored ones included (the authors' code).",
        group=OBJECTIVE,
        choices=REDUCTIONS,
    )
    auxiliary_loss_weight: float | None = option(
        None,
        "0 or more (0.4): weight of each auxiliary head, for models that return auxiliary_logits.",
        group=OBJECTIVE,
        low=0,
    )
    auxiliary_pseudo_weight: bool | None = option(
        None,
        "Whether pixels with pseudo-labels weigh in auxiliary heads what they weigh in the main one "
        "(true), or 1 (the authors' code).",
        group=OBJECTIVE,
    )

    head_lr_multiplier: float | None = option(
        None,
        "Learning rate of the heads over that of the backbone (1; the paper's recipes: 10).",
        group=OPTIMIZER,
        above=0,
    )
    no_decay: list[str] | None = option(
        None,
        "Backbone parameters with one of these in their name do not decay. Default: with "
        "head_lr_multiplier none, without it norms and biases.",
        group=OPTIMIZER,
    )
    schedule: str | None = option(
        None,
        "'poly' multiplies the learning rate by (1 - step/max_steps)^poly_power and a linear warm-up "
        "(warmup_steps); default: lr_scheduler_type.",
        group=OPTIMIZER,
        choices=("poly",),
    )
    poly_power: float = option(1.0, "Power of the poly schedule.", group=OPTIMIZER, above=0)

    unlabeled_per_labeled: int = option(1, "Unlabeled images in a batch for each labeled one.", group=RUN, low=1)
    max_nonfinite_steps: int = option(
        10,
        "A step whose loss is not finite is skipped and counted; so many in a row stop the run.",
        group=RUN,
        low=1,
        card=False,
    )
    eval_window: int | None = option(
        None, "Side of the sliding window used in evaluation, in pixels; whole images if not given.", group=RUN, low=1
    )
    eval_stride: int | None = option(
        None, "Distance between windows in pixels (two thirds of the window).", group=RUN, low=1
    )
    eval_classes: list[int] | None = option(
        None,
        "Ids of the classes that the logged means, and with them the choice of the best model, are over, "
        "such as hf_fst.evaluation.CLASS_LISTS['synthia_16']; all classes if not given. The IoU of every "
        "class is logged.",
        group=RUN,
    )
    picture_steps: int | None = option(
        None,
        "Every so many optimizer steps, and at the first, a picture of what training sees goes to "
        "output_dir/pictures/step-N.png and to TensorBoard, trackio and W&B where report_to names them; "
        "none if not given or 0. The weights do not change by it.",
        group=RUN,
        low=0,
        card=False,
    )
    report: bool = option(
        True,
        "Write the model card, curves, per-class bars and sample pictures into the output directory after training.",
        group=RUN,
        card=False,
    )

    # defaults of TrainingArguments that do not suit pairs of images and label maps
    remove_unused_columns: bool | None = False
    batch_eval_metrics: bool = True

    def __post_init__(self):
        if self.deepspeed:
            raise UserError(f"deepspeed is given, but {NO_DEEPSPEED}")
        check(self)
        # unless told so, several processes on a machine without accelerator do not meet: each makes a run of its own
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()
        self.dataloader_pin_memory &= torch.accelerator.is_available()  # else every loader warns
        self.label_names = ["labels"] if self.label_names is None else self.label_names
        if self.eval_classes is not None and (not self.eval_classes or min(self.eval_classes) < 0):
            raise UserError(f"eval_classes is {self.eval_classes}; give ids of classes, 0 or more, or None for all.")
        if self.eval_stride is not None and (self.eval_window is None or self.eval_stride > self.eval_window):
            raise UserError(
                f"eval_stride is {self.eval_stride} and eval_window {self.eval_window}; give a window at least as "
                "large as the stride, or pixels would be left out."
            )
        if self.rule is not None or self.objective is not None:
            resolve(self)  # what contradicts itself is refused here, not hours later
