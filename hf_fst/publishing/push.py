"""Publishes on the Hub in one commit: the teacher at the root, the student in `student/`, card and scores."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import re
import shlex
import zlib
from collections.abc import Iterator
from pathlib import Path

import yaml
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

from hf_fst.errors import MissingError, PushError, UserError, in_a_line
from hf_fst.hub import bounded, is_broken_connection, is_repo_id
from hf_fst.models.adapters import ADAPTER_CONFIG, ADAPTER_WEIGHTS, base_of
from hf_fst.models.loading import MARKER, STUDENT_DIR, TEACHER_DIR, refuse_broken_files
from hf_fst.publishing.card import FIGURES, bare_card, make_card
from hf_fst.publishing.facts import FACTS_FILE, LOCAL, TOKEN, RunFacts, hub_id

CARD = "README.md"
WEIGHTS = ("model*.safetensors", "model.safetensors.index.json")
# what is published of a network, and of a run, and nothing else
ADAPTER = (ADAPTER_CONFIG, ADAPTER_WEIGHTS)
NETWORK = ("config.json", *WEIGHTS, "preprocessor_config.json", "*.py", *ADAPTER)
ABOUT = (
    *(CARD, *FIGURES, "class_sampling.png", ".eval_results/*.yaml", FACTS_FILE),
    *("recipe.yaml", "results.json", "history.json", "evaluation.json"),
)
# not published with a checkpoint: the arguments hold folders and the token
NOT_OF_CHECKPOINTS = ("training_args.bin",)
HOME = re.compile(r"(?:/(?:home|Users)/|[A-Za-z]:\\Users\\)\w")


def files_of(directory: str | Path) -> dict[str, Path]:
    """What is published of a run's output directory, one of its `checkpoint-N`, or any saved model: files by their
    path in the repository. Raises `MissingError` if the directory holds no model."""
    directory = Path(directory)
    root = _root(directory)
    student = directory / STUDENT_DIR if root == directory else directory
    whole = (root / "config.json").is_file() and any(any(root.glob(pattern)) for pattern in WEIGHTS)
    if not whole and not all((root / name).is_file() for name in ADAPTER):
        raise MissingError(
            f"{root} holds no model (config.json and model.safetensors); give the output directory of a run or another "
            "saved model."
        )
    found = {}
    for source, folder, patterns in ((root, "", NETWORK), (student, f"{STUDENT_DIR}/", NETWORK), (root, "", ABOUT)):
        for pattern in patterns:
            for path in sorted(source.glob(pattern)):
                found[folder + path.relative_to(source).as_posix()] = path
    return {name: path for name, path in found.items() if _on_the_hub(name, path)}


def checkpoint_files(directory: str | Path, folder: str) -> dict[str, Path | bytes]:
    """Everything needed to resume from a checkpoint, by path in the repository below `folder`."""
    found: dict[str, Path | bytes] = {}
    for path in sorted(Path(directory).rglob("*")):
        if path.is_file() and path.name not in NOT_OF_CHECKPOINTS:
            found[f"{folder}/{path.relative_to(directory).as_posix()}"] = path
    name, marker = f"{folder}/trainer_state.json", f"{folder}/{MARKER}"
    if name in found:
        state = json.loads(found[name].read_text(encoding="utf-8"))
        # paths on this machine
        state |= dict.fromkeys(("best_model_checkpoint", "best_metric", "best_global_step"))
        found[name] = json.dumps(state, indent=2).encode()
    if marker in found:  # it vouches for the files as they are published
        complete = json.loads(found[marker].read_text(encoding="utf-8"))
        vouched = {key: value for key, value in complete["files"].items() if f"{folder}/{key}" in found}
        if name in found:
            vouched["trainer_state.json"] = [len(found[name]), zlib.crc32(found[name])]
        found[marker] = json.dumps(complete | {"files": vouched}).encode()
    return found


def push(
    directory: str | Path,
    repo_id: str,
    *,
    token: str | None = None,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    message: str = "Upload model",
    more: dict[str, Path | bytes] | None = None,
    again: str | None = None,
) -> CommitInfo:
    """Publishes a directory in one commit, all of it or nothing.

    A missing repository or branch is created first. Files of an earlier push that this one does not have are deleted in
    the same commit, so weights of two runs are never mixed.

    Args:
        directory: see `files_of`.
        repo_id: `namespace/name`, or a name in the token's own namespace.
        token: with write access; default: that of `hf auth login` or `HF_TOKEN`.
        private: whether a new repository is private; default: what the namespace says.
        revision: branch to commit to, created if missing; default `main`.
        create_pr: open a pull request against `main` instead of committing to it.
        message: of the commit.
        more: further files by their path in the repository.
        again: how to try again, for the end of an error message.

    Raises:
        MissingError: the directory holds no model.
        UserError: the repository's id is invalid, weights are not finite, a file to publish holds what looks like a
            local path or a token, or both `revision` and `create_pr` are given.
        PushError: the Hub refused it or could not be reached.
    """
    if create_pr and revision is not None:
        raise UserError(
            f"A pull request is made against main; leave out either the revision {revision!r} or create_pr."
        )
    files: dict[str, Path | bytes] = {**files_of(directory), **(more or {})}
    for name, content in files.items():
        if Path(name).name == ADAPTER_CONFIG and isinstance(content, Path):
            _check_base(content)
        _check(name, content)
    for folder in sorted({path.parent for name, path in files.items() if name.endswith(".safetensors")}):
        refuse_broken_files(folder)
    if not is_repo_id(repo_id):
        raise UserError(f"The repository is {repo_id!r}; give an id such as owner/name.")
    api = HfApi(library_name="hf_fst", token=token)
    if again is None:
        again = f"then run `{command(directory, repo_id, private, revision, create_pr)}`"
    patterns = [*NETWORK, *ABOUT, *(f"{STUDENT_DIR}/{pattern}" for pattern in NETWORK)]
    patterns += sorted({f"{name.split('/')[0]}/*" for name in more or {}})
    what = f"{directory} was not published to {repo_id}"
    with failures_as_sentences(what, again):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
    files[CARD] = card_for(_root(Path(directory)), repo_id, any(name.startswith("student/") for name in files))
    with failures_as_sentences(what, again):
        if revision is not None:
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        stale = [
            name
            for name in api.list_repo_files(repo_id, revision=revision)
            if name not in files and any(_matches(name, pattern) for pattern in patterns)
        ]
        operations = [
            *(CommitOperationDelete(path_in_repo=name) for name in stale),
            *(CommitOperationAdd(path_in_repo=name, path_or_fileobj=content) for name, content in files.items()),
        ]
        return api.create_commit(
            repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr or None
        )


def card_for(directory: str | Path, repo_id: str, has_student: bool = False) -> bytes:
    """The card to publish: an unedited card gets the repository's name in its code; a missing card is made."""
    directory = Path(directory)
    path = directory / CARD
    if not path.is_file():
        return str(bare_card(directory, repo_id, has_student)).encode()
    written = path.read_text(encoding="utf-8")
    if (directory / FACTS_FILE).is_file():
        facts = RunFacts.load(directory)
        figures = tuple(name for name in FIGURES if (directory / name).is_file())
        if str(make_card(facts, figures)) == written:
            facts.hub_id = repo_id
            written = str(make_card(facts, figures))
    return written.encode()


def command(
    directory: str | Path,
    repo_id: str,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """The command that publishes a directory; never with a token."""
    words = ["hf-fst", "push", str(directory), repo_id]
    words += ["--private"] if private else []
    words += ["--revision", revision] if revision is not None else []
    words += ["--create-pr"] if create_pr else []
    return shlex.join(words)


@contextlib.contextmanager
def failures_as_sentences(what: str, again: str) -> Iterator[None]:
    """Turns failures of requests to the Hub into a `PushError`: `what` did not happen, why, and what to do to try
    `again`."""
    try:
        bounded()
        yield
    except (HTTPError, OSError) as error:  # OSError: the Hub offline or without a token, and failures of hf_xet
        raise PushError(f"{what}: {reason(error)}; {again}.") from error
    except (RuntimeError, ValueError) as error:  # huggingface_hub wraps failures of uploads and refused cards in these
        cause = error.__cause__ if isinstance(error.__cause__, HTTPError) else error
        raise PushError(f"{what}: {reason(cause)}; {again}.") from error


def reason(error: Exception) -> str:
    """Why a request failed and what to do, without a full stop."""
    if isinstance(error, OfflineModeIsEnabled):
        return "huggingface_hub is offline; unset HF_HUB_OFFLINE"
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; log in with `hf auth login` or set HF_TOKEN"
    if isinstance(error, PermissionError):
        return "the token may not write there; use one with write access, or your own namespace"
    if is_broken_connection(error):
        return f"the connection broke ({type(error).__name__}); check that the Hub can be reached"
    if not isinstance(error, HTTPError):
        return f"{in_a_line(error)}; correct that"
    status = error.response.status_code
    sentences = {
        400: f"the Hub refused the files (400: {_said(error)}); correct that",
        401: "the Hub does not accept the token (401); log in with `hf auth login` or give another with --token",
        403: "the token may not write there (403); use one with write access, or your own namespace",
        404: "there is no such repository or branch, or the token may not see it (404); check the id",
        409: "somebody else changed the repository at the same time (409); wait a moment",
        413: "the files are too large for the Hub (413); publish a smaller model",
        429: "the Hub's rate limit is reached (429); wait a few minutes",
    }
    if status >= 500:
        return f"the Hub itself failed ({status}); wait a few minutes"
    return sentences.get(status, f"the Hub answered {status} ({_said(error)}); correct that")


def _root(directory: Path) -> Path:
    """The directory of the teacher, which is published at the root."""
    is_checkpoint = (directory / TEACHER_DIR).is_dir() and (directory / MARKER).is_file()
    return directory / TEACHER_DIR if is_checkpoint else directory


def _said(error: Exception) -> str:
    """The server's own words, in one line."""
    message = error.server_message if isinstance(getattr(error, "server_message", None), str) else str(error)
    return " ".join(message.split()).rstrip(".")


def _matches(name: str, pattern: str) -> bool:
    """As `Path.glob`: a star does not match slashes, except in `FOLDER/*` of a folder of checkpoints."""
    same_depth = name.count("/") == pattern.count("/") or pattern.endswith("/*")
    return same_depth and fnmatch.fnmatchcase(name, pattern)


def _on_the_hub(name: str, path: Path) -> bool:
    """Whether the Hub accepts a file in `.eval_results`: the id of its dataset needs a namespace."""
    if not name.startswith(".eval_results/"):
        return True
    entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    return all("/" in entry["dataset"]["id"] for entry in entries)


def _check_base(file: Path) -> None:
    """Raises `UserError` for an adapter whose base network is not on the Hub."""
    base = base_of(file, str(file.parent))
    if hub_id(base) is None:
        raise UserError(
            f"The adapter in {file.parent} was trained on {base}, which is not on the Hub; publish that network first "
            f"and write its Hub id as base_model_name_or_path in {ADAPTER_CONFIG}, or publish the merged network "
            "(hf_fst.models.loading.load_network(RUN).save_pretrained(FOLDER))."
        )


def _check(name: str, content: Path | bytes) -> None:
    """Raises `UserError` for a text file that holds what looks like a path on this machine or a token."""
    if Path(name).suffix not in (".json", ".yaml", ".md", ".py"):
        return
    text = content.decode() if isinstance(content, bytes) else content.read_text(encoding="utf-8")
    patterns = [TOKEN, HOME] if Path(name).suffix in (".md", ".py") else [TOKEN, HOME, LOCAL]
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in patterns:
            if found := pattern.search(line):
                shown = "a token" if pattern is TOKEN else f"the local path {line[found.start() :].strip()[:60]!r}"
                raise UserError(
                    f"Line {number} of {content if isinstance(content, Path) else name} holds what looks like {shown}, "
                    "which would be published; remove it first."
                )
