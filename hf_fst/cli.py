"""`hf-fst` on the command line: finds the command, runs it, and turns errors of ours into a sentence.

Here and in `hf_fst.commands` heavy imports stand inside the functions, so that `--help` need not wait for them.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
import traceback
from pathlib import Path

from hf_fst.commands import card, convert, demo, evaluate, export, label, predict, push, train
from hf_fst.commands.common import is_first_process
from hf_fst.errors import UsageError, UserError

USAGE, FAILURE, INTERRUPTED = 2, 1, 130
COMMANDS = (train, evaluate, predict, label, export, demo, convert, card, push)
# a disk that is full, a folder that may not be written to: nobody's bug
NO_PLACE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)
PROJECT = "the project's issue tracker"


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence."""

    def error(self, message: str):
        sentence = message[:1].upper() + message[1:].rstrip(".")
        say(f"{sentence}; `{self.prog} --help` shows how to use it.")
        raise SystemExit(USAGE)


def main(argv: list[str] | None = None) -> int:
    """Runs a command line; returns the exit code: 0, 1 for failures, 2 for wrong usage, 130 where Ctrl-C stopped it."""
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(
        prog="hf-fst",
        description="Train networks for semantic segmentation with a teacher that looks ahead.",
        epilog="examples:\n"
        "  hf-fst train examples/recipes/street_da_fst_d.yaml\n"
        "  hf-fst train examples/recipes/folders.yaml --data_dir labeled --unlabeled_data_dir unlabeled\n"
        "  hf-fst eval runs/street_da_fst_d street --options look=real\n"
        "  hf-fst predict runs/street_da_fst_d images/ -o out/ --overlays\n"
        "  hf-fst push runs/street_da_fst_d me/street-da --private\n"
        "\nhf-fst COMMAND --help explains a command with examples of its own.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"hf_fst {importlib.metadata.version('hf_fst')}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", parser_class=Parser)
    for command in COMMANDS:
        command.add(commands)
    try:
        if not argv:
            parser.print_help()
            return USAGE
        overrides = {}
        if argv[0] == "train":
            argv, overrides = train.split_overrides(argv)
        arguments = parser.parse_args(argv)
    except SystemExit as stop:
        return stop.code or 0
    return _guarded(arguments, overrides)


def _guarded(arguments: argparse.Namespace, overrides: dict[str, str]) -> int:
    """Runs the command; an error of ours becomes a sentence, any other keeps its traceback."""
    sys.excepthook = ask_for_report  # for kinds of errors that none of ours has
    output = contextlib.redirect_stdout(sys.stderr) if arguments.json else contextlib.nullcontext()
    try:
        with output:
            result = arguments.run(arguments, overrides)
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        say("Stopped.")
        return INTERRUPTED
    except UserError as error:
        if arguments.debug:
            raise
        say(" ".join(str(error).split()))
        return USAGE if isinstance(error, UsageError) else FAILURE
    except (OSError, RuntimeError, ValueError) as error:
        if arguments.debug:
            raise
        if isinstance(error, OSError) and error.errno in NO_PLACE:
            say(
                f"{error.strerror}: {error.filename or 'where the command writes'}; make room or choose another place."
            )
        elif type(error).__name__ == "OutOfMemoryError":  # torch's
            say(
                "The memory of the accelerator is full; take smaller crops or batches (with more "
                "gradient_accumulation_steps in training), or look at images in windows."
            )
        else:
            ask_for_report(type(error), error, error.__traceback__)
        return FAILURE
    if arguments.json and is_first_process():
        print(json.dumps(result, indent=2))
    # one process tells for all: a launcher stops the others where one fails, perhaps before it has told
    return FAILURE if result.get("failed") and is_first_process() else 0


def ask_for_report(kind: type[BaseException], error: BaseException, trace) -> None:
    """What `sys.excepthook` does, and one sentence after it."""
    traceback.print_exception(kind, error, trace)
    if not issubclass(kind, KeyboardInterrupt):
        say(f"This error is not expected; please report it to {PROJECT} with the lines above.")


def say(sentence: str) -> None:
    """A sentence on stderr; the processes of one launch that say the same say it once."""
    if "LOCAL_RANK" in os.environ:
        launch = f"{os.getppid()} {os.environ.get('MASTER_PORT')} {sentence}"
        said = Path(tempfile.gettempdir(), f"hf-fst-said-{hashlib.sha256(launch.encode()).hexdigest()[:24]}")
        try:
            said.touch(exist_ok=False)
        except FileExistsError:
            if time.time() - said.stat().st_mtime < 60:
                return
            said.touch()
    print(f"hf-fst: {sentence}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
