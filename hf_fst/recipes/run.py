"""One run from a recipe: prepare, train, score, publish."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from accelerate import PartialState
from transformers import PrinterCallback, set_seed
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.utils import logging as transformers_logging

from hf_fst.errors import UsageError
from hf_fst.recipes.check import collected_notes
from hf_fst.recipes.data import build_data, scored_classes
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import to_config
from hf_fst.recipes.network import build_network, build_processor, earlier_network
from hf_fst.recipes.output import RESULTS_FILE, check_output, claimed, is_finished, refuse_other_settings
from hf_fst.recipes.progress import Progress, Stopwatch
from hf_fst.recipes.results import card_facts, publish, score, table
from hf_fst.recipes.summary import before
from hf_fst.recipes.work import Records, Work
from hf_fst.training.callbacks import PaddingNotice, Report, ShortRun, Weights
from hf_fst.training.config import FSTConfig
from hf_fst.training.pictures import Pictures
from hf_fst.training.refusals import refuse_blank_labels
from hf_fst.training.settings import resolve
from hf_fst.training.summary import facts_of, planned_steps
from hf_fst.training.trainer import FSTTrainer


def run(
    recipe: Recipe,
    *,
    overwrite: bool = False,
    resume: bool = False,
    command: str | None = None,
    overrides: dict[str, str] | None = None,
) -> dict:
    """Trains and evaluates what a recipe says.

    Args:
        recipe: see `load_recipe`.
        overwrite: replace the run in the output directory.
        resume: continue from its last complete checkpoint; a finished run is left as it is.
        command: what was typed, for `results.json`.
        overrides: what was given beside the recipe file, by key, for the model card.

    Returns:
        What `results.json` holds: command, recipe, seeds, versions, device, metrics, cost.

    Raises:
        UsageError: the recipe is wrong.
        UserError: data, model or output directory are not as it says, or another process trains there.
        PushError: with `push_to_hub`, the Hub refused; what was trained is in the output directory.
    """
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other; give one.")
    config = to_config(recipe)
    output_dir, state = Path(config.output_dir), PartialState()
    with claimed(output_dir) if state.is_main_process else contextlib.nullcontext():
        state.wait_for_everyone()  # till the first process has the directory
        if resume and is_finished(output_dir, config.report):
            refuse_other_settings(recipe, output_dir)
            results = json.loads((output_dir / RESULTS_FILE).read_text(encoding="utf-8"))
            if state.is_main_process:
                print(f"{table(results)}\nThe run in {output_dir} is finished; nothing was changed.")
            return results
        checkpoint = check_output(output_dir, overwrite, resume) or config.resume_from_checkpoint
        if checkpoint is not None:
            refuse_other_settings(recipe, Path(checkpoint).parent)
        work = prepare(recipe, config, overwrite, overrides or {})
        if state.is_main_process:
            parameters = sum(weights.numel() for weights in work.trainer.networks()["student"].parameters())
            steps = planned_steps(work.trainer, config)
            print(before(recipe, config, work.trainer.settings, parameters, work.data, work.notes, steps))
        work.trainer.train(resume_from_checkpoint=checkpoint)
        results, tested = score(work, command)
        publish(work, results, tested)
    return results


def prepare(recipe: Recipe, config: FSTConfig, overwrite: bool, overrides: dict[str, str]) -> Work:
    """Data, model and trainer of a recipe. Nothing is written but what is cached: that is left to `Records`."""
    transformers_logging.disable_progress_bar()  # a bar for every file written would hide the one for the training
    set_seed(config.seed)
    state = PartialState()
    with state.main_process_first(), collected_notes() as notes:  # it counts pixels and downloads, the others read it
        data = build_data(recipe, config, resolve(config).objective)
    notes += [] if data.report is None else data.report.refuse(config.on_bad_image == "skip")
    config.eval_classes = scored_classes(recipe, data.names)
    with state.main_process_first():
        set_seed(config.seed)
        model = build_network(recipe, data.names)
        processor = build_processor(recipe, model)
        reference = None
        if recipe.reference_model is not None:
            of = recipe.reference_model, model.config.id2label, recipe.trust_remote_code
            reference = earlier_network("reference_model", *of)
    stopwatch = Stopwatch()
    trainer = FSTTrainer(
        model=model,
        args=config,
        train_dataset=data.labeled,
        unlabeled_dataset=data.unlabeled,
        eval_dataset=data.validation,
        processing_class=processor,
        callbacks=[stopwatch],
        reference_model=reference,
    )
    for kind in (Weights, Report, Pictures):  # done below, with what only the recipe knows
        trainer.remove_callback(kind)
    trainer.add_callback(Pictures(trainer, data.palette))
    in_summary = [ShortRun, *([PaddingNotice] if data.report is not None else [])]
    for kind in (PrinterCallback, DEFAULT_PROGRESS_CALLBACK, *in_summary):
        trainer.remove_callback(kind)  # `Progress` shows the numbers of the first two
    trainer.add_callback(Progress(stopwatch))
    trainer.callback_handler.callbacks.insert(0, Records(recipe, data, overwrite))
    card = card_facts(recipe, data, trainer.hub_model_id, overrides)
    if config.report:
        facts_of(trainer, **card)  # what a card may not hold is refused here, not after the training
    if data.test is not None:
        refuse_blank_labels(data.test, "test", config.eval_classes)
    return Work(recipe, trainer, data, stopwatch, card, notes)
