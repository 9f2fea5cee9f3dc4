"""The facts of a run that its model card may state, as plain data: `fst_run.json` beside the weights.

The fields are all that a card may say. None is for a folder, a host, an account or a token, settings are taken by name
from a fixed list, and text that looks like a path or a token is refused, not cleaned.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from hf_fst.errors import MissingError, UserError
from hf_fst.hub import is_repo_id

FACTS_FILE = "fst_run.json"
Plain = bool | int | float | str | list | None

LOCAL = re.compile(r"(?:^|[\s\"'=(,:])(?:/\w|~\w*/|\.{1,2}/|[A-Za-z]:[\\/](?!/)|\\\\)|\bfile:")
TOKEN = re.compile(r"\b(?:hf|api_org)_[A-Za-z0-9]{16,}|\b(?:sk|gh[opsu]|wandb)[-_][A-Za-z0-9]{16,}")
WORD = re.compile(r"[\w.+-]*")
NAME = re.compile(r"[\w.,+() -]+")
FILE = re.compile(r"(?:examples/recipes/)?[^/\\]+")  # runs of version 0.1 name that folder


@dataclass
class DatasetFacts:
    """One dataset split as it was used.

    Args:
        name: short name, such as `street`, for datasets that are not on the Hub.
        title: display name.
        split: `train`, `validation` or `test`.
        config: the variant, such as `real` or `1/8 labeled`.
        hub_id: its id on the Hub, if it is there.
        source: URL of its home page.
        note: a sentence about its limitations.
    """

    name: str
    title: str
    split: str
    images: int
    config: str | None = None
    hub_id: str | None = None
    license: str | None = None
    source: str | None = None
    note: str | None = None


@dataclass
class Scores:
    """Scores of one model in 0..1; nan, for a class that does not occur, becomes None."""

    mean_iou: float | None
    mean_accuracy: float | None = None
    overall_accuracy: float | None = None
    per_category_iou: list[float | None] = field(default_factory=list)

    def __post_init__(self):
        self.mean_iou, self.mean_accuracy = _number(self.mean_iou), _number(self.mean_accuracy)
        self.overall_accuracy = _number(self.overall_accuracy)
        self.per_category_iou = [_number(value) for value in self.per_category_iou]

    @classmethod
    def from_metrics(cls, metrics: Mapping[str, float], model: str, classes: Sequence[str], prefix: str = "eval"):
        """Reads them from a log entry with keys such as `eval_teacher_mean_iou` and `eval_teacher_iou_road`. `prefix`
        is `eval`, or what the evaluation was called. Raises `UserError` if there is no mean IoU of that model."""
        start = f"{prefix}_{model}_"
        if f"{start}mean_iou" not in metrics:
            raise UserError(f"The metrics have no {start}mean_iou; their keys are {sorted(metrics)}.")
        return cls(
            float(metrics[f"{start}mean_iou"]),
            metrics.get(f"{start}mean_accuracy"),
            metrics.get(f"{start}overall_accuracy"),
            [metrics.get(f"{start}iou_{name}") for name in classes],
        )


@dataclass
class Evaluation:
    """Student and teacher on one split, with `weights` from the `best` checkpoint or after the `last` step."""

    weights: str
    step: int
    dataset: DatasetFacts
    student: Scores
    teacher: Scores


@dataclass
class Cost:
    """What the run took.

    Args:
        hardware: of each process.
        train_seconds: wall-clock time of training, evaluations included.
        images_per_second: labeled and unlabeled images of real steps, over that time.
        peak_memory_bytes: the most memory that one process used.
        memory_of: the kind of memory, `GPU` or `process`.
    """

    hardware: str
    train_seconds: float
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    memory_of: str = "process"
    processes: int = 1


@dataclass
class Comparison:
    """Another run that was evaluated on the same data: with the weights it kept, and the command that reproduces it."""

    name: str
    rule: str
    steps: int
    evaluations: list[Evaluation]
    command: str | None = None
    seed: int | None = None


@dataclass
class RunFacts:
    """Everything a card states about a run; plain data that goes through JSON unchanged.

    Args:
        rule: name of the rule, such as `fst_d`, or the class name of a user's own.
        architecture: class name of the model.
        classes: their names in the order of the labels.
        labeled, unlabeled: the training data.
        evaluations: in the order in which they are shown; those with `weights == saved` go into the metadata.
        settings: see `settings_of`; `seed` among them.
        saved: the weights in the output directory, `best` or `last`.
        palette: colors of the classes, (C, 3) in 0..255.
        model_name: display name, also in the metadata; made from model, data and rule by default.
        base_model: Hub id of the weights the run started from (see `hub_id`).
        hub_id: Hub id the result is published under.
        license: identifier of the license of the weights, as the Hub spells it.
        recipe: name of a library recipe, or the file name of another without its folder.
        overrides: what was given on the command line in addition to the recipe, by key, as typed.
        start: the commands that made the weights it started from, first to last.
        own_architecture: whether `import hf_fst.models` is needed to load it.
        foreign_code: whether it needs code that comes with the model.
        compared: other runs on the same data.
        answer: the branch of two whose logits are used, 0 or 1; None for other networks.
        adapter: whether the weights are a `peft` adapter, which needs the network of `base_model`.

    Raises:
        UserError: some text looks like a local path or a token, or numbers do not fit together.
    """

    rule: str
    objective: str
    architecture: str
    parameters: int
    classes: list[str]
    labeled: DatasetFacts
    evaluations: list[Evaluation]
    steps: int
    settings: dict[str, Plain]
    versions: dict[str, str]
    saved: str = "last"
    unlabeled: DatasetFacts | None = None
    cost: Cost | None = None
    palette: list[list[int]] | None = None
    model_name: str | None = None
    base_model: str | None = None
    hub_id: str | None = None
    license: str | None = None
    recipe: str | None = None
    overrides: dict[str, Plain] = field(default_factory=dict)
    start: list[str] = field(default_factory=list)
    own_architecture: bool = False
    compared: list[Comparison] = field(default_factory=list)
    answer: int | None = None
    adapter: bool = False
    foreign_code: bool = False

    def __post_init__(self):
        if self.model_name is None:
            short = self.architecture.removesuffix("ForSemanticSegmentation")
            self.model_name = f"{short}-{self.labeled.name}-{self.rule}"
        for where, text in _texts(dataclasses.asdict(self), "facts"):
            if LOCAL.search(text) or TOKEN.search(text):
                raise UserError(
                    f"{where} is {text!r}, which looks like a local path or a token; a card must hold neither."
                )
        for key, value in self.settings.items():
            if not (WORD.fullmatch(key) and _is_plain(value)):
                raise UserError(f"facts.settings[{key!r}] is {value!r}; give numbers and single words only.")
        for key, value in self.overrides.items():
            in_a_line = isinstance(value, str) and value.isprintable() and "`" not in value
            if not (WORD.fullmatch(key) and (in_a_line or _is_plain(value))):
                raise UserError(f"facts.overrides[{key!r}] is {value!r}; give what fits into a line of code.")
        for color in self.palette or ():
            if len(color) != 3 or not all(isinstance(part, int) and 0 <= part <= 255 for part in color):
                raise UserError(f"facts.palette has the color {color!r}; give [red, green, blue] of 0 to 255.")
        if not NAME.fullmatch(self.model_name):
            raise UserError(f"facts.model_name is {self.model_name!r}; give letters, digits, blanks and . , + ( ) -.")
        for where in ("rule", "objective", "architecture", "license"):
            if not WORD.fullmatch(getattr(self, where) or ""):
                raise UserError(f"facts.{where} is {getattr(self, where)!r}; give a single word without slashes.")
        if self.recipe is not None and not FILE.fullmatch(self.recipe):
            raise UserError(f"facts.recipe is {self.recipe!r}; give the file's name without its folder.")
        for repository in (self.base_model, self.hub_id):
            if repository is not None and not is_repo_id(repository):
                raise UserError(f"facts name the repository {repository!r}; give an id such as owner/name.")
        if self.saved not in ("best", "last") or {e.weights for e in self.evaluations} - {"best", "last"}:
            raise UserError("facts.saved and the weights of each evaluation must be 'best' or 'last'.")
        for evaluation in self.evaluations:
            for scores in (evaluation.student, evaluation.teacher):
                if len(scores.per_category_iou) not in (0, len(self.classes)):
                    raise UserError(
                        f"An evaluation has {len(scores.per_category_iou)} class values for {len(self.classes)} classes."
                    )

    @property
    def kept(self) -> list[Evaluation]:
        """The evaluations of the weights in the output directory."""
        return [evaluation for evaluation in self.evaluations if evaluation.weights == self.saved]

    def save(self, directory: str | Path) -> Path:
        """Writes `fst_run.json` into a directory and returns its path."""
        path = Path(directory) / FACTS_FILE
        text = json.dumps(dataclasses.asdict(self), indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, directory: str | Path) -> RunFacts:
        """Reads `fst_run.json` from a directory. Raises `MissingError` if there is none, `UserError` for another
        file."""
        path = Path(directory) / FACTS_FILE
        if not path.is_file():
            raise MissingError(f"{directory} has no {FACTS_FILE}; give the output directory of a finished run.")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            kinds = {"rule": str, "objective": str, "architecture": str, "classes": list, "steps": int}
            for name, kind in kinds.items():
                if not isinstance(content[name], kind):
                    raise TypeError(f"{name} is {content[name]!r}")
            content["labeled"] = DatasetFacts(**content["labeled"])
            content["unlabeled"] = content["unlabeled"] and DatasetFacts(**content["unlabeled"])
            content["cost"] = content["cost"] and Cost(**content["cost"])
            content["evaluations"] = _evaluations(content["evaluations"])
            content["compared"] = [
                Comparison(**other | {"evaluations": _evaluations(other["evaluations"])})
                for other in content.get("compared", [])
            ]
            return cls(**content)
        except UserError:
            raise
        except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path} does not hold the facts of a run ({type(error).__name__}: {error}); restore it, or delete it "
                "and do without a card."
            ) from error


def _evaluations(content: list[dict]) -> list[Evaluation]:
    return [
        Evaluation(
            **evaluation
            | {"dataset": DatasetFacts(**evaluation["dataset"])}
            | {model: Scores(**evaluation[model]) for model in ("student", "teacher")}
        )
        for evaluation in content
    ]


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


def _is_plain(value: Plain) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, str):
        return WORD.fullmatch(value) is not None
    return value is None or isinstance(value, (bool, int)) or (isinstance(value, float) and math.isfinite(value))


def _texts(value, where: str) -> Iterable[tuple[str, str]]:
    """Every text in nested dicts and lists, keys included, with its place."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield where, key
            yield from _texts(item, f"{where}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _texts(item, f"{where}[{index}]")


def settings_of(settings: Mapping[str, object]) -> dict[str, Plain]:
    """The settings that a card may show: those that are set to numbers, single words, or lists of them."""
    shown = {key: value for key, value in settings.items() if value is not None and _is_plain(value)}
    if shown.get("max_steps", 0) > 0:
        shown.pop("num_train_epochs", None)  # which max_steps overrides
    return shown


def hub_id(name: str | None) -> str | None:
    """`name` if it can be an id on the Hub and is not a local folder, else None."""
    return name if name and is_repo_id(name) and not (Path(name).exists() or LOCAL.search(name)) else None
