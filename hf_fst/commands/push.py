"""`hf-fst push`."""

from __future__ import annotations

import argparse

from hf_fst.commands.common import add_common


def add(commands) -> None:
    parser = commands.add_parser(
        "push",
        help="publish a model on the Hub",
        description="Publish a run or any saved model on the Hub in one commit: the teacher at the root, the student in\n"
        "student/, card, image processor, scores and recipe. Checkpoints, optimizer states and logs stay here.",
        epilog="examples:\n"
        "  hf-fst push runs/street_da_fst_d me/street-da --private\n"
        "  hf-fst push converted/daformer-b5 me/daformer-b5\n"
        "  hf-fst push runs/street_da_fst_d/checkpoint-500 me/street-da --revision step-500\n"
        "  hf-fst push runs/street_da_fst_d somebody/street-da --create-pr\n"
        "Log in first with `hf auth login`, or set HF_TOKEN.\n",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "directory", metavar="DIR", help="output directory of a run, one of its checkpoints, or a model"
    )
    parser.add_argument("repo", metavar="REPO", help="where to: owner/name, or a name among your own")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="commit to this branch, made if missing (main)")
    parser.add_argument(
        "--create-pr", "--create_pr", action="store_true", help="open a pull request instead of committing"
    )
    parser.add_argument("-m", "--message", metavar="TEXT", default="Upload model", help="of the commit (Upload model)")
    parser.add_argument("--token", metavar="TOKEN", help="instead of the one you logged in with")
    add_common(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace, overrides: dict[str, str]) -> dict:
    from hf_fst.errors import UsageError
    from hf_fst.publishing.push import push

    if arguments.create_pr and arguments.revision is not None:
        raise UsageError("--create-pr and --revision exclude each other: a pull request is made against main.")
    info = push(
        arguments.directory,
        arguments.repo,
        token=arguments.token,
        private=arguments.private or None,
        revision=arguments.revision,
        create_pr=arguments.create_pr,
        message=arguments.message,
    )
    print(f"Pull request: {info.pr_url}" if info.pr_url else f"Published: {info.commit_url}")
    return {"commit": info.oid, "url": info.commit_url, "pull_request": info.pr_url}
