"""What a trainer publishes and when: before training, at checkpoints (`hub_strategy`), at the end."""

from __future__ import annotations

from concurrent.futures import Future
from pathlib import Path

from huggingface_hub import CommitInfo
from transformers.trainer_utils import HubStrategy
from transformers.utils import logging
from transformers.utils.hub import PushInProgress, hf_api

from hf_fst.errors import PushError
from hf_fst.publishing.push import checkpoint_files, command, failures_as_sentences, push

logger = logging.get_logger(__name__)


def made_first(trainer, make) -> None:
    """Make the repository and the branch before anything is trained, so that a refusal costs no training.

    Args:
        trainer: an `FSTTrainer`.
        make: what makes the repository and sets `trainer.hub_model_id`.

    Raises:
        PushError: the Hub refuses, or cannot be reached.
    """
    args = trainer.args
    repo_id = args.hub_model_id or Path(args.output_dir).absolute().name
    what = f"{repo_id} cannot be pushed to", "then push again"
    if args.push_to_hub:  # else the call of `push_to_hub` after the training makes it
        what = f"Nothing was trained, since {what[0]}", "then start again"
    with failures_as_sentences(*what):
        make()
        if trainer.is_world_process_zero() and args.hub_revision is not None:
            hf_api().create_branch(trainer.hub_model_id, branch=args.hub_revision, exist_ok=True, token=args.hub_token)


def push_output(
    trainer,
    message: str = "End of training",
    blocking: bool = True,
    token: str | None = None,
    revision: str | None = None,
    private: bool | None = None,
) -> CommitInfo | Future | None:
    """Publish the output directory as it is, on the first process. Arguments as of `Trainer.push_to_hub`.

    Raises:
        PushError: the Hub refused or could not be reached; the output directory is whole.
    """
    args = trainer.args
    if not trainer.is_world_process_zero():
        return None
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    trainer._finish_current_push()
    tell_failures(trainer)
    options = {
        "token": token or args.hub_token,
        "revision": revision or args.hub_revision,
        "private": args.hub_private_repo if private is None else private,
        "message": message,
    }
    if blocking:
        return push(args.output_dir, trainer.hub_model_id, **options)
    return hf_api().run_as_future(push, args.output_dir, trainer.hub_model_id, **options)


def push_checkpoint(trainer, run_dir: str) -> None:
    """Publish the newest checkpoint in the background, as `hub_strategy` says, in one commit.

    The teacher stands at the root and the student in `student/`, as at the end; with `checkpoint` and `all_checkpoints`
    all that is needed to resume is in `last-checkpoint/` or `checkpoint-N/`. While a push is under way the next one is
    skipped, unless `hub_always_push`. A failure is logged as a warning, and training continues.
    """
    args, step = trainer.args, trainer.state.global_step
    if not (args.push_to_hub and trainer.is_world_process_zero()) or args.hub_strategy == HubStrategy.END:
        return
    under_way = trainer.push_in_progress is not None and not trainer.push_in_progress.is_done()
    if under_way and not args.hub_always_push:
        return
    tell_failures(trainer)
    directory = Path(run_dir, f"checkpoint-{step}")
    more = {}
    if args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        last = args.hub_strategy == HubStrategy.CHECKPOINT
        more = checkpoint_files(directory, "last-checkpoint" if last else directory.name)
    trainer.callback_handler.on_push_begin(args, trainer.state, trainer.control)
    by_hand = command(directory, trainer.hub_model_id, revision=args.hub_revision)
    job = hf_api().run_as_future(
        push,
        directory,
        trainer.hub_model_id,
        token=args.hub_token,
        revision=args.hub_revision,
        private=args.hub_private_repo,
        message=f"Training in progress, step {step}",
        more=more,
        again=f"the training continues, and `{by_hand}` tries again",
    )
    jobs: list[Future] = [*trainer.push_in_progress.jobs, job] if under_way else [job]
    trainer.push_in_progress = PushInProgress(jobs)


def tell_failures(trainer) -> None:
    """Warn of pushes in the background that failed, each once."""
    if trainer.hub_model_id is None or trainer.push_in_progress is None:
        return
    for job in trainer.push_in_progress.jobs:
        if job.done() and (error := job.exception()) is not None:
            if not isinstance(error, (PushError, ValueError, FileNotFoundError)):
                raise error
            logger.warning(str(error))
    trainer.push_in_progress.jobs = [job for job in trainer.push_in_progress.jobs if not job.done()]
