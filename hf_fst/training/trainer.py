"""`FSTTrainer`: a `transformers.Trainer` whose training step looks ahead."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from functools import partial

import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Trainer

from hf_fst.data.agreement import following
from hf_fst.data.pairing import DrawSampler, Evaluated, HandsOnSkipped, Pairs, collate
from hf_fst.errors import UserError
from hf_fst.method.lookahead import Context, Step
from hf_fst.models.param_groups import parameter_groups, poly_schedule
from hf_fst.training import checkpoints, hub_strategy, refusals
from hf_fst.training.ahead import ahead_of, context_of, dead_workers, in_precision_of, pairs_of, received
from hf_fst.training.batches import explain_crop, refuse_without_labels
from hf_fst.training.callbacks import callbacks_of, watchers_of
from hf_fst.training.classes import class_names, follow_names
from hf_fst.training.config import FSTConfig
from hf_fst.training.evaluation import choose_best, evaluating, of_any_size, scores_of, unscored
from hf_fst.training.journal import Journal
from hf_fst.training.networks import counted_once, master_weights, student_of, teacher_of, training_mode, wrapped_alike
from hf_fst.training.settings import look_of, objective_of, passes_a_step, resolve


class FSTTrainer(Trainer):
    """Trains a student for semantic segmentation with a look-ahead teacher ("Learning from Future", NeurIPS 2022).

    It is a `transformers.Trainer` that overrides

    - `get_batch_samples`, `training_step`: at the last micro-batch of an accumulation group the `rule` moves the teacher
      (imagining future students, which are undone); then the gradient of the whole group is taken with its labels;
    - `_prepare_input`: pixels have the precision of the weights;
    - `get_train_dataloader`: batches are pairs of labeled and unlabeled images, and each draw has a seed of its own;
    - `create_optimizer`, `create_scheduler`: heads may learn faster, and the schedule may be a power of what is left;
    - `create_accelerator_and_postprocess`, `_prepare_for_training`: virtual steps count for the gradient scaler, and the
      teacher is sharded as its student is;
    - `call_model_init`, `_hp_search_setup`: each trial of a search has its own teacher, settings and objective;
    - `_get_dataloader`: what is evaluated is normalized as the image processor says;
    - `prediction_step`, `evaluation_loop`, `predict`: one pass over the data counts for student and teacher;
    - `floating_point_ops`: counted once for all batches of a size;
    - `log`, `train`: losses are means over the steps taken, and a run is resumed from complete checkpoints alone;
    - `save_model`, `_save_checkpoint`, `_load_from_checkpoint`, `_load_best_model`, `_load_optimizer_and_scheduler`:
      `output_dir` is the teacher and `checkpoint-N/` the student with the teacher inside, complete or not there;
    - `create_model_card`, `init_hf_repo`, `push_to_hub`, `_push_from_checkpoint`: the card says what was trained, and is
      published with the weights in one commit.

    Weights, report, pictures, pushes and the health of the pseudo-labels are callbacks (`Weights`, `Report`, `Pushes`
    of `hf_fst.training.callbacks`, `pictures.Pictures`, `health.Health`), which `remove_callback` removes. `args` is
    copied; `settings` holds the values in force.

    Args:
        model: a model with per-pixel class `logits`, the id of one on the Hub, or a local directory.
        args: an `FSTConfig`.
        rule: an object of `hf_fst.method.rules` or its name; by default what `args` says.
        objective: an object of `hf_fst.method.objectives` or its name; by default what `args` says.
        train_dataset: labeled images; items are dicts with `pixel_values` (3,H,W) and `labels` (H,W), 255 ignored.
        unlabeled_dataset: unlabeled images; items with `pixel_values`, and `labels` only for diagnostics.
        eval_dataset: labeled images; labels may have any size, logits are resized to it.
        processing_class: image processor saved with the model; by default the model's own (`networks.processor_for`). The
            transforms of the datasets follow it (`hf_fst.data.transforms.Normalize`).
        id2label: class names for a model given as id or directory whose head has other classes.
        reference_model: the network whose features the student keeps near (`feature_distance_weight`), usually one
            with ImageNet weights; by default a copy of `model` as it is given.

    Raises:
        UserError: settings that contradict each other or the data, each with what to do.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | str | None = None,
        args: FSTConfig | None = None,
        rule=None,
        objective=None,
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
        self._given = rule, objective
        self._collates = data_collator is collate
        resolve(args, rule, objective)  # what contradicts itself is refused before a download
        args = copy.copy(args)  # `Trainer` writes to its arguments, and the user's may serve another one
        model, processing_class, self.normalization = student_of(
            model, processing_class, id2label, train_dataset, args
        )
        self._whole = getattr(model, "is_whole", False)  # of `load_network`
        self.settings = resolve(args, rule, objective, self._whole)
        self.rule = self.settings.rule_in_force
        choose_best(args, self.has_teacher, kwargs.get("compute_metrics") is None)
        sets = {"train_dataset": train_dataset, "unlabeled_dataset": unlabeled_dataset, "eval_dataset": eval_dataset}
        train_dataset, unlabeled_dataset, eval_dataset = following(sets, self.normalization).values()
        refusals.refuse_datasets(train_dataset, unlabeled_dataset, eval_dataset, args.eval_strategy)
        refuse_without_labels(train_dataset)
        refusals.refuse_settings(args, **{key: kwargs[key] for key in refusals.JUDGED if key in kwargs})
        self.unlabeled_dataset = unlabeled_dataset
        self.teacher = None  # made when `Trainer` has the model
        self._scores = scores_of(self, args.metric_for_best_model)
        kwargs.setdefault("compute_metrics", self._scores)
        super().__init__(
            model=model,
            args=args,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            data_collator=HandsOnSkipped(data_collator) if args.on_bad_image == "skip" else data_collator,
            **kwargs,
        )
        follow_names(self, self.model)
        refusals.refuse_launch(self)
        refusals.refuse_model(self.model, self.settings)
        self._reference_model = master_weights(reference_model, args)
        self.learning_objective = self._objective()
        missing = train_dataset is not None and unlabeled_dataset is None
        name = self.settings.objective
        refusals.refuse_objective(self.learning_objective, name, self.model, missing, args.torch_compile)
        self.teacher = teacher_of(self.model, self.settings, args, self.learning_objective)
        self.context: Context | None = None
        self.journal = Journal(self.settings.max_nonfinite_steps)
        self._card: dict = {}
        for callback in callbacks_of(self):
            self.add_callback(callback)

    # the teacher

    @property
    def has_teacher(self) -> bool:
        """Whether there is a teacher apart from the student."""
        return self.settings.rule != "supervised"

    def create_accelerator_and_postprocess(self) -> None:
        """As `Trainer`; the gradient scaler counts virtual steps too."""
        super().create_accelerator_and_postprocess()
        if (scaler := self.accelerator.scaler) is not None:
            scaler.set_growth_interval(round(scaler.get_growth_interval() * passes_a_step(self.settings)))

    def _prepare_for_training(self, *args, **kwargs):
        with wrapped_alike(self.accelerator, self.model, self.teacher, self.pairs, self.learning_objective):
            return super()._prepare_for_training(*args, **kwargs)

    def _num_labels(self) -> int:
        return self.accelerator.unwrap_model(self.model).config.num_labels

    def call_model_init(self, trial=None):
        """A new model, and with it a new teacher."""
        model = master_weights(super().call_model_init(trial), self.args)
        if self.teacher is not None:
            follow_names(self, model)
            self.teacher = teacher_of(model.to(self.args.device), self.settings, self.args, self.learning_objective)
        return model

    def _hp_search_setup(self, trial) -> None:
        """A trial of a search may set options that rule and objective are made from: resolve them again."""
        super()._hp_search_setup(trial)
        if trial is not None:
            self.settings = resolve(self.args, *self._given, self._whole)
            self.rule = self.settings.rule_in_force
            self.learning_objective = self._objective()

    def _objective(self):
        given = self._given[1], self.model, self._reference_model
        return objective_of(self.settings, *given, self.args.device, self.normalization)

    def create_optimizer(self, model=None) -> torch.optim.Optimizer:
        """The optimizer of `optim`, over groups for heads and for parameters that do not decay where these are set."""
        multiplier, no_decay = self.settings.head_lr_multiplier, self.settings.no_decay
        if self.optimizer is None and (multiplier is not None or no_decay is not None):
            network = self.model if model is None else model
            optimizer_class, options = self.get_optimizer_cls_and_kwargs(self.args, network)
            rates = self.args.learning_rate, self.args.weight_decay, 1.0 if multiplier is None else multiplier
            self.optimizer = optimizer_class(parameter_groups(network, *rates, no_decay or ()), **options)
        return super().create_optimizer(model)

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        """The poly schedule where it is set, counted in optimizer steps."""
        if self.lr_scheduler is None and self.settings.schedule == "poly":
            warmup = self.args.get_warmup_steps(num_training_steps)
            optimizer = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = poly_schedule(optimizer, num_training_steps, self.settings.poly_power, warmup)
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def lookahead_memory(self) -> int:
        """Bytes that the look-ahead holds besides student and teacher: the present, and for `fst_w` a mean future."""
        present = None if self.context is None else self.context.present
        return 0 if present is None else present.nbytes(with_mean=self.settings.rule == "fst_w")

    # batches

    def get_train_dataloader(self) -> DataLoader:
        """Pairs of labeled and unlabeled images; each draw has its own seed, whatever the number of workers."""
        if self.train_dataset is None:
            raise UserError("Training needs train_dataset: labeled images with `pixel_values` and `labels`.")
        self.pairs = pairs_of(self)
        self.draws, self.ahead = DrawSampler(self.pairs), ahead_of(self)
        in_order = {"sampler_fn": lambda _: self.draws, "is_training": True}
        return self._get_dataloader(self.pairs, "Training", self._train_batch_size, **in_order)

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Remember the accumulation group, the unit of the look-ahead."""
        if self.state.global_step >= self.state.max_steps:  # resumed at its end, inside an epoch
            return [], None
        self.group = received(self, super().get_batch_samples(epoch_iterator, num_batches, device)[0])
        return self.group, None

    def _prepare_input(self, data):
        """As `Trainer`; pixels of more precision than the weights are rounded to it."""
        return in_precision_of(self.model, super()._prepare_input(data))

    def lookahead_groups(self, count: int, size: int) -> Iterator[list[dict]]:
        """`count` groups of `size` micro-batches drawn only for this step."""
        for group in self.ahead.groups(self.state.global_step, count, size):
            yield [self._prepare_inputs(batch) for batch in received(self, group)]

    # the step

    floating_point_ops = counted_once(Trainer.floating_point_ops)

    def training_step(self, model: nn.Module, inputs: dict, num_items_in_batch=None) -> torch.Tensor:
        """At the last micro-batch of a group: look ahead, then the real gradient of the whole group.

        Returns:
            the loss of the group, (); zero for the micro-batches before the last.
        """
        if not self.accelerator.sync_gradients:
            return torch.zeros((), device=self.args.device)
        training_mode(model, self.model)
        group = [self._prepare_inputs(batch) for batch in self.group]
        if self.context is None:
            self.context = context_of(self)
        watchers = watchers_of(self, group[0])
        self.step = step = Step(self.context, model, group, self.state.global_step, watchers)
        try:
            step.look_ahead(self.rule)
            loss, prepared = step.gradient(group)
        except UserError:
            raise
        except (AssertionError, RuntimeError, ValueError) as error:
            explain_crop(self.accelerator.unwrap_model(self.model), group[0]["pixel_values"], error)
            raise
        step.share_buffers(step.student)  # else what is evaluated here is not what the first process saves
        for watcher in watchers:
            watcher.after(step.student, prepared[0])
        return torch.zeros((), device=self.args.device) if loss is None else loss

    @property
    def class_names(self) -> list[str]:
        """Names of the classes in the order of their ids, blanks as underscores."""
        config = self.accelerator.unwrap_model(self.model).config
        return [name.replace(" ", "_") for name in class_names(config)]

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Loss and its terms are means over the steps taken, without skipped ones; health and skipped steps are added."""
        self.journal.tell(logs, self.accelerator)
        super().log(logs, start_time)

    # evaluation

    def _get_dataloader(self, dataset, description: str, *args, **kwargs) -> DataLoader:
        """As `Trainer`; what is evaluated is normalized as the image processor says, and errors name the item."""
        dataset = following(dataset, self.normalization, f"the {description.lower()}")
        if self._collates and not isinstance(dataset, Pairs | IterableDataset):
            dataset = Evaluated(dataset, description.lower(), self._num_labels())
        return super()._get_dataloader(dataset, description, *args, **kwargs)

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Confusion counts (B,2,C,C) of student and teacher, at the size of the labels ((B,1,C,C) without a teacher)."""
        inputs = {**self._prepare_inputs(inputs)}
        if self.compute_metrics is not self._scores:
            step = partial(super().prediction_step, prediction_loss_only=prediction_loss_only, ignore_keys=ignore_keys)
            return of_any_size(step, model, inputs)
        with self.accelerator.autocast():
            given = self.networks(), inputs, self._num_labels(), look_of(self.settings)
            counts = self._scores.count(*given, goes_on=self.is_in_train)
        return None, counts, counts[0].new_zeros(len(inputs["pixel_values"]))

    def evaluation_loop(self, *args, **kwargs):
        """As `Trainer.evaluation_loop`; sharded networks are gathered, and in half precision with `*_full_eval`."""
        with evaluating(self):
            return super().evaluation_loop(*args, **kwargs)

    def networks(self) -> dict[str, nn.Module]:
        """The networks that are evaluated, by name: the student, and the teacher where there is one."""
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return {"student": student, "teacher": self.teacher.model} if self.has_teacher else {"student": student}

    def predict(self, test_dataset, ignore_keys=None, metric_key_prefix="test"):
        """Logits of the student, as `Trainer.predict`, an array of arrays where sizes differ; scores: see `evaluate`."""
        if self.compute_metrics is not self._scores:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix)
        with unscored(self) as joined:
            return joined(super().predict(test_dataset, ignore_keys, metric_key_prefix))

    # checkpoints

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The teacher as an ordinary checkpoint, the student beside it in `student/`.

        Inside `checkpoint-N/`, where `Trainer` looks for what it trains, the student is at the root and the teacher in
        `teacher/`.
        """
        processor = self.processing_class if self.args.should_save else None
        if _internal_call and output_dir is not None:  # a checkpoint
            super().save_model(output_dir, _internal_call=True)
            if self.has_teacher:
                checkpoints.save_teacher(self.accelerator, self.teacher.model, processor, output_dir)
            return
        checkpoints.save_output(self.accelerator, self.networks(), processor, output_dir or self.args.output_dir)
        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save_checkpoint(self, model, trial) -> None:
        if self.args.save_total_limit:
            self._finish_current_push()  # it may read a checkpoint that goes now
        with checkpoints.checkpoint(self, self._get_output_dir(trial=trial)):
            super()._save_checkpoint(model, trial)

    def train(self, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None):
        """Trains as `Trainer.train`.

        Raises:
            UserError: the checkpoint to resume from is incomplete, damaged, or one of another run; nothing is written.
        """
        refusals.refuse_own_loss(self)
        refusals.refuse_evaluation(self)
        if resume_from_checkpoint:
            expected = checkpoints.kind(self.settings.rule, self.networks()["student"])
            resume_from_checkpoint = checkpoints.to_resume(
                resume_from_checkpoint, self.args.output_dir, expected, self.learning_objective.remembers
            )
        self.journal, self.context = Journal(self.settings.max_nonfinite_steps), None
        with dead_workers(lambda: f"step {self.state.global_step}"):
            output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        del self.ahead  # ends its workers
        return output._replace(training_loss=output.metrics.get("train_loss", math.nan))

    def create_model_card(self, data: dict | None = None, model_name: str | None = None, **facts) -> None:
        """Write README.md, curves, per-class bars and sample pictures into the output directory; all processes call it.

        Args:
            data: `hf_fst.publishing.facts.DatasetFacts` under `labeled`, `unlabeled` and `evaluation`.
            model_name: name for people; made from model, data and rule by default.
            facts: what else `hf_fst.training.summary.facts_of` takes: recipe, overrides, license, palette, tested.
        """
        from hf_fst.training.summary import write_card  # with matplotlib and jinja, which training need not wait for

        self._card = {**self._card, **facts} | ({"data": data} if data is not None else {})
        write_card(self, **self._card, model_name=model_name)

    # the Hub

    def init_hf_repo(self, token: str | None = None, private: bool | None = None) -> None:
        """Make the repository and its branch before training, or raise a `PushError` that says why not."""
        hub_strategy.made_first(self, lambda: super(FSTTrainer, self).init_hf_repo(token, private))

    def push_to_hub(
        self, commit_message="End of training", blocking=True, token=None, revision=None, private=None, **card
    ):
        """Write model and card (`card`: what `create_model_card` takes), then publish them in one commit."""
        if self.hub_model_id is None:
            self.init_hf_repo(token, private)
        self.save_model(_internal_call=True)
        self.create_model_card(**{"hub_id": self.hub_model_id, **card})
        return hub_strategy.push_output(self, commit_message, blocking, token, revision, private)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Nothing: that checkpoint is not complete yet; `callbacks.Pushes` pushes it."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        checkpoints.load_weights(self.accelerator, self.networks(), resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        self.journal.load(checkpoint, self.args.process_index, self.args.world_size, self.args.device)
        checkpoints.load_memory(self.learning_objective, checkpoint, self.args.device)

    def _load_best_model(self) -> None:
        best, networks = self.state.best_model_checkpoint, self.networks()
        checkpoints.check(best, checkpoints.kind(self.settings.rule, networks["student"]))
        checkpoints.load_weights(self.accelerator, networks, best)
