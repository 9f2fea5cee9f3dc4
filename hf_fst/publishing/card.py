"""The model card of a run: README.md with the Hub's metadata, made from `RunFacts` and nothing else."""

from __future__ import annotations

import html
import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import jinja2
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers import CONFIG_MAPPING

from hf_fst.drawing.tables import class_rows, duration, markdown_table, percent
from hf_fst.errors import MissingError, printable
from hf_fst.evaluation.results import eval_results, slug
from hf_fst.models.adapters import ADAPTER_CONFIG, base_of
from hf_fst.publishing.facts import FACTS_FILE, LOCAL, Comparison, DatasetFacts, Evaluation, RunFacts
from hf_fst.publishing.wording import LOOKAHEAD_RULES, OBJECTIVES, RULES, SYMBOLS

TEMPLATE = Path(__file__).with_name("model_card.md.jinja")
BARE_TEMPLATE = TEMPLATE.with_name("bare_card.md.jinja")
FIGURES = ("curves.png", "class_iou.png", "samples.png")


def make_card(facts: RunFacts, figures: tuple[str, ...] = FIGURES) -> ModelCard:
    """The card of a run. `figures` are file names, out of `FIGURES`, of the pictures that lie beside it."""
    about, facts = metadata(facts), _for_readers(facts)
    rule, equation = RULES.get(facts.rule, (f"a rule of its own, `{facts.rule}`", ""))
    saved = facts.kept
    text = _render(
        TEMPLATE,
        facts=facts,
        own_architecture=facts.own_architecture,
        foreign_code=facts.foreign_code,
        hub_id=facts.hub_id,
        adapter=facts.adapter,
        base_model=facts.base_model,
        rule=rule,
        equation=equation,
        symbols=", ".join(
            f"{s} = {_value(facts.settings[key])}" for s, key in SYMBOLS.items() if key in facts.settings
        ),
        objective=OBJECTIVES.get(facts.objective, f"an objective of its own, `{facts.objective}`"),
        lookahead_rules=LOOKAHEAD_RULES,
        learns_from_teacher=facts.rule != "supervised",
        saved=saved,
        results=results_table(facts) if facts.evaluations else "",
        classes=class_table(facts, saved[-1]) if saved and saved[-1].teacher.per_category_iou else "",
        comparison=comparison_table(facts),
        verdict=verdict(facts),
        command="\n".join([*facts.start, command(facts)]) if facts.recipe else None,
        datasets=_used_datasets(facts),
        figures=figures,
    )
    return ModelCard(f"---\n{about.to_yaml()}\n---\n\n{text}")


def inert(text: str | None) -> str | None:
    """Text from others, such as a class name, as Markdown that only shows it, in one line."""
    if text is None:
        return None
    text = html.escape(" ".join(printable(text).split()), quote=False).replace("://", "&#58;//")
    return re.sub(r"[`|*\[\]]", lambda found: f"&#{ord(found[0])};", text)


def _for_readers(facts: RunFacts) -> RunFacts:
    """The facts with names of classes and data made `inert`; the metadata keeps them unchanged."""

    def data(about: DatasetFacts | None) -> DatasetFacts | None:
        names = ("title", "config", "split", "license", "note")
        return about and replace(about, **{name: inert(getattr(about, name)) for name in names})

    def evaluated(evaluations: list[Evaluation]) -> list[Evaluation]:
        return [replace(evaluation, dataset=data(evaluation.dataset)) for evaluation in evaluations]

    return replace(
        facts,
        classes=[inert(name) for name in facts.classes],
        labeled=data(facts.labeled),
        unlabeled=data(facts.unlabeled),
        evaluations=evaluated(facts.evaluations),
        compared=[
            replace(other, name=inert(other.name), evaluations=evaluated(other.evaluations))
            for other in facts.compared
        ],
    )


def bare_card(directory: str | Path, hub_id: str, has_student: bool = False) -> ModelCard:
    """The card of a model without the facts of a run, such as a converted checkpoint: how to use it, and no results.

    `directory` holds its config.json; `has_student` says whether `student/` is published with it.
    """
    path, adapter = Path(directory, "config.json"), Path(directory, ADAPTER_CONFIG)
    if not path.is_file():
        raise MissingError(
            f"{path} is missing, which the adapter beside it needs; save the configuration of its network there."
        )
    config = json.loads(path.read_text(encoding="utf-8"))
    base = base_of(adapter, str(directory)) if adapter.is_file() else None
    name = hub_id.rpartition("/")[2]
    data = ModelCardData(
        library_name="peft" if base else "transformers",
        pipeline_tag="image-segmentation",
        base_model=base,
        tags=["semantic-segmentation", "hf_fst"],
        model_name=name,
    )
    text = _render(
        BARE_TEMPLATE,
        name=name,
        hub_id=hub_id,
        has_student=has_student,
        adapter=base is not None,
        base_model=base,
        architecture=inert((config.get("architectures") or [config["model_type"]])[0]),
        own_architecture="auto_map" in config and config.get("model_type") in CONFIG_MAPPING,
        foreign_code="auto_map" in config and config.get("model_type") not in CONFIG_MAPPING,
        answer=config["answer"] if config["model_type"] == "two-branches" else None,
        # a config leaves out the names of two classes that nobody named
        classes=[inert(name) for name in config.get("id2label", {0: "LABEL_0", 1: "LABEL_1"}).values()],
    )
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}")


def _render(template: Path, **values) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(template.parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"percent": percent, "duration": duration, "value": _value}
    return re.sub(r"\n{3,}", "\n\n", environment.get_template(template.name).render(**values))


def write_card(directory: str | Path, facts: RunFacts) -> Path:
    """Writes README.md, whose path it returns, and `.eval_results/*.yaml` for evaluation data on the Hub, into a
    directory.

    The card shows those of `FIGURES` that are in the directory.
    """
    directory = Path(directory)
    card = make_card(facts, tuple(name for name in FIGURES if (directory / name).is_file()))
    path = directory / "README.md"
    card.save(path)
    for name, content in eval_results_files(facts).items():
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(content, encoding="utf-8")
    return path


def metadata(facts: RunFacts) -> ModelCardData:
    """The card's YAML block, with the teacher's mIoU (0..1) by dataset, config and split as `model-index`."""
    datasets = {data.hub_id for data in (facts.labeled, facts.unlabeled) if data and data.hub_id}
    tags = ["semantic-segmentation", "hf_fst", facts.rule]
    if facts.rule != "supervised":
        tags.insert(1, "self-training")
    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="Semantic segmentation",
            dataset_type=evaluation.dataset.hub_id or evaluation.dataset.name,
            dataset_name=evaluation.dataset.title,
            dataset_config=evaluation.dataset.config,
            dataset_split=evaluation.dataset.split,
            metric_type="mean_iou",
            metric_name="mIoU" if facts.rule == "supervised" else "mIoU of the teacher",
            metric_value=round(evaluation.teacher.mean_iou, 4),
        )
        for evaluation in facts.kept
    ]
    return ModelCardData(
        library_name="peft" if facts.adapter else "transformers",
        pipeline_tag="image-segmentation",
        license=facts.license,
        base_model=facts.base_model,
        datasets=sorted(datasets) or None,
        metrics=["mean_iou"],
        tags=tags,
        model_name=facts.model_name,
        eval_results=results or None,
    )


def eval_results_files(facts: RunFacts) -> dict[str, str]:
    """Contents of the Hub's `.eval_results/*.yaml` by file name; only for data with a Hub id."""
    files = {}
    for evaluation in facts.kept:
        data = evaluation.dataset
        if data.hub_id:
            notes = f"mIoU of the {'student' if facts.rule == 'supervised' else 'teacher'}, split {data.split}"
            content = eval_results(data.hub_id, data.config or "default", round(evaluation.teacher.mean_iou, 4), notes)
            files[f".eval_results/{slug(data.name, data.config, data.split)}.yaml"] = content
    return files


def results_table(facts: RunFacts) -> str:
    """Markdown: last against best weights, student against teacher, the saved ones marked; one network if supervised."""
    supervised = facts.rule == "supervised"
    rows = [
        [
            f"{evaluation.weights}{' (saved here)' if evaluation.weights == facts.saved else ''}",
            _dataset_name(evaluation),
            str(evaluation.step),
            *([] if supervised else [percent(evaluation.student.mean_iou)]),
            percent(evaluation.teacher.mean_iou),
            percent(evaluation.teacher.mean_accuracy),
            percent(evaluation.teacher.overall_accuracy),
        ]
        for evaluation in facts.evaluations
    ]
    columns = ["mIoU", "mean acc.", "pixel acc."]
    if not supervised:
        columns = ["student mIoU", *(f"teacher {column}" for column in columns)]
    return markdown_table(["weights", "data", "step", *columns], rows, left=2)


def class_table(facts: RunFacts, evaluation: Evaluation) -> str:
    """Markdown: IoU of each class, student against teacher, or of the one network under `supervised`."""
    student, teacher = evaluation.student.per_category_iou, evaluation.teacher.per_category_iou
    columns, rows = class_rows(
        facts.classes, student or [None] * len(teacher), teacher, facts.settings.get("eval_classes")
    )
    if facts.rule == "supervised":
        columns, rows = ["class", "IoU (%)"], [[name, teacher] for name, _, teacher, _ in rows]
    return markdown_table(columns, rows)


def as_comparison(facts: RunFacts) -> Comparison:
    """A run as the card of another shows it."""
    seed = facts.settings.get("seed")
    return Comparison(facts.model_name, facts.rule, facts.steps, facts.kept, command(facts), seed)


def _side_by_side(facts: RunFacts) -> list[tuple[Comparison, Evaluation, Evaluation]]:
    """Other runs with their evaluation and this run's on the same data."""
    own = {_dataset_name(evaluation): evaluation for evaluation in facts.kept}
    return [
        (other, evaluation, own[_dataset_name(evaluation)])
        for other in facts.compared
        for evaluation in other.evaluations
        if _dataset_name(evaluation) in own
    ]


def left_out(facts: RunFacts) -> list[str]:
    """A sentence for each run that is not in the table because it was not evaluated on the same images."""
    shown = [other for other, *_ in _side_by_side(facts)]
    own = ", ".join(dict.fromkeys(_dataset_name(e) for e in facts.evaluations)) or "nothing"
    sentences = []
    for other in facts.compared:
        if other not in shown:
            theirs = ", ".join(dict.fromkeys(map(_dataset_name, other.evaluations))) or "nothing"
            sentences.append(f"{other.name} is not in the table: it was evaluated on {theirs}, this run on {own}.")
    return sentences


def comparison_table(facts: RunFacts) -> str:
    """Markdown: this run and those it is compared with, by data; empty without any."""
    pairs = _side_by_side(facts)
    rows = []
    for name, evaluation in {_dataset_name(mine): mine for _, _, mine in pairs}.items():
        rows.append([f"**{facts.model_name}**", facts.rule, name, *_networks(facts.rule, evaluation)])
        rows += [
            [other.name, other.rule, name, *_networks(other.rule, theirs)]
            for other, theirs, _ in pairs
            if _dataset_name(theirs) == name
        ]
    return markdown_table(["run", "rule", "data", "student mIoU", "teacher mIoU"], rows, left=3) if rows else ""


def verdict(facts: RunFacts) -> str:
    """Sentences: by how many points the weights kept here are above or below those of the others, on the last data."""
    sentences = []
    for other, theirs, mine in _side_by_side(facts):
        if mine not in facts.kept[-1:]:  # what the weights were picked on comes first, and says less
            continue
        points = 100 * (mine.teacher.mean_iou - theirs.teacher.mean_iou)
        relation = f"{abs(points):.1f} points {'above' if points > 0 else '**below**'}"
        relation = "level with" if abs(points) < 0.05 else relation
        sentences.append(f"On {_dataset_name(mine)} it is {relation} {other.name}.")
    if sentences:
        sentences.append("Each is one run with one seed; a point or two can be the seed alone.")
    return " ".join(sentences)


def _networks(rule: str, evaluation: Evaluation) -> list[str]:
    """mIoU of student and teacher; under `supervised` there is no teacher."""
    teacher = "–" if rule == "supervised" else percent(evaluation.teacher.mean_iou)
    return [percent(evaluation.student.mean_iou), teacher]


def command(facts: RunFacts) -> str | None:
    """The command that reproduces the run: recipe and overrides. None for a run started from Python."""
    if facts.recipe is None:
        return None
    words = []
    for key, value in facts.overrides.items():
        values = value if isinstance(value, (list, tuple)) else [value]
        words += [f"--{key}", *(shlex.quote(_value(item)) for item in values)]
    several = facts.cost is not None and facts.cost.processes > 1
    launch = f"accelerate launch --num_processes {facts.cost.processes} -m hf_fst.cli" if several else "hf-fst"
    return " ".join([launch, "train", shlex.quote(facts.recipe), *words])


def commands_before(*models: str | None) -> list[str]:
    """The commands that made the weights a run starts from, first to last; none if no run on this machine did.

    `models` are the directories of these runs; Hub ids, names of builds and None are skipped.
    """
    commands = {}
    for model in models:
        if model is None or not Path(model, FACTS_FILE).is_file():
            continue
        facts = RunFacts.load(model)
        name = re.split(r"[\\/]", model.rstrip("\\/"))[-1] if LOCAL.match(model) else model
        if (made_by := command(facts)) is not None:
            commands |= dict.fromkeys([*facts.start, f"{made_by} --output_dir {shlex.quote(name)}"])
    return list(commands)


def _value(value) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _dataset_name(evaluation: Evaluation) -> str:
    data = evaluation.dataset
    return ", ".join(filter(None, (data.title, data.config, data.split)))


def _used_datasets(facts: RunFacts) -> list:
    """Each dataset once, by name."""
    used = [facts.labeled, facts.unlabeled, *(evaluation.dataset for evaluation in facts.evaluations)]
    return list({data.name: data for data in reversed(used) if data}.values())[::-1]
