"""Puts the table of options into the API page as the site is built: mkdocstrings reads sources and does not see it."""

from hf_fst.training.config import FSTConfig, described
from hf_fst.training.settings import options

MARK = "<!-- options of FSTConfig -->"


def on_page_markdown(markdown: str, **kwargs) -> str:
    """Called by MkDocs for each page."""
    rows = [f"| {option.group} | `{name}` | {described(name)} |" for name, option in options(FSTConfig).items()]
    return markdown.replace(MARK, "\n".join(["| group | option | what it does |", "| --- | --- | --- |", *rows]))
