"""`FSTTrainer`: a `transformers.Trainer` whose training step looks ahead."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerImageProcessor,
    Trainer,
    TrainerCallback,
)
from transformers.trainer_utils import rotate_checkpoints

from hf_fst.checkpoints import (
    STUDENT_DIR,
    TEACHER_DIR,
    complete_checkpoints,
    load_weights,
    mark_complete,
    mark_incomplete,
)
from hf_fst.config import FSTConfig
from hf_fst.data.ahead import AheadBatches
from hf_fst.data.pairing import DrawSampler, Pairs, collate
from hf_fst.evaluation.counting import StreamingScores, count
from hf_fst.evaluation.inference import aligns_corners
from hf_fst.lookahead import Present, Step
from hf_fst.objectives import OBJECTIVES, Objective, make_objective
from hf_fst.reporting.health import PseudoLabelHealth
from hf_fst.reporting.journal import Journal
from hf_fst.reporting.pictures import Pictures
from hf_fst.reporting.report import write_report
from hf_fst.reporting.summary import facts_of, samples_of
from hf_fst.rules import Supervised, WideFST
from hf_fst.teacher import EMATeacher


class FSTTrainer(Trainer):
    """Trains a student for semantic segmentation with a look-ahead teacher ("Learning from Future", NeurIPS 2022).

    The one thing it changes in `transformers.Trainer` is the training step: at the last micro-batch of an accumulation
    group the `rule` moves the teacher (imagining future students, which are undone), and then the gradient of the
    whole group is taken with that teacher's labels. Evaluation scores student and teacher in one pass; `save_model`
    writes the teacher as an ordinary checkpoint.

    Args:
        model: a model with per-pixel class `logits`, the id of one on the Hub, or a local directory.
        args: an `FSTConfig`.
        rule: an object of `hf_fst.rules` or its name; by default what `args` says.
        objective: an object of `hf_fst.objectives` or its name; by default what `args` says.
        train_dataset: labelled images; items are dicts with `pixel_values` (3,H,W) and `labels` (H,W), 255 ignored.
        unlabeled_dataset: unlabelled images; items with `pixel_values`, and `labels` only for diagnostics.
        eval_dataset: labelled images; labels may have any size, logits are resized to it.
        processing_class: image processor saved with the model; by default the model's own, or one that normalises
            with ImageNet's mean and standard deviation and leaves the size alone.
        id2label: class names for a model given as id or directory whose head has other classes.

    Raises:
        ValueError: settings that contradict each other or the data, each with what to do.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | None = None,
        args: FSTConfig | None = None,
        rule=None,
        objective: Objective | str | None = None,
        train_dataset=None,
        unlabeled_dataset=None,
        eval_dataset=None,
        processing_class=None,
        id2label: dict[int, str] | None = None,
        data_collator=collate,
        **kwargs,
    ):
        args = FSTConfig() if args is None else args
        if not isinstance(args, FSTConfig):
            raise ValueError(f"args is a {type(args).__name__}; give an hf_fst.FSTConfig.")
        self.rule = args.resolve(rule, objective if isinstance(objective, str) else None)
        if isinstance(model, str):
            if processing_class is None:
                processing_class = AutoImageProcessor.from_pretrained(model)
            names = {} if id2label is None else {"id2label": id2label, "label2id": {v: k for k, v in id2label.items()}}
            model = AutoModelForSemanticSegmentation.from_pretrained(model, ignore_mismatched_sizes=True, **names)
        if processing_class is None:
            processing_class = SegformerImageProcessor(do_resize=False)
        for name, dataset in (("train_dataset", train_dataset), ("unlabeled_dataset", unlabeled_dataset)):
            if isinstance(dataset, IterableDataset):
                raise ValueError(f"{name} is a stream, which cannot be drawn by index; give a dataset with a length.")
        self.unlabeled_dataset = unlabeled_dataset
        self.teacher: EMATeacher | None = None
        self._scores = StreamingScores(lambda: (list(self.networks()), self.class_names), args.eval_classes)
        kwargs.setdefault("compute_metrics", self._scores)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=data_collator,
            **kwargs,
        )
        if args.n_gpu > 1:
            raise ValueError(
                f"This process sees {args.n_gpu} GPUs; start one process for each with `accelerate launch`, or show it "
                "one with CUDA_VISIBLE_DEVICES=0."
            )
        if self.is_deepspeed_enabled:
            raise ValueError(
                "DeepSpeed keeps its own copy of the weights, which a look-ahead cannot put back; use DDP or FSDP2."
            )
        if args.eval_classes is not None and max(args.eval_classes) >= self._num_labels():
            raise ValueError(
                f"eval_classes is {args.eval_classes}, but the model has the classes 0 to {self._num_labels() - 1}."
            )
        if objective is None or isinstance(objective, str):
            objective = make_objective(args, self._num_labels(), aligns_corners(self.model))
        else:
            args.objective = next((n for n, c in OBJECTIVES.items() if type(objective) is c), type(objective).__name__)
        self.objective = objective
        if objective.needs_unlabeled and not self.has_teacher:
            raise ValueError(
                f"rule 'supervised' has no teacher, but {type(objective).__name__} learns from its labels; "
                "use objective 'supervised' or another rule."
            )
        if objective.needs_unlabeled and train_dataset is not None and unlabeled_dataset is None:
            raise ValueError(
                f"objective {args.objective!r} learns from unlabelled images but unlabeled_dataset is missing; give it, "
                "or use rule 'supervised'."
            )
        # before the student is wrapped or sharded: a copy cannot be made afterwards
        self.teacher = EMATeacher(self.model, args.teacher_buffers)
        self._present: Present | None = None
        self.journal = Journal(args.max_nonfinite_steps)
        self._card: dict = {}
        self.add_callback(_EpochOfDraws(self))
        self.pictures = Pictures(self)
        self.add_callback(self.pictures)

    # the teacher

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher apart from the student."""
        return not isinstance(self.rule, Supervised)

    def _num_labels(self) -> int:
        return self.accelerator.unwrap_model(self.model).config.num_labels

    def call_model_init(self, trial=None):
        """A new model, and with it a new teacher."""
        model = super().call_model_init(trial)
        if self.teacher is not None:
            self.teacher = EMATeacher(model.to(self.args.device), self.args.teacher_buffers)
            self._present = None
        return model

    def present(self, student: nn.Module) -> Present:
        """The memory for the student's present, allocated at the first look-ahead."""
        if self._present is None:
            self._present = Present(student, self.optimizer, self.args.lookahead_state)
        return self._present

    def lookahead_memory(self) -> int:
        """Bytes that the look-ahead holds beside student and teacher: the kept present, and for `fst_w` a mean future."""
        if self._present is None:
            return 0
        student = self.networks()["student"]
        mean = sum(t.nbytes for t in [*student.parameters(), *student.buffers()])
        return self._present.nbytes() + (mean if isinstance(self.rule, WideFST) else 0)

    # batches

    def get_train_dataloader(self) -> DataLoader:
        """Pairs of labelled and unlabelled images; each draw has its own seed, whatever the number of workers."""
        if self.train_dataset is None:
            raise ValueError("Training needs train_dataset: labelled images with `pixel_values` and `labels`.")
        self.pairs = Pairs(
            self.train_dataset,
            self.unlabeled_dataset if self.objective.needs_unlabeled else None,
            seed=self.args.data_seed if self.args.data_seed is not None else self.args.seed,
            unlabeled_per_labeled=self.args.unlabeled_per_labeled,
            # whole groups: no process gets fewer images than another
            multiple_of=self.get_total_train_batch_size(self.args),
        )
        self.draws = DrawSampler(self.pairs)
        self.ahead = AheadBatches(
            self.pairs,
            self.data_collator,
            self.args.gradient_accumulation_steps,
            self._train_batch_size,
            self.args.process_index,
            self.args.world_size,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
        )
        return self._get_dataloader(
            dataset=self.pairs,
            description="Training",
            batch_size=self._train_batch_size,
            sampler_fn=lambda _: self.draws,
            is_training=True,
        )

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Remember the accumulation group, the unit of the look-ahead."""
        self.group, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        return self.group, None

    def lookahead_groups(self, count: int, size: int) -> Iterator[list[dict]]:
        """`count` groups of `size` micro-batches drawn for this step alone."""
        for group in self.ahead.groups(self.state.global_step, count, size):
            yield [self._prepare_inputs(batch) for batch in group]

    # the step

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """At the last micro-batch of a group: look ahead, then the real gradient of the whole group.

        Returns:
            the loss of the group, (); zero for the micro-batches before the last.
        """
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        model.train()
        group = [self._prepare_inputs(batch) for batch in self.group]
        health = self._health(group[0])
        snapshot = self.pictures.snapshot(group[0])
        step = Step(self, model, group, [watcher for watcher in (health, snapshot) if watcher is not None])
        self.rule.look_ahead(step)
        loss, prepared = step.gradient(group)
        if health is not None:
            sums = self.sum_over_processes([health.after(step.student, prepared[0])])
            self.journal.health = health.logs(sums)
        if snapshot is not None:
            snapshot.after(step.student, prepared[0])
        return torch.zeros((), device=self.args.device) if loss is None else loss

    def _health(self, batch: dict) -> PseudoLabelHealth | None:
        """At steps that will be logged, where there are pseudo-labels."""
        due = self.args.logging_strategy == "steps" and (self.state.global_step + 1) % self.state.logging_steps == 0
        if not (due and self.has_teacher and self.objective.needs_unlabeled):
            return None
        return PseudoLabelHealth(
            batch["unlabeled_pixel_values"],
            self.class_names,
            self.objective.confidence_threshold,
            self.objective.align_corners,
        )

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their ids, blanks as underscores."""
        id2label = self.accelerator.unwrap_model(self.model).config.id2label
        return [str(id2label[i]).replace(" ", "_") for i in range(len(id2label))]

    def sum_over_processes(self, counts: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        """Counts of micro-batches, summed over them and over the processes."""
        sums = {key: sum(count[key] for count in counts) for key in counts[0]}
        if self.accelerator.num_processes > 1:
            flat = torch.cat([value.double().flatten() for value in sums.values()])
            parts = self.accelerator.reduce(flat, "sum").split([value.numel() for value in sums.values()])
            sums = {k: part.view_as(v).to(v.dtype) for (k, v), part in zip(sums.items(), parts, strict=True)}
        return sums

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds the loss terms, the health of the pseudo-labels and the count of skipped steps."""
        if "loss" in logs:
            logs |= self.journal.entries(self.accelerator)
        super().log(logs, start_time)

    # evaluation

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Confusion counts (B,2,C,C) of student and teacher, at the size of the labels ((B,1,C,C) without a teacher)."""
        if self.compute_metrics is not self._scores or "labels" not in inputs:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
        inputs = self._prepare_inputs(inputs)
        options = (self._num_labels(), self.args.eval_window, self.args.eval_stride)
        with self.accelerator.autocast():
            counts = [count(n, inputs["pixel_values"], inputs["labels"], *options) for n in self.networks().values()]
        counts = torch.stack(counts, dim=1)
        return None, counts, counts.new_zeros(len(counts))

    def networks(self) -> dict[str, nn.Module]:
        """The networks that are evaluated, by name: the student, and the teacher where there is one."""
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return {"student": student, "teacher": self.teacher.model} if self.has_teacher else {"student": student}

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """Logits of the student for a dataset, as `Trainer.predict`; scores come from `evaluate`."""
        compute_metrics = self.compute_metrics
        if compute_metrics is self._scores:
            self.compute_metrics = None
        try:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        finally:
            self.compute_metrics = compute_metrics

    # checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The teacher as an ordinary checkpoint, the student beside it in `student/`.

        Inside `checkpoint-N/`, where `Trainer` looks for what it trains, the student is at the root and the teacher in
        `teacher/`.
        """
        student, teacher = self.networks()["student"], self.teacher.model if self.has_teacher else None
        if _internal_call and output_dir is not None:  # a checkpoint
            super().save_model(output_dir, _internal_call=True)
            if teacher is not None:
                self._save_network(teacher, os.path.join(output_dir, TEACHER_DIR))
            return
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        self._save_network(student if teacher is None else teacher, output_dir)
        self._save_network(student, os.path.join(output_dir, STUDENT_DIR))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save", revision=self.args.hub_revision)

    def _save_network(self, network: nn.Module, directory: str) -> None:
        if self.args.should_save:
            network.save_pretrained(directory)
            self.processing_class.save_pretrained(directory)

    def _save_checkpoint(self, model, trial) -> None:
        run_dir = self._get_output_dir(trial=trial)
        directory = os.path.join(run_dir, f"checkpoint-{self.state.global_step}")
        if self.args.should_save:
            mark_incomplete(directory)
        # older checkpoints may go only when this one is complete
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            mark_complete(directory, self)
            rotate_checkpoints(run_dir, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Trains as `Trainer.train`; then, with `report`, writes model, card and pictures into the output directory."""
        if resume_from_checkpoint is True:
            complete = complete_checkpoints(self.args.output_dir)
            if not complete:
                raise ValueError(f"{self.args.output_dir} holds no complete checkpoint to resume from.")
            resume_from_checkpoint = str(complete[-1])
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        del self.ahead  # ends its workers
        if self.args.report:
            self.save_model(_internal_call=True)
            self.create_model_card()
        return output

    def create_model_card(self, data: dict | None = None, model_name: str | None = None, **facts) -> None:
        """Write README.md with its curves, per-class bars and sample pictures into the output directory.

        Args:
            data: `hf_fst.reporting.facts.DatasetFacts` under `labeled`, `unlabeled` and `evaluation`.
            model_name: name for people; made from model, data and rule by default.
            facts: what else `hf_fst.reporting.summary.facts_of` takes: recipe, overrides, license, palette, tested.
        """
        if not self.is_world_process_zero():
            return
        self._card = {**self._card, **facts} | ({"data": data} if data is not None else {})
        known = facts_of(self, **{"data": {}, **self._card}, model_name=model_name)
        write_report(self.args.output_dir, known, self.state.log_history, samples_of(self))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self, resume_from_checkpoint)

    def _load_best_model(self) -> None:
        load_weights(self, self.state.best_model_checkpoint)


class _EpochOfDraws(TrainerCallback):
    """Tells the sampler which epoch its draws belong to, also where a run is resumed."""

    def __init__(self, trainer: FSTTrainer):
        self.trainer = trainer

    def on_epoch_begin(self, args, state, control, **kwargs):
        self.trainer.draws.set_epoch(math.floor(state.epoch or 0))
