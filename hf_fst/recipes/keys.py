"""The keys of a recipe that are not fields of `FSTConfig`: model, data, crops, evaluation, check. Documented here and
shown by `hf-fst train --help`."""

from __future__ import annotations

import ast
import functools
import importlib.util
import shutil
import textwrap
from collections.abc import Collection
from dataclasses import dataclass, field, fields
from pathlib import Path

from hf_fst.errors import UsageError, did_you_mean
from hf_fst.recipes.names import recipe_names


def _key(group: str, help: str, default=None):
    return field(default=default, metadata={"group": group, "help": help})


@dataclass
class Recipe:
    """Everything one run needs: the keys below, and `options`, the fields of `FSTConfig`. `file` is the name of the
    recipe's file, `in_library` says whether it ships with the package, `point` is the name of the point of its sweep.

    Paths are relative to the folder the command is started in, those under `defaults` to the recipe's own file.
    """

    model: str | None = _key("Model", "a name from hf_fst.models.BUILDS, a Hub id or a local directory")
    model_config: dict | None = _key(
        "Model", "configuration overrides for `model`, or with `model_type` a full configuration with random weights"
    )
    pretrained_backbone: str | bool | None = _key(
        "Model", "for a named build: Hub or timm id of backbone weights, true for the one that matches the paper's"
    )
    start_from: str | None = _key(
        "Model", "directory of a trained network to start from instead of `model`, such as runs/NAME/student"
    )
    reference_model: str | None = _key(
        "Model", "directory of the frozen network that an objective compares with; default: the network of the start"
    )
    branches: int = _key("Model", "2 makes two branches of the model; objectives cps and gct do so by themselves", 1)
    auxiliary_decoders: dict | None = _key(
        "Model", "{perturbation: number of decoders} for objective cct; default: the 30 of its authors"
    )
    trust_remote_code: bool = _key("Model", "run code that comes with the model; read it first", False)
    replace_head: bool = _key("Model", "give a pretrained model a new head where its class count differs", False)

    dataset: str | None = _key("Labeled images", "a name from hf_fst.data.DATASETS: street, camvid, folder, hub, ...")
    data_dir: str | None = _key("Labeled images", "the folder of `dataset` (for hub: its id)")
    dataset_options: dict | None = _key("Labeled images", "further options of that dataset")
    labeled: int | str | None = _key(
        "Labeled images",
        "how much of the train split is labeled: a share such as 1/8, a count, or a list file; default all",
    )
    split_seed: int = _key("Labeled images", "seed of the choice of labeled images", 0)
    id2label: str | None = _key("Labeled images", "JSON file with the class names, for folder and hub")

    unlabeled_dataset: str | None = _key(
        "Unlabeled images", "its train split is the unlabeled set; default: the rest of `dataset`"
    )
    unlabeled_data_dir: str | None = _key("Unlabeled images", "its folder; default data_dir for the same dataset")
    unlabeled_options: dict | None = _key("Unlabeled images", "further options of that dataset")
    class_map: dict | None = _key(
        "Unlabeled images",
        "{class of dataset: class, or list of classes, of the target} where these have different classes; others are "
        "ignored",
    )
    target_labeled: int | str | None = _key(
        "Unlabeled images",
        "how much of unlabeled_dataset keeps its labels and joins the labeled images, written as `labeled`",
    )
    target_labeled_share: float | None = _key(
        "Unlabeled images", "probability that a labeled draw is one of these; default: as often as any other image"
    )
    unlabeled_diagnostics: bool = _key(
        "Unlabeled images", "score the pseudo-labels where the unlabeled set has labels (never trained on)", True
    )

    resize: list[int] | None = _key(
        "Crops",
        "[height, width] into which labeled images are resized, upright ones into the reverse, keeping the ratio",
    )
    unlabeled_resize: list[int] | None = _key("Crops", "the same for unlabeled images; default `resize`")
    random_resize: list[float] | None = _key("Crops", "[low, high] of a random factor: half the time below 1")
    crop_size: int | list[int] | None = _key(
        "Crops", "side or [height, width] of the training crops; default: the size of the first labeled image"
    )
    cat_max_ratio: float = _key("Crops", "redraw a labeled crop if one class covers this share of it", 1.0)
    rare_class_sampling: bool | dict | None = _key(
        "Crops",
        "draw rare classes more often: true, or its numbers (temperature, min_pixels, min_crop_ratio, scale_by_crop)",
    )

    eval_dataset: str | None = _key(
        "Evaluation", "default: the unlabeled dataset if it has eval_split, else the labeled one"
    )
    eval_data_dir: str | None = _key("Evaluation", "its folder; default that of the same dataset above")
    eval_options: dict | None = _key("Evaluation", "further options of that dataset")
    eval_split: str | bool = _key("Evaluation", "the split evaluated while training; false for none", "validation")
    test_split: str | bool | None = _key(
        "Evaluation", "the split evaluated once at the end; default: test where it has labels, false for none"
    )
    eval_resize: list[int] | None = _key(
        "Evaluation", "as `resize`, for the evaluated images (never their labels); default `unlabeled_resize`"
    )
    eval_crop: int | None = _key(
        "Evaluation", "side of the center crop of image and label that is evaluated (semi-supervised VOC)"
    )
    eval_classes: str | list | None = _key(
        "Evaluation",
        "classes to average scores over, also for the choice of the best: names, ids, or a list such as synthia_16; "
        "default all",
    )

    check: bool = _key(
        "Check",
        "open every file before the first step, as `hf-fst check` does; repeated only for files that changed",
        True,
    )

    license: str | None = _key(
        "Model card", "license of the trained weights, as the Hub spells it: apache-2.0, mit, ..."
    )

    options: dict = field(default_factory=dict)
    file: str = "run.yaml"
    in_library: bool = False
    point: str | None = None

    @property
    def name(self) -> str:
        """The file's stem and the point of its sweep, `-` between them."""
        stem = self.file.removesuffix(".yaml").removesuffix(".yml")
        return stem if self.point is None else f"{stem}-{self.point}"

    @property
    def evaluated_size(self) -> list[int] | None:
        """[height, width] into which the evaluated images are resized, None for full size."""
        return self.eval_resize or self.unlabeled_resize or self.resize

    @property
    def command_name(self) -> str:
        """What `hf-fst train` is given on a card: the name of a library recipe, or the file without its folder."""
        return self.file.removesuffix(".yaml").replace("_", "-") if self.in_library else self.file


def own_keys() -> dict[str, object]:
    """The keys above by name, each with its default."""
    return {f.name: f.default for f in fields(Recipe) if f.metadata}


@functools.cache
def all_keys() -> tuple[str, ...]:
    """Every key of a recipe, those of `FSTConfig` read from its source: a shell that completes cannot wait for torch."""
    transformers = Path(importlib.util.find_spec("transformers").origin).parent
    names = list(own_keys())
    for file in (Path(__file__).parents[1] / "training/config.py", transformers / "training_args.py"):
        kinds = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
        lines = next(kind.body for kind in kinds if kind.name in ("FSTConfig", "TrainingArguments"))
        names += [line.target.id for line in lines if isinstance(line, ast.AnnAssign)]
    return tuple(dict.fromkeys(names))


def refuse_unknown(key: str, keys: Collection[str]) -> None:
    """Refuse a key that is not one of `keys`.

    Raises:
        UsageError: with the key that was meant, if one is close.
    """
    if key not in keys:
        hint = did_you_mean(key, keys, "`hf-fst train --help` lists the keys.")
        raise UsageError(f"There is no key {key!r} in a recipe; {hint}")


def key_table() -> str:
    """The keys of a recipe for `hf-fst train --help`, by group."""
    from hf_fst.training.config import FSTConfig, described
    from hf_fst.training.settings import options

    rows = [(f.metadata["group"], f.name, f.metadata["help"]) for f in fields(Recipe) if f.metadata]
    own = own_keys()
    rows += [(option.group, name, described(name)) for name, option in options(FSTConfig).items() if name not in own]
    width = max(len(name) for _, name, _ in rows)
    lines = ["Keys of a recipe, each also an option `--key value`:"]
    group = None
    for own, name, help in rows:
        if own != group:
            group = own
            lines += ["", f"  {group}"]
        first, *more = textwrap.wrap(help, max(40, shutil.get_terminal_size().columns - width - 6))
        lines += [f"    {name:<{width}}  {first}", *(f"    {'':<{width}}  {line}" for line in more)]
    lines += [
        "",
        "  Training",
        "    every field of transformers.TrainingArguments: learning_rate, max_steps, per_device_train_batch_size, ...",
        "",
        "  The recipe itself",
        f"    {'defaults':<{width}}  recipes to start from: names, or paths relative to this file; a later one wins",
        f"    {'sweep':<{width}}  variants; --sweep NAME takes one: KEY: [values], or TITLE: {{NAME: {{keys}}}};",
        f"    {'':<{width}}  several such lines are combined, their names joined by `-`",
        "",
        "Recipes that go by name:",
        *textwrap.wrap(
            ", ".join(recipe_names()),
            shutil.get_terminal_size().columns - 4,
            break_on_hyphens=False,
            initial_indent="  ",
            subsequent_indent="  ",
        ),
    ]
    return "\n".join(lines)
