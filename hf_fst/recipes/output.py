"""The output directory of a run: what a run writes, what may be removed, and what is not recorded."""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import yaml
from filelock import FileLock, Timeout

from hf_fst.errors import UserError
from hf_fst.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from hf_fst.models.loading import STUDENT_DIR
from hf_fst.publishing.facts import FACTS_FILE, LOCAL, TOKEN
from hf_fst.publishing.push import CARD
from hf_fst.publishing.report import HISTORY_FILE
from hf_fst.recipes.keys import Recipe, own_keys
from hf_fst.recipes.load import Dumper, Loader, as_dict, load_recipe, make_recipe, parse
from hf_fst.training.checkpoints import all_checkpoints, complete_checkpoints
from hf_fst.training.config import FSTConfig
from hf_fst.training.pictures import FOLDER as PICTURES

# LOCAL_FILE says where the data is on this machine, for `hf-fst eval`, and is never published
RECIPE_FILE, LOCAL_FILE, RESULTS_FILE, LOCK_FILE = "recipe.yaml", "local.yaml", "results.json", ".hf_fst.lock"
CLASS_SAMPLING = "class_sampling.png"
# what a run leaves in its directory; nothing else is ever removed
OUR_FILES = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "*.py"),
    *(ADAPTER_CONFIG, ADAPTER_WEIGHTS),
    *("training_args.bin", "README.md", "curves.png", "class_iou.png", "samples.png", FACTS_FILE),
    *(CLASS_SAMPLING, f"{PICTURES}/step-*.png"),
    *(RESULTS_FILE, HISTORY_FILE, LOCAL_FILE, RECIPE_FILE),
)
# one of them is in every directory that a run, or `save_pretrained`, wrote
SIGNS = (RECIPE_FILE, FACTS_FILE, "config.json")
OUR_FOLDERS = (STUDENT_DIR, ".eval_results", "runs")
# keys with local paths, accounts or secrets, which are not recorded
FOLDERS = ("data_dir", "unlabeled_data_dir", "eval_data_dir")
LOCAL_KEYS = (
    *("output_dir", *FOLDERS, "resume_from_checkpoint"),
    *("hub_token", "hub_model_id", "push_to_hub", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
)


# keys that change no weight: a resumed run may change them
MAY_CHANGE = re.compile(
    r"check|license|report(_to)?|disable_tqdm|log(ging)?_.*|picture_steps|hub_.*|dataloader_.*|save_total_limit|use_cpu|ddp_.*|"
    r"per_device_eval_batch_size|eval_accumulation_steps|gradient_checkpointing.*|torch_.*|max_nonfinite_steps|skip_.*|"
    r"on_bad_image"
)


@contextlib.contextmanager
def claimed(output_dir: Path) -> Iterator[None]:
    """Holds the lock on an output directory, which is made if missing, and removed at the end if nothing came into it.
    Raises `UserError` if another process holds it, it is a file, or it cannot be written to."""
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"The output directory {output_dir} is a file; give another output_dir.")
    made = [folder for folder in (output_dir, *output_dir.parents) if not folder.exists()]
    lock = FileLock(output_dir / LOCK_FILE, timeout=0)
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(
            f"Another process is training into {output_dir}; wait for its end, or give another output_dir."
        ) from error
    except OSError as error:
        raise UserError(
            f"The output directory {output_dir} cannot be written to ({error.strerror or error}); give another "
            "output_dir."
        ) from error
    try:
        yield
    finally:
        (output_dir / LOCK_FILE).unlink(missing_ok=True)  # while it is held: else it could be another process's
        lock.release()
        with contextlib.suppress(OSError):  # not empty
            for folder in made:
                folder.rmdir()


def check_output(output_dir: Path, overwrite: bool, resume: bool) -> str | None:
    """The checkpoint to resume from. Raises `UserError` for a directory that must not be written to."""
    if resume:
        complete = complete_checkpoints(output_dir)
        if not complete:
            raise UserError(f"{output_dir} holds no complete checkpoint to resume from; start it without --resume.")
        return str(complete[-1])
    # of several processes the first makes it, perhaps not yet
    there = {path.name for path in output_dir.iterdir()} - {LOCK_FILE} if output_dir.is_dir() else set()
    if there and not overwrite:
        raise UserError(
            f"The output directory {output_dir} is not empty; give another output_dir, --resume to continue its run, "
            "or --overwrite to replace it."
        )
    if there and not any((output_dir / name).is_file() for name in SIGNS):
        raise UserError(
            f"The output directory {output_dir} is not empty and holds no run (it has no {RECIPE_FILE}), so --overwrite "
            "could remove other files; give another output_dir."
        )
    return None


def is_finished(output_dir: Path, report: bool) -> bool:
    """Whether a run wrote everything that it writes at its end."""
    return all((output_dir / name).is_file() for name in (RESULTS_FILE, *([CARD] * report)))


def refuse_other_settings(recipe: Recipe, directory: Path) -> None:
    """Raises `UserError` if settings that change the weights differ from those of the run in `directory`, which is to
    be resumed: recipe, results and card describe one run. A run started from Python has no recipe and is not
    checked."""
    if not (directory / RECIPE_FILE).is_file():
        return
    defaults = own_keys() | {field.name: field.default for field in fields(FSTConfig)}
    before, now = (
        defaults | shareable(as_dict(make_recipe(yaml.load(yaml.dump(values, Dumper=Dumper), Loader))))
        for values in (as_dict(load_recipe(directory / RECIPE_FILE)), as_dict(recipe))
    )
    differ = [key for key in now if now[key] != before.get(key) and not MAY_CHANGE.fullmatch(key)]
    if differ:
        shown = ", ".join(f"{key} {_shown(before.get(key))} (now {_shown(now[key])})" for key in differ)
        raise UserError(
            f"The run in {directory} has {shown}; resume it with the settings of its {RECIPE_FILE}, or start another run "
            f"from its weights: --model {directory} and another output_dir."
        )


def _shown(value: object) -> str:
    text = "none" if value is None else yaml.dump(value, Dumper=Dumper, default_flow_style=True)
    return text.removesuffix("...\n").strip()


def remove_run(output_dir: Path) -> None:
    """Removes what a run wrote, and nothing else; the recipe, which shows that it was a run, last."""
    for path in [*all_checkpoints(output_dir), *(output_dir / name for name in OUR_FOLDERS)]:
        if path.is_dir():
            shutil.rmtree(path)
    for pattern in OUR_FILES:
        for path in output_dir.glob(pattern):
            path.unlink()


def shareable(values: dict[str, object]) -> dict[str, object]:
    """A recipe without what belongs to this machine: folders and secrets are left out, paths that lead out of the
    project are cut to names."""

    def clean(value):
        if isinstance(value, dict):
            return {key: clean(item) for key, item in value.items()}
        if isinstance(value, list):
            return [clean(item) for item in value]
        if isinstance(value, str):
            value = re.split(r"[\\/]", value.rstrip("\\/"))[-1] if LOCAL.match(value) else value
            return TOKEN.sub("TOKEN", value)
        return value

    return {key: clean(value) for key, value in values.items() if key not in LOCAL_KEYS}


def as_typed(overrides: dict[str, str]) -> dict[str, str]:
    """Values by key as they were typed on the command line, without what `shareable` leaves out or cuts."""
    typed = {}
    for key, text in overrides.items():
        value = parse(text, object)
        for clean in shareable({key: value}).values():
            typed[key] = text if clean == value else clean if isinstance(clean, str) else _shown(clean)
    return typed


def local_keys(values: dict[str, object]) -> dict[str, object]:
    """The keys of a recipe that say where its data is on this machine, with absolute paths."""

    def rooted(value, is_path=False):
        if isinstance(value, dict):
            return {key: rooted(item) for key, item in value.items()}
        if isinstance(value, str) and (is_path or "/" in value) and Path(value).expanduser().exists():
            return str(Path(value).expanduser().absolute())
        return value

    paths = (*FOLDERS, "id2label", "labeled", "target_labeled")
    found = {key: rooted(value, key in paths) for key, value in values.items() if key in own_keys()}
    return {key: value for key, value in found.items() if key in FOLDERS or value != shareable(values).get(key)}
