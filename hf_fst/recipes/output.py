"""The output directory of a run: what a run leaves there, what may be removed, what is not written down."""

from __future__ import annotations

import json
import math
import re
import shutil
from pathlib import Path

from hf_fst.errors import UsageError, UserError
from hf_fst.models.loading import STUDENT_DIR
from hf_fst.publishing.facts import FACTS_FILE, LOCAL, TOKEN
from hf_fst.publishing.report import HISTORY_FILE
from hf_fst.training.checkpoints import all_checkpoints, complete_checkpoints
from hf_fst.training.pictures import FOLDER as PICTURES

RECIPE_FILE, RESULTS_FILE = "recipe.yaml", "results.json"
CLASS_SAMPLING = "class_sampling.png"
# what a run leaves in its directory; nothing else is ever removed
OUR_FILES = (
    *("config.json", "model*.safetensors", "model.safetensors.index.json", "preprocessor_config.json", "*.py"),
    *("training_args.bin", "README.md", "curves.png", "class_iou.png", "samples.png", FACTS_FILE),
    *(CLASS_SAMPLING, f"{PICTURES}/step-*.png"),
    *(RESULTS_FILE, HISTORY_FILE, RECIPE_FILE),
)
# one of them is in every directory that a run, or `save_pretrained`, wrote
SIGNS = (RECIPE_FILE, FACTS_FILE, "config.json")
OUR_FOLDERS = (STUDENT_DIR, ".eval_results", "runs")
# keys that say where things lie on this machine, whose they are, or hold a secret; they are not written down
LOCAL_KEYS = (
    *("output_dir", "data_dir", "unlabeled_data_dir", "eval_data_dir", "resume_from_checkpoint"),
    *("hub_token", "hub_model_id", "push_to_hub", "run_name", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
)


def check_output(output_dir: Path, overwrite: bool, resume: bool) -> str | None:
    """The checkpoint to go on from. Raises `UserError` for a directory that must not be written to."""
    if overwrite and resume:
        raise UsageError("--overwrite and --resume exclude each other; give one.")
    if output_dir.exists() and not output_dir.is_dir():
        raise UserError(f"The output directory {output_dir} is a file; give another output_dir.")
    if resume:
        complete = complete_checkpoints(output_dir)
        if not complete:
            raise UserError(f"{output_dir} holds no complete checkpoint to resume from; start it without --resume.")
        return str(complete[-1])
    if output_dir.is_dir() and any(output_dir.iterdir()) and not overwrite:
        raise UserError(
            f"The output directory {output_dir} is not empty; give another output_dir, --resume to go on with its run, "
            "or --overwrite to replace it."
        )
    if overwrite and output_dir.is_dir() and any(output_dir.iterdir()):
        if not any((output_dir / name).is_file() for name in SIGNS):
            raise UserError(
                f"The output directory {output_dir} is not empty and holds no run (it has no {RECIPE_FILE}), so that "
                "--overwrite could remove what is not a run's; give another output_dir."
            )
    return None


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


def write_json(path: Path, content: object) -> None:
    """Writes JSON in which numbers that are not finite are null."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        if isinstance(value, list):
            return [plain(item) for item in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    path.write_text(json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
