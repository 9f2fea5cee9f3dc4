"""Reading recipes: YAML with `defaults` and `sweep`, overrides from the command line, and the checks of every key."""

from __future__ import annotations

import dataclasses
import enum
import functools
import itertools
import re
import typing
from collections.abc import Mapping
from pathlib import Path

import yaml

from hf_fst.data import DATASETS
from hf_fst.data.images import MAX_SIDE
from hf_fst.data.transforms import MOST_SCALED
from hf_fst.errors import UsageError, did_you_mean, in_a_line
from hf_fst.kinds import alternatives, hints_of, in_words
from hf_fst.method.objectives import OBJECTIVES, default_objective
from hf_fst.method.options import defaults_of
from hf_fst.method.rules import RULES
from hf_fst.recipes.keys import Recipe, own_keys, refuse_unknown
from hf_fst.recipes.names import LIBRARY, find_recipe
from hf_fst.training.config import FSTConfig
from hf_fst.training.limits import ALSO
from hf_fst.training.settings import resolve

# set by the trainer or by flags of the command, or not sayable in YAML
_NOT_KEYS = ("debug", "do_train", "do_eval", "do_predict", "local_rank", "parallelism_config")
# options that set how fast the teacher follows, each with those that it replaces
PACE = {
    "teacher_memory": ("teacher_momentum", "lookahead_momentum"),
    "teacher_momentum": ("teacher_memory",),
    "lookahead_momentum": ("teacher_memory",),
}


class Loader(yaml.SafeLoader):
    """YAML in which no key is given twice, as in YAML 1.2, and 1e3 is a number, 010 ten, and 1:30 and a date are text."""

    def compose_mapping_node(self, anchor: str | None) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode) and not key.tag.endswith(":merge")]
        seen: set = set()
        for key in keys:
            both = {key.value, self.construct_object(key)}  # "1" and 1 are one id, yes and true one value
            if seen & both:
                raise yaml.composer.ComposerError(f"{key.value} is given twice", key.start_mark, "keep one")
            seen |= both
        return node

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """As the base; a number is decimal unless it begins with 0x or 0b."""
        digits = node.value.lower().replace("_", "")
        return int(digits, 0 if "x" in digits or "b" in digits else 10)


class Dumper(yaml.SafeDumper):
    """Writes text in quotes where either YAML reads something else."""


_READ_OTHERWISE = tuple(f"tag:yaml.org,2002:{kind}" for kind in ("int", "float", "timestamp"))
Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _READ_OTHERWISE]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _kind, _pattern in (
    ("int", r"[-+]?(\d[\d_]*|0b[01_]+|0x[\da-fA-F_]+)$"),
    ("float", r"[-+]?((\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?|\.(inf|Inf|INF))$|\.(nan|NaN|NAN)$"),
):
    for _each in (Loader, Dumper):
        _each.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list("-+.0123456789"))
Loader.add_constructor("tag:yaml.org,2002:int", Loader.construct_yaml_int)


def load_recipe(given: str | Path, overrides: dict[str, object] | None = None, sweep: str | None = None) -> Recipe:
    """Reads a recipe, takes one point of its sweep, and applies overrides.

    Args:
        given: a name of the library, such as `street-da`, or the path of a YAML file.
        overrides: values by key; dots reach into mappings (`model_config.depths`), dashes count as underscores. Text is
            parsed as YAML.
        sweep: name or number of the point, for a recipe with `sweep`.

    Raises:
        UserError: there is no such recipe, it is not one, or a key or a value is wrong.
    """
    path = find_recipe(given)
    values = read_keys(path)
    point = None
    points = _points(values.pop("sweep", None), str(given))
    if points:
        point, chosen = _choose(points, sweep, str(given))
        values = _over(values, chosen)
    elif sweep is not None:
        raise UsageError(f"{given} has no sweep, but --sweep {sweep} asks for a point of one; leave it out.")
    hints = _hints()
    own: dict[str, object] = {}
    for key, value in (overrides or {}).items():
        head, *inner = key.replace("-", "_").split(".")
        refuse_unknown(head, hints)
        value = parse(value, hints[head]) if not inner else parse_option(inner, value)
        for part in reversed(inner):
            value = {part: value}
        own = merge(own, {head: value})
    if own.get("rule") == "supervised" and own.get("objective") in (None, "supervised"):
        values = merge(values, options_for("supervised", values))
    recipe = make_recipe(_over(values, own), path.name, point)
    recipe.in_library = path.resolve().parent == LIBRARY.resolve()
    return recipe


def make_recipe(values: dict[str, object], file: str = "run.yaml", point: str | None = None) -> Recipe:
    """Checks every key and value. Raises `UsageError` for an unknown key, a wrong type or an unknown choice."""
    hints, own = _hints(), own_keys()
    recipe = Recipe(file=file, point=point)
    for key, value in values.items():
        refuse_unknown(key, hints)
        if value is None:
            continue
        value = _typed(key, value, hints[key])
        if key in own:
            setattr(recipe, key, value)
        else:
            recipe.options[key] = value
    _check(recipe)
    recipe.options.setdefault("output_dir", f"runs/{recipe.name}")
    return recipe


def options_for(rule: str, options: Mapping[str, object], objective: object = None) -> dict[str, object]:
    """The rule as overrides of a recipe: options that only other rules have are taken out of it. `supervised` also has
    the objective of this name, unless another `objective` is given with it."""
    theirs, own, more = [*RULES.values()], [RULES[rule]], {}
    if rule == "supervised" and objective in (None, rule):
        theirs, own, more = [*theirs, *OBJECTIVES.values()], [*own, OBJECTIVES[rule]], {"objective": rule}
    known, kept = ({name for kind in kinds for name in defaults_of(kind)} for kinds in (theirs, own))
    return {"rule": rule} | dict.fromkeys(sorted((known & set(options)) - kept)) | more


def sweep_points(given: str | Path) -> list[str]:
    """The names of the points of a recipe's sweep, empty without one. Raises as `load_recipe`."""
    return list(_points(read_keys(find_recipe(given)).get("sweep"), str(given)))


def merge(base: dict, new: dict) -> dict:
    """`new` over `base`; mappings are merged key by key, other values replaced."""
    merged = dict(base)
    for key, value in new.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict) and key != "sweep"
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _over(base: dict, new: dict) -> dict:
    """A layer over those below.

    Memory and momenta of the teacher say the same, so those of the topmost layer count. A layer that names a rule takes
    out what only other rules have.
    """
    for key, others in PACE.items():
        if new.get(key) is not None:
            base = {name: value for name, value in base.items() if name not in others}
    rule = new.get("rule")
    if isinstance(rule, str) and rule in RULES:  # the objective stays for a layer above that names another rule
        base = merge(base, options_for(rule, base, new.get("objective", "that of the base")))
    return merge(base, new)


def objective_of(recipe: Recipe) -> str:
    """The name of what the student learns."""
    return recipe.options.get("objective") or default_objective(recipe.options.get("rule"))


def to_config(recipe: Recipe) -> FSTConfig:
    """The `FSTConfig` of a recipe. Raises `UsageError` where it refuses a value."""
    try:
        config = FSTConfig(**recipe.options)
        resolve(config)
    except (OSError, TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from error
    return config


def as_dict(recipe: Recipe) -> dict[str, object]:
    """The keys that differ from their defaults, as a recipe would hold them."""
    own = {key: getattr(recipe, key) for key, default in own_keys().items() if getattr(recipe, key) != default}
    return {**own, **recipe.options}


def as_text(values: dict[str, object]) -> str:
    """The keys as a file."""
    return yaml.dump(values, Dumper=Dumper, sort_keys=False, allow_unicode=True)


def read_keys(path: Path, inside: tuple[Path, ...] = ()) -> dict[str, object]:
    """A file's keys over those of its `defaults`, which are read first to last."""
    if path.resolve() in inside:
        raise UsageError(f"{path} is a default of itself; take it out of `defaults`.")
    try:
        own = yaml.load(path.read_bytes(), Loader)  # in UTF-8, or in UTF-16 with a mark
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number or a nesting beyond Python's limits
        raise UsageError(f"{path} is not YAML ({in_a_line(error)}).") from error
    if not isinstance(own, dict) or not all(isinstance(key, str) for key in own):
        raise UsageError(f"{path} is not a recipe; it must hold lines `key: value`.")
    bases = own.pop("defaults", None) or []
    if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
        raise UsageError(f"defaults in {path} is {bases!r}; give a list of recipes: names, or paths relative to it.")
    values: dict[str, object] = {}
    for base in bases:
        values = _over(values, read_keys(find_recipe(base, path.parent), (*inside, path.resolve())))
    return _over(values, own)


def _points(sweep: object, path: str) -> dict[str, dict]:
    """Every point by its name: the product of the lines of a sweep."""
    if sweep is None:
        return {}
    axes = []
    for key, values in sweep.items() if isinstance(sweep, dict) else [(None, None)]:
        if isinstance(values, dict) and values and all(isinstance(v, dict) for v in values.values()):
            axes.append([(str(name), chosen) for name, chosen in values.items()])
        elif isinstance(values, list) and values:
            axes.append([(str(value).replace("/", "_"), {key: value}) for value in values])
        else:
            raise UsageError(f"sweep in {path} is wrong; give lines KEY: [values] or TITLE: {{NAME: {{keys}}}}.")
    points = {}
    for parts in itertools.product(*axes):
        chosen: dict = {}
        for _, part in parts:
            chosen = merge(chosen, part)
        points["-".join(name for name, _ in parts)] = chosen
    return points


def _choose(points: dict[str, dict], sweep: str | None, path: str) -> tuple[str, dict]:
    names = ", ".join(points)
    if sweep is None:
        raise UsageError(
            f"{path} is a sweep of {len(points)} points; choose one with --sweep: {names}; or all with --sweep all."
        )
    if sweep in points:
        return sweep, points[sweep]
    if sweep.isdecimal() and int(sweep) < len(points):
        return list(points.items())[int(sweep)]
    hint = did_you_mean(sweep, points, f"choose one of {names}, or a number below {len(points)}.")
    raise UsageError(f"The sweep of {path} has no point {sweep!r}; {hint}")


@functools.cache
def _hints() -> dict[str, object]:
    """The type of every key."""
    own = hints_of(Recipe)
    hints = {key: own[key] for key in own_keys()}
    config = hints_of(FSTConfig)
    for item in dataclasses.fields(FSTConfig):
        if item.init and item.name not in (*_NOT_KEYS, *own):  # eval_classes of a recipe takes names too
            hints[item.name] = config[item.name]
            for kind in ALSO.get(item.name, ()):
                hints[item.name] |= kind
    return hints


def parse(value: object, hint: object) -> object:
    """Text from the command line as YAML; `a,b` as a list if one is accepted, unchanged for keys that take only text."""
    if not isinstance(value, str):
        return value
    try:
        parsed = yaml.load(value, Loader)
    except (yaml.YAMLError, ValueError, RecursionError):
        return value
    kinds = alternatives(hint)
    if isinstance(parsed, str) and "," in parsed and any(typing.get_origin(kind) is list for kind in kinds):
        return yaml.load(f"[{parsed}]", Loader)
    return value if kinds == [str] and parsed is not None else parsed


def parse_option(path: list[str], value: object) -> object:
    """`parse` for an option of a dataset, by the type that it has in all of them, or for another key of a mapping."""
    hints = [hints_of(function).get(path[0]) for function in DATASETS.values()] if len(path) == 1 else []
    kinds = {str(hint): hint for hint in hints if hint is not None}
    return parse(value, kinds.popitem()[1] if len(kinds) == 1 else typing.Any)


def _typed(key: str, value: object, hint: object) -> object:
    """The value as one of the types of its field. Raises `UsageError` if it is none of them."""
    if value == "":
        raise UsageError(f"{key} is empty; give a value, or leave it out.")
    bases = [(typing.get_origin(kind) or kind, typing.get_args(kind)) for kind in alternatives(hint)]
    for base, items in bases:
        if base in (int, float):
            if (number := _number(value, base)) is not None:
                return number
        elif isinstance(base, type) and issubclass(base, enum.Enum):
            return _choice(key, value, [str(member.value) for member in base])
        elif base is list and items and isinstance(value, list):
            return [_typed(key, item, items[0]) for item in value]
        elif isinstance(base, type) and isinstance(value, base):
            return value
    raise UsageError(f"{key} is {value!r}; give {in_words(hint)}.")


def _number(value: object, base: type) -> float | None:
    """The value as int or float, None if it is not a number. Text is accepted, and 1e3 for an integer."""
    if isinstance(value, int):
        return None if isinstance(value, bool) else value
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    if base is float:
        return number
    return int(number) if number.is_integer() else None


def _choice(key: str, value: object, choices: list[str]) -> str:
    value = "no" if value is False and "no" in choices else value  # YAML takes no for false
    if value not in choices:
        raise UsageError(f"{key} is {value!r}; {did_you_mean(str(value), choices)}")
    return value


def _check(recipe: Recipe) -> None:
    """Choices and ranges of the recipe's own keys; `FSTConfig` checks its own."""
    for key in ("dataset", "unlabeled_dataset", "eval_dataset"):
        value = getattr(recipe, key)
        if value is not None and value not in DATASETS:
            raise UsageError(f"{key} is {value!r}; {did_you_mean(value, sorted(DATASETS))}")
    sizes = dict.fromkeys(("resize", "unlabeled_resize", "eval_resize"), "[height, width]")
    for key, accepted in (sizes | {"crop_size": "a side or [height, width]", "eval_crop": "a side"}).items():
        value = getattr(recipe, key)
        sides = value if isinstance(value, list) else [value, value]
        if value is not None and (len(sides) != 2 or not 1 <= min(sides) <= max(sides) <= MAX_SIDE):
            raise UsageError(f"{key} is {value}; give {accepted} in pixels, {MAX_SIDE} at most.")
    pair = recipe.random_resize
    if pair is not None and (len(pair) != 2 or not 0 < pair[0] <= 1 <= pair[1] <= MOST_SCALED):
        raise UsageError(f"random_resize is {pair}; give [low, high] with 0 < low <= 1 <= high <= {MOST_SCALED}.")
    if recipe.branches not in (1, 2):
        raise UsageError(f"branches is {recipe.branches}; use 1 or 2.")
    if not all(type(count) is int and count > 0 for count in (recipe.auxiliary_decoders or {}).values()):
        raise UsageError(
            f"auxiliary_decoders is {recipe.auxiliary_decoders}; give {{perturbation: number}}, 1 or more."
        )
    learned = objective_of(recipe)
    if recipe.auxiliary_decoders and learned not in ("cct", "supervised"):  # the latter is the control of any recipe
        raise UsageError(
            f"auxiliary_decoders is set but the objective is {learned}; leave it out or use objective cct."
        )
    if not 0 < recipe.cat_max_ratio <= 1:
        raise UsageError(f"cat_max_ratio is {recipe.cat_max_ratio}; use a number above 0, up to 1.")
    for own, given in (recipe.class_map or {}).items():
        group = given if isinstance(given, list) else [given]
        if not group or not all(isinstance(name, str) for name in (own, *group)):
            raise UsageError(
                f"class_map has {own!r}: {given!r}, but one class or a list of classes of the target, by name, is "
                "expected for each class of dataset."
            )
    share = recipe.target_labeled_share
    if share is not None and not 0 < share < 1:
        raise UsageError(f"target_labeled_share is {share}; use a number between 0 and 1.")
    if share is not None and recipe.target_labeled is None:
        raise UsageError("target_labeled_share is set without target_labeled; say how much of the target has labels.")
    if recipe.split_seed < 0:
        raise UsageError(f"split_seed is {recipe.split_seed}; use 0 or more.")
    for key in ("eval_split", "test_split"):
        if getattr(recipe, key) is True:
            raise UsageError(f"{key} is true; give the name of a split, or false for none.")
