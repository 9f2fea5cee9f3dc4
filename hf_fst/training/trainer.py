"""`FSTTrainer`: a `transformers.Trainer` whose training step looks ahead."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, SegformerImageProcessor, Trainer

from hf_fst.data.pairing import DrawSampler, Pairs, collate
from hf_fst.errors import UserError, dead_workers
from hf_fst.evaluation.counting import StreamingScores, count
from hf_fst.evaluation.inference import aligns_corners
from hf_fst.method.lookahead import Present, Step, TeacherAfterStep, sum_over_processes
from hf_fst.method.objectives import OBJECTIVES, Objective, make_objective
from hf_fst.method.rules import RULES, Supervised, WideFST, make_rule
from hf_fst.method.teacher import EMATeacher
from hf_fst.models.auxiliary import freeze_unused, return_auxiliary_logits
from hf_fst.models.loading import STUDENT_DIR, TEACHER_DIR, from_hub
from hf_fst.publishing.report import write_report
from hf_fst.training import refusals
from hf_fst.training.adapters import is_adapted, keep_base_statistics
from hf_fst.training.ahead import AheadBatches
from hf_fst.training.checkpoints import check, checkpoint, load_weights, save_network, to_resume
from hf_fst.training.config import FSTConfig
from hf_fst.training.epochs import EpochOfDraws
from hf_fst.training.health import health_when_logging
from hf_fst.training.hub_strategy import made_first, push_checkpoint, push_output, tell_failures
from hf_fst.training.journal import Journal
from hf_fst.training.pictures import Pictures
from hf_fst.training.sharding import gathered, saves_shards, sharding_alike, synchronize_batchnorm
from hf_fst.training.summary import facts_of, samples_of


class FSTTrainer(Trainer):
    """Trains a student for semantic segmentation with a look-ahead teacher ("Learning from Future", NeurIPS 2022).

    The one thing it changes in `transformers.Trainer` is the training step: at the last micro-batch of an accumulation
    group the `rule` moves the teacher (imagining future students, which are undone), and then the gradient of the
    whole group is taken with that teacher's labels. Evaluation scores student and teacher in one pass; `save_model`
    writes the teacher as an ordinary checkpoint.

    Args:
        model: a model with per-pixel class `logits`, the id of one on the Hub, or a local directory.
        args: an `FSTConfig`.
        rule: an object of `hf_fst.method.rules` or its name; by default what `args` says.
        objective: an object of `hf_fst.method.objectives` or its name; by default what `args` says.
        train_dataset: labeled images; items are dicts with `pixel_values` (3,H,W) and `labels` (H,W), 255 ignored.
        unlabeled_dataset: unlabeled images; items with `pixel_values`, and `labels` only for diagnostics.
        eval_dataset: labeled images; labels may have any size, logits are resized to it.
        processing_class: image processor saved with the model; by default the model's own, or one that normalizes
            with ImageNet's mean and standard deviation and leaves the size alone.
        id2label: class names for a model given as id or directory whose head has other classes.
        reference_model: the network whose features the student keeps near (`feature_distance_weight`), usually one
            with ImageNet weights; by default a copy of `model` as it is given.

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
        reference_model: nn.Module | None = None,
        **kwargs,
    ):
        args = FSTConfig() if args is None else args
        if not isinstance(args, FSTConfig):
            raise UserError(f"args is a {type(args).__name__}; give an hf_fst.FSTConfig.")
        if isinstance(objective, Objective) and args.objective is None:  # a preset depends on it
            args.objective = next((name for name, kind in OBJECTIVES.items() if type(objective) is kind), None)
        self.rule = args.resolve(rule, objective if isinstance(objective, str) else None)
        if isinstance(model, str):
            model, processing_class = from_hub(model, processing_class, id2label)
        processing_class = processing_class or SegformerImageProcessor(do_resize=False)
        refusals.refuse_streams(train_dataset=train_dataset, unlabeled_dataset=unlabeled_dataset)
        own = ("optimizers", "optimizer_cls_and_kwargs", "compute_loss_func")
        refusals.refuse_settings(args, **{key: kwargs[key] for key in own if key in kwargs})
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
        refusals.refuse_launch(self)
        refusals.refuse_model(self.model)
        refusals.refuse_eval_classes(args.eval_classes, self._num_labels())
        self._objective_by_name = objective is None or isinstance(objective, str)
        self._reference_model = reference_model
        if self._objective_by_name:
            objective = self._make_objective()
        else:
            args.objective = next((n for n, c in OBJECTIVES.items() if type(objective) is c), type(objective).__name__)
        self.learning_objective = objective
        refusals.refuse_objective(
            objective, args, self.has_teacher, train_dataset is not None and unlabeled_dataset is None
        )
        self.teacher = self._teacher_of(self.model)
        self._present: Present | None = None
        self.journal = Journal(args.max_nonfinite_steps)
        self._card: dict = {}
        self.pictures = Pictures(self)
        for callback in (EpochOfDraws(self), TeacherAfterStep(self), self.pictures):
            self.add_callback(callback)

    # the teacher

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher apart from the student."""
        return not isinstance(self.rule, Supervised)

    @property
    def virtual_steps(self) -> int:
        """Optimizer steps that the rule takes and undoes in a step; a rule of one's own need not say, 0 then."""
        return getattr(self.rule, "virtual_steps", 0)

    def _teacher_of(self, model: nn.Module) -> EMATeacher:
        """A copy of a student that is not yet wrapped or sharded: afterwards none could be made."""
        synchronize_batchnorm(model, self.args)
        return_auxiliary_logits(model)
        teacher = EMATeacher(model, self.args.teacher_buffers, share_frozen=is_adapted(model))
        if self.args.objective in OBJECTIVES:  # one of the user's own may learn from other outputs
            refusals.look_at_first_output([model, teacher.model])
        return teacher

    def create_accelerator_and_postprocess(self) -> None:
        """As `Trainer`; the gradient scaler counts virtual steps too."""
        super().create_accelerator_and_postprocess()
        if (scaler := self.accelerator.scaler) is not None:
            scaler.set_growth_interval(scaler.get_growth_interval() * (1 + self.virtual_steps))

    def _prepare_for_training(self, *args, **kwargs):
        if (ddp := self.accelerator.ddp_handler) is not None and not ddp.find_unused_parameters:
            freeze_unused(self.model, self.pairs[0]["pixel_values"])
        with sharding_alike(self.accelerator, self.model, self.teacher.model):
            return super()._prepare_for_training(*args, **kwargs)

    def _num_labels(self) -> int:
        return self.accelerator.unwrap_model(self.model).config.num_labels

    def call_model_init(self, trial=None):
        """A new model, and with it a new teacher."""
        model = super().call_model_init(trial)
        if self.teacher is not None:
            self.teacher = self._teacher_of(model.to(self.args.device))
            self._present = None
        return model

    def _hp_search_setup(self, trial) -> None:
        """A trial of a search may set options of which rule and objective are made."""
        super()._hp_search_setup(trial)
        if trial is not None and self.args.rule in RULES:
            self.rule = make_rule(self.args.rule, self.args.rule_settings())
        if trial is not None and self._objective_by_name:
            self.learning_objective = self._make_objective()

    def _make_objective(self) -> Objective:
        """What the options say."""
        reference = self.model if self._reference_model is None else self._reference_model
        return make_objective(self.args, self._num_labels(), aligns_corners(self.model), reference)

    def present(self, student: nn.Module) -> Present:
        """The memory for the student's present, allocated at the first look-ahead."""
        if self._present is None:
            self._present = Present(student, self.optimizer, self.args.lookahead_state)
        return self._present

    def lookahead_memory(self) -> int:
        """Bytes that the look-ahead holds beside student and teacher: the kept present, and for `fst_w` a mean future."""
        return 0 if self._present is None else self._present.nbytes(with_mean=isinstance(self.rule, WideFST))

    # batches

    def get_train_dataloader(self) -> DataLoader:
        """Pairs of labeled and unlabeled images; each draw has its own seed, whatever the number of workers."""
        if self.train_dataset is None:
            raise UserError("Training needs train_dataset: labeled images with `pixel_values` and `labels`.")
        self.pairs = Pairs(
            self.train_dataset,
            self.unlabeled_dataset if self.learning_objective.needs_unlabeled else None,
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
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, inside an epoch
            return [], None
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
        keep_base_statistics(self.model)
        group = [self._prepare_inputs(batch) for batch in self.group]
        health = health_when_logging(self, group[0])
        snapshot = self.pictures.snapshot(group[0])
        self.step = step = Step(self, model, group, [watcher for watcher in (health, snapshot) if watcher is not None])
        step.look_ahead()
        loss, prepared = step.gradient(group)
        step.share_buffers(step.student)  # else what is evaluated here is not what the first process saves
        if health is not None:
            sums = sum_over_processes(self.accelerator, [health.after(step.student, prepared[0])])
            self.journal.health = health.logs(sums)
        if snapshot is not None:
            snapshot.after(step.student, prepared[0])
        return torch.zeros((), device=self.args.device) if loss is None else loss

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their ids, blanks as underscores."""
        id2label = self.accelerator.unwrap_model(self.model).config.id2label
        return [str(id2label[i]).replace(" ", "_") for i in range(len(id2label))]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Loss and its terms are means over the steps taken, skipped ones apart; health and skipped steps are added."""
        self.journal.tell(logs, self.accelerator)
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

    def evaluation_loop(self, *args, **kwargs):
        """As `Trainer.evaluation_loop`; sharded networks are whole meanwhile."""
        with gathered(self.accelerator, self.networks().values()):
            return super().evaluation_loop(*args, **kwargs)

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
                save_network(self, teacher, os.path.join(output_dir, TEACHER_DIR), saves_shards(self.accelerator))
            return
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        save_network(self, student if teacher is None else teacher, output_dir)
        save_network(self, student, os.path.join(output_dir, STUDENT_DIR))
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.save_total_limit:
            self._finish_current_push()  # it may read a checkpoint that goes now
        with checkpoint(self, self._get_output_dir(trial=trial)):
            super()._save_checkpoint(model, trial)
        push_checkpoint(self, self._get_output_dir(trial=trial))

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Trains as `Trainer.train`; then, with `report`, writes model, card and pictures into the output directory.

        Raises:
            ValueError: the checkpoint to resume from is incomplete, damaged, or one of another run; nothing is written.
        """
        resume_from_checkpoint = to_resume(resume_from_checkpoint, self)
        self.journal, self._present = Journal(self.args.max_nonfinite_steps), None
        with dead_workers(lambda: f"step {self.state.global_step}"):
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        del self.ahead  # ends its workers
        if self.args.report:
            self.save_model(_internal_call=True)
            self.create_model_card()
        return output._replace(training_loss=output.metrics.get("train_loss", math.nan))

    def create_model_card(self, data: dict | None = None, model_name: str | None = None, **facts) -> None:
        """Write README.md, curves, per-class bars and sample pictures into the output directory; all processes call it.

        Args:
            data: `hf_fst.publishing.facts.DatasetFacts` under `labeled`, `unlabeled` and `evaluation`.
            model_name: name for people; made from model, data and rule by default.
            facts: what else `hf_fst.training.summary.facts_of` takes: recipe, overrides, license, palette, tested.
        """
        self._card = {**self._card, **facts} | ({"data": data} if data is not None else {})
        with gathered(self.accelerator, self.networks().values()):
            if self.is_world_process_zero():
                known = facts_of(self, **{"data": {}, **self._card}, model_name=model_name)
                write_report(self.args.output_dir, known, self.state.log_history, samples_of(self))

    # the Hub, see hf_fst.training.hub_strategy

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository and its branch before training, or raise a `PushError` that says why not."""
        made_first(self, lambda: super(FSTTrainer, self).init_hf_repo(token, private))

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **card
    ):
        """Write model and card (`card`: what `create_model_card` takes), then publish them in one commit."""
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        self.create_model_card(**{"hub_id": self.hub_model_id, **card})
        return push_output(self, commit_message, blocking, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: that checkpoint is not complete yet; `_save_checkpoint` pushes it."""

    def _finish_current_push(self) -> None:
        super()._finish_current_push()
        tell_failures(self)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        load_weights(self, resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.journal.load(checkpoint, self.args.process_index, self.args.world_size, self.args.device)

    def _load_best_model(self) -> None:
        check(self.state.best_model_checkpoint, self)
        load_weights(self, self.state.best_model_checkpoint)
