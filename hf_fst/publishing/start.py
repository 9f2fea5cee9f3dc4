"""What a run started from: the commands that made those weights."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

from hf_fst.publishing.card import command
from hf_fst.publishing.facts import FACTS_FILE, LOCAL, RunFacts


def commands_before(*models: str | None) -> list[str]:
    """The commands that made the weights a run starts from, first to last; none where no run on this machine did.

    Args:
        models: the directories of these runs; Hub ids, names of builds and None are passed by.
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
