"""`hf-fst push`."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from hf_fst.errors import UsageError


def push(
    directory: Annotated[
        str, Argument(metavar="DIR", help="The output directory of a run, one of its checkpoints, or a model.")
    ],
    repo: Annotated[
        str, Argument(metavar="REPO", help="The repository: owner/name, or a name in your own namespace.")
    ],
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    revision: Annotated[
        str | None, Option(metavar="BRANCH", help="Commit to this branch, made if missing; default: main.")
    ] = None,
    create_pr: Annotated[bool, Option("--create-pr", help="Open a pull request instead of committing.")] = False,
    message: Annotated[str, Option("--message", "-m", metavar="TEXT", help="Commit message.")] = "Upload model",
    token: Annotated[
        str | None, Option(metavar="TOKEN", help="Use this token, not the one you logged in with.", show_default=False)
    ] = None,
) -> dict:
    """Publish a model on the Hub.

    A run or any saved model goes up in one commit: the teacher at the root, the student in student/, card, image
    processor, scores and recipe. Checkpoints, optimizer states and logs are not uploaded. Log in first with
    `hf auth login`, or set HF_TOKEN.

    Examples:
      hf-fst push runs/street_da me/street-da --private
      hf-fst push converted/daformer-b5 me/daformer-b5
      hf-fst push runs/street_da/checkpoint-500 me/street-da --revision step-500
      hf-fst push runs/street_da somebody/street-da --create-pr
    """
    from hf_fst.publishing.push import push

    if create_pr and revision is not None:
        raise UsageError("--create-pr and --revision exclude each other: a pull request is made against main.")
    info = push(
        directory,
        repo,
        token=token,
        private=private or None,
        revision=revision,
        create_pr=create_pr,
        message=message,
    )
    print(f"Pull request: {info.pr_url}" if info.pr_url else f"Published: {info.commit_url}")
    return {"commit": info.oid, "url": info.commit_url, "pull_request": info.pr_url}
