"""Which rule pays off on your data: short runs of each with paired seeds, and what they show."""

from __future__ import annotations

import json
import math
import shlex
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hf_fst.drawing.plots import curves_over_time
from hf_fst.drawing.tables import columns_of_terminal, interval, text_table
from hf_fst.errors import RunError, UserError, refuse_unwritable
from hf_fst.evaluation.counting import LABEL_FREE, is_label_free
from hf_fst.evaluation.machine import versions
from hf_fst.method.options import TABLE, defaults_of, make
from hf_fst.method.rules import RULES
from hf_fst.prediction.files import write_json
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import options_for, to_config
from hf_fst.recipes.trials import Trial, curve_of, paired, run_trials
from hf_fst.training.config import FSTConfig
from hf_fst.training.settings import resolve, virtual_steps

PROBE_STEPS, LEAST_STEPS, EVALUATIONS = 8, 8, 4
#: of `lookahead_every`: level with 1 at a third of its price (docs/results.md), so that every rule gets more steps
EVERY = 12
#: of the time that is left after the first steps, which are quicker than those of a long run
RESERVED = 0.7
PLAN, RESULT, PLOT = "plan.json", "comparison.json", "comparison.png"


def compare(
    given: str,
    recipe: Recipe,
    words: Sequence[str],
    rules: Sequence[str],
    seeds: Sequence[int],
    budget: float,
    equal: str,
    folder: Path,
    jobs: int,
) -> dict:
    """Trains each rule with each seed within a time limit, and says which one to take.

    A few steps tell what a step costs here; the runs then get as many steps as fit. A comparison that was interrupted
    continues where it was.

    Args:
        given: name or path of the recipe.
        recipe: it, with the overrides in `words` applied.
        words: overrides, as typed.
        rules: names of rules.
        seeds: of the runs; the rules are compared seed by seed.
        budget: seconds for all.
        equal: `"steps"`, or `"time"`: cheaper rules get more steps.
        folder: where runs, table and plot go.
        jobs: runs at a time.

    Returns:
        What `comparison.json` holds.

    Raises:
        UserError: there are no validation images, or the folder is another comparison's.
        RunError: the time does not suffice, or a run failed.
    """
    begun = time.monotonic()
    unlabeled = recipe.eval_split is False
    if unlabeled and not is_label_free(recipe.options.get("metric_for_best_model")):
        raise UserError(
            "eval_split is false, but a comparison needs validation images; give a split that has labels, or compare "
            f"without them: --metric_for_best_model {LABEL_FREE}."
        )
    own = {rule: _options(rule, recipe.options) for rule in rules}
    configs = {rule: to_config(replace(recipe, options=recipe.options | own[rule])) for rule in rules}
    costs = {rule: _cost(rule, recipe.options | own[rule]) for rule in rules}
    plan = {"recipe": given, "words": list(words), "rules": list(rules), "seeds": list(seeds), "equal": equal}
    kept = _plan(folder, plan)
    base = {"logging_steps": 10, "save_strategy": "no", "load_best_model_at_end": False, "test_split": False}
    base |= {"report": False, "eval_strategy": "steps", "push_to_hub": False}

    def trial(rule: str, seed: int, steps: int, name: str | None = None, start: float = 0) -> Trial:
        evaluations = {"max_steps": steps, "eval_steps": math.ceil(steps / EVALUATIONS)}
        options = base | evaluations | _scaled(configs[rule], rule, steps) | own[rule]
        return Trial(name or rule, seed, options, start + costs[rule] * steps)

    if kept is None:
        cheapest = min(rules, key=costs.__getitem__)
        probe = trial(cheapest, seeds[0], PROBE_STEPS, "probe")
        found = run_trials(given, [probe], folder, words, 1, begun + budget)
        if probe not in found:
            log = (folder / f"{probe.name}.log").read_text(encoding="utf-8", errors="replace").strip()
            raise RunError(
                f"The first few steps did not finish in {budget:.0f} s; the last line of {probe.name}.log in {folder} "
                f"is: {log.rpartition(chr(10))[2][-300:] or 'empty'}"
            )
        took = time.monotonic() - begun
        second = found[probe]["seconds_per_step"] / costs[cheapest]
        once = max(0.0, took - PROBE_STEPS * costs[cheapest] * second)  # start, data, evaluation
        left = RESERVED * (budget - took) * jobs - once * len(rules) * len(seeds)
        share = sum(costs.values()) if equal == "steps" else len(rules) * max(costs.values())
        steps = int(left / (second * share * len(seeds)))
        if steps < LEAST_STEPS:
            runs = once * len(rules) + 2 * LEAST_STEPS * second * share  # twice the least: 8 steps tell nothing
            needed = took + runs * len(seeds) / jobs / RESERVED
            raise RunError(
                f"{budget:.0f} s are too few for {len(rules)} rules and {len(seeds)} seed{'s' * (len(seeds) > 1)}: a run "
                f"takes {once:.0f} s to start and evaluate, and a step of a mean teacher {second:.2g} s; give --budget "
                f"{math.ceil(needed / 60)}m or more, or fewer seeds."
            )
        most = configs[cheapest].max_steps
        steps = min(steps, most) if most > 0 else steps
        kept = plan | {"steps": steps, "start": once / second}  # the latter in steps of a mean teacher
        write_json(folder / PLAN, kept)
    factor = {rule: max(costs.values()) / costs[rule] if equal == "time" else 1 for rule in rules}
    steps = {rule: round(kept["steps"] * factor[rule]) for rule in rules}
    every = {rule: (recipe.options | own[rule]).get("lookahead_every") for rule in rules}
    print(
        ", ".join(f"{rule}{f' with M = {m}' if m else ''}: {steps[rule]} steps" for rule, m in every.items())
        + f", {len(seeds)} seed{'s' * (len(seeds) > 1)} each"
    )
    trials = [trial(rule, seed, steps[rule], start=kept["start"]) for seed in seeds for rule in rules]
    found = run_trials(given, trials, folder, words, jobs, begun + budget)
    runs = {rule: {t.seed: results for t, results in found.items() if t.method == rule} for rule in rules}
    shared = [seed for seed in seeds if all(seed in runs[rule] for rule in rules)]
    if not shared:
        needed = 1.2 * (time.monotonic() - begun) * (len(trials) - len(found)) / max(1, len(found))
        raise RunError(
            f"No seed finished in time with every rule ({len(found)} of {len(trials)} runs did); the logs are in "
            f"{folder}. Give the same command with --budget {math.ceil(needed / 60)}m to continue, or fewer rules."
        )
    scores = {rule: {seed: curve_of(runs[rule][seed])[-1][1] for seed in shared} for rule in rules}
    curves = {
        rule: {
            str(seed): [(step, step * results["seconds_per_step"], miou) for step, miou in curve_of(results)]
            for seed, results in runs[rule].items()
        }
        for rule in rules
    }
    curves_over_time(curves, folder / PLOT)
    best, sentence = verdict(scores, costs)
    command = shlex.join(["hf-fst", "train", given, *_words(words, own[best])])
    scored = scores, costs, steps, LABEL_FREE if unlabeled else "mIoU"
    result = kept | {
        "steps": steps,
        "scores": scores,
        "seconds_per_step": {
            rule: statistics.median(results["seconds_per_step"] for results in runs[rule].values()) for rule in rules
        },
        "best": best,
        "verdict": sentence,
        "command": command,
        "device": next(iter(found.values()))["device"],
        "versions": versions(),
        "table": table(*scored),
    }
    write_json(folder / RESULT, result)
    shown = table(*scored, columns_of_terminal())
    print(f"\n{shown}\n{sentence}\nFor the long run: {command}\nCurves: {folder / PLOT}")
    return result


def _scaled(config: FSTConfig, rule: str, steps: int) -> dict[str, int]:
    """Warm-up and the teacher's memory of a short run, the same shares of it as of the long one."""
    if config.max_steps <= 0:
        return {}
    share, settings = steps / config.max_steps, resolve(config)
    scaled = {"warmup_steps": round(share * config.warmup_steps)} if config.warmup_steps >= 1 else {}
    if rule != "supervised" and settings.by_memory:
        scaled["teacher_memory"] = max(2, round(share * settings.teacher_memory))
    return scaled


def _options(rule: str, options: Mapping[str, object]) -> dict[str, object]:
    """What a rule changes in a recipe; one that looks ahead does so at every `EVERY`-th step, unless the recipe says when
    or follows the paper or its code."""
    own = options_for(rule, options)
    if "lookahead_every" in defaults_of(RULES[rule]) and options.keys().isdisjoint(("lookahead_every", "preset")):
        own["lookahead_every"] = EVERY
    return own


def _words(words: Sequence[str], own: Mapping[str, object]) -> list[str]:
    """Overrides as typed, and those of a rule, without what it takes out of the recipe."""
    typed = dict(zip(words[::2], words[1::2], strict=True))
    typed |= {f"--{key}": None if value is None else str(value) for key, value in own.items()}
    return [word for key, value in typed.items() if value is not None for word in (key, value)]


def _cost(rule: str, options: Mapping[str, object]) -> float:
    """Passes over a batch per step, relative to a mean teacher; training on labels alone costs about half."""
    own = {key: value for key, value in options.items() if key in TABLE and key in defaults_of(RULES[rule])}
    made = make("rule", RULES, rule, own)
    return 0.5 if rule == "supervised" else 1 + virtual_steps(made) / getattr(made, "every", 1)


def _plan(folder: Path, plan: dict) -> dict | None:
    """The plan of a comparison that was begun here, None for a new one."""
    refuse_unwritable(folder)
    if not folder.is_dir() or not any(folder.iterdir()):
        folder.mkdir(parents=True, exist_ok=True)
        return None
    path = folder / PLAN
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None
    if kept is None and any(not entry.name.startswith("probe-") for entry in folder.iterdir()):
        raise UserError(f"{folder} is not empty and holds no comparison; give another --output.")
    if kept is not None and {key: kept[key] for key in plan} != plan:
        raise UserError(f"{folder} holds another comparison; give another --output, or remove it.")
    return kept


def table(
    scores: Mapping[str, Mapping[int, float]],
    costs: Mapping[str, float],
    steps: Mapping[str, int],
    what: str = "mIoU",
    width: int | None = None,
) -> str:
    """Scores in per cent with 95 % intervals, and differences from the mean teacher paired by seed; `width`: see
    `text_table`."""
    control = "mean_teacher" if "mean_teacher" in scores else next(iter(scores))
    rows = []
    for rule, seeds in scores.items():
        over = "–" if rule == control else _points(*paired(seeds, scores[control]), sign="+")
        price = f"{costs[rule] / costs[control]:.2f}"
        rows.append([rule, str(len(seeds)), str(steps[rule]), price, _points(*interval(list(seeds.values()))), over])
    return text_table(["rule", "seeds", "steps", "cost a step", f"{what} (%)", f"over {control}"], rows, width)


def _points(mean: float, width: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f}" + (f" ± {100 * width:.1f}" if math.isfinite(width) else "")


def verdict(scores: Mapping[str, Mapping[int, float]], costs: Mapping[str, float]) -> tuple[str, str]:
    """The rule to take, and why in one sentence.

    It is the one with the highest mean, unless a cheaper one is not significantly worse.
    """
    best = max(scores, key=lambda rule: statistics.fmean(scores[rule].values()))
    level = {rule: paired(scores[best], scores[rule]) for rule in scores if rule != best}
    as_good = [rule for rule, (mean, width) in level.items() if mean <= width and costs[rule] < costs[best]]
    if as_good:
        chosen = min(as_good, key=costs.__getitem__)
        mean, width = level[chosen]
        seeds = f"95 %, seeds: {len(scores[best])}" if math.isfinite(width) else "one seed, without an interval"
        return chosen, (
            f"Take {chosen}: {best} scored {_points(mean, width)} points more ({seeds}), which is not significant, and "
            "costs more."
        )
    if not level:
        return best, f"Take {best}, the only rule."
    rival = min(level, key=lambda rule: level[rule][0])
    mean, width = level[rival]
    sure = "95 % interval, paired by seed"
    if mean <= width:
        found = "the interval includes 0" if math.isfinite(width) else "one seed gives no interval"
        sure = f"{found}: more seeds may reverse it"
    return best, f"Take {best}: it scored {_points(mean, width)} points more than {rival}, the next best ({sure})."
