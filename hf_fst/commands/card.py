"""`hf-fst card`."""

from __future__ import annotations

import argparse

from hf_fst.commands.common import add_common


def add(commands) -> None:
    parser = commands.add_parser(
        "card",
        help="write the model card of a run anew",
        description="Write README.md of a run anew from the files it left (fst_run.json, history.json), without\n"
        "training. What was edited in README.md by hand is lost.",
        epilog="examples:\n"
        "  hf-fst card runs/street_da_fst_d --license apache-2.0\n"
        "  hf-fst card runs/street_da_fst_d --compare runs/street_source_only\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("directory", metavar="DIR", help="the output directory of a run")
    parser.add_argument("--license", metavar="ID", help="of the weights, as the Hub spells it: apache-2.0, mit, ...")
    parser.add_argument("--name", metavar="NAME", help="the model's name on the card")
    parser.add_argument(
        "--compare",
        metavar="DIR",
        nargs="+",
        default=[],
        help="other runs on the same data, for a table beside this one",
    )
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.publishing.report import rewrite_report

    changes = {"license": arguments.license, "model_name": arguments.name}
    changes = {key: value for key, value in changes.items() if value is not None}
    path = rewrite_report(arguments.directory, arguments.compare, **changes)
    print(f"{path} is written.")
    return {"card": str(path)}
