"""Checks the files of a recipe and formats the findings for a terminal."""

from __future__ import annotations

import contextlib
import os
import textwrap
import warnings
from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from hf_fst.data.check import EVALUATED, Finding, Part, Report
from hf_fst.drawing.tables import ABSENT, percent, text_table
from hf_fst.errors import DataError
from hf_fst.recipes.data import build_data
from hf_fst.recipes.keys import Recipe
from hf_fst.recipes.load import to_config
from hf_fst.recipes.sides import sides
from hf_fst.training.refusals import refuse_settings
from hf_fst.training.settings import resolve

MOST_DETAILS = 5  # lines of a finding on the page
MOST_ROWS = 20  # classes in one column of the page


def check_recipe(recipe: Recipe) -> tuple[Report, list[str]]:
    """What was found in all files of a recipe, and the warnings of the loaders, for example about unused files.

    If an unusable mask prevents the choice of labeled images, all count as labeled. Raises `UserError` for a recipe
    that is wrong, cannot be trained, or does not fit its folders or columns.
    """
    config = to_config(recipe)
    refuse_settings(config)
    objective = resolve(config).objective
    plain = replace(recipe, check=True, rare_class_sampling=None)
    with collected_notes() as notes:
        try:
            report = build_data(plain, config, objective).report
        except DataError:
            plain = replace(plain, labeled=None, target_labeled=None)
            objective = objective if "unlabeled" in sides(plain) else "supervised"
            report = build_data(plain, config, objective).report
    unreadable = [found.part for found in report.findings if found.kind == "unreadable"]
    if config.on_bad_image == "stop" and not set(unreadable) <= {*EVALUATED}:
        notes.append("With --on_bad_image skip, hf-fst train leaves out images and masks that it cannot use.")
    return report, notes


@contextlib.contextmanager
def collected_notes() -> Iterator[list[str]]:
    """Collects the warnings of the loaders, each once, in the list that it yields. Other warnings are shown as usual, and
    after an error all of them."""
    notes: list[str] = []
    kept: tuple[type[Warning], ...] = ()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            yield notes
        kept = (UserWarning,)
    finally:
        notes += dict.fromkeys(str(warning.message) for warning in caught if warning.category in kept)
        for warning in caught:
            if warning.category not in kept:
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def page(report: Report, notes: list[str], title: str, width: int) -> str:
    """The report for a terminal of this width: parts, classes, findings, and notes."""
    images = sum(len(part.files) for part in report.parts.values())
    wrong = len(report.findings)
    verdict = "nothing is wrong" if not wrong else "1 thing is wrong" if wrong == 1 else f"{wrong} things are wrong"
    lines = [f"{title}: {images:,} images, {verdict}.", "", _parts(report, width), _classes(report, width)]
    root = _common_root(report)
    lines += [_described(number, finding, root, width) for number, finding in enumerate(report.findings, start=1)]
    lines += [_wrapped(f"Note: {note}", "", "  ", root, width) for note in notes]
    if root and any(root in line for finding in report.findings for line in (finding.sentence, *finding.details)):
        lines.append(f"Paths are relative to {root}.")
    return "\n".join(lines).rstrip() + "\n"


def _parts(report: Report, width: int) -> str:
    columns = ["", "images", "unusable", "size", "ignored (%)", "padding (%)"]
    rows = [
        [
            name,
            f"{len(part.files):,}",
            f"{len(part.errors):,}",
            sizes(part),
            percent(part.ignored_share),
            percent(part.padding),
        ]
        for name, part in report.parts.items()
    ]
    return text_table(columns, rows, width)


def sizes(*parts: Part) -> str:
    """The size of the images, or the smallest and the largest: width x height."""
    found = np.concatenate([part.sizes for part in parts])
    sizes = np.unique(found[found[:, 0] > 0], axis=0).tolist()
    if not sizes:
        return ABSENT
    ends = [min(sizes, key=np.prod), max(sizes, key=np.prod)] if len(sizes) > 1 else sizes
    return " to ".join(f"{width} x {height}" for height, width in ends)


def _classes(report: Report, width: int) -> str:
    """For each class, its share of the labeled pixels in each part, and the number of labeled images that have it."""
    masked = {name: part.class_pixels for name, part in report.parts.items() if part.class_pixels is not None}
    columns = ["class, % of pixels", *masked, "in labeled images"]
    totals = {name: pixels.sum(0) for name, pixels in masked.items()}
    rows = []
    for i, name in enumerate(report.names):
        shares = [share(pixels[i], pixels.sum()) for pixels in totals.values()]
        rows.append([name, *shares, f"{(masked['labeled'][:, i] > 0).sum():,}"])
    text = text_table(columns, rows, width)
    if len(rows) <= MOST_ROWS:
        return text
    # many classes: only their shares of the labeled pixels, side by side
    head, rule, *lines = text_table(["class", "labeled (%)"], [row[:2] for row in rows]).splitlines()
    across = max(1, min((width + 3) // (len(head) + 3), -(-len(lines) // MOST_ROWS)))
    down = -(-len(lines) // across)
    blocks = [[head, rule, *lines[start : start + down]] for start in range(0, len(lines), down)]
    padded = [[line.ljust(len(head)) for line in block + [""] * (down + 2 - len(block))] for block in blocks]
    return "".join("   ".join(line).rstrip() + "\n" for line in zip(*padded, strict=True))


def share(pixels: float, total: float = 1) -> str:
    """A share in percent; a class with pixels is never 0.0."""
    if not pixels:
        return "none"
    return percent(pixels / total) if pixels / total >= 0.0005 else "<0.1"


def _common_root(report: Report) -> str:
    """The folder that holds all files; "" if it is too short to be worth leaving out."""
    files = [file for part in report.parts.values() for file in part.files if os.path.isabs(file)]
    folders = {os.path.dirname(file) for file in files}
    root = os.path.commonpath(folders) if folders else ""
    root = os.path.dirname(root) if root in folders else root  # the masks are next to it
    return root + os.sep if root.count(os.sep) > 1 else ""


def _described(number: int, finding: Finding, root: str, width: int) -> str:
    text = ("" if finding.stops else "Warning: ") + (finding.heading or finding.sentence)
    lines = [_wrapped(text, f"{number}. ", "   ", root, width)]
    details = finding.causes or finding.details
    lines += [_wrapped(detail, "   - ", "     ", root, width) for detail in details[:MOST_DETAILS]]
    if len(details) > MOST_DETAILS:
        lines.append(f"   and {len(details) - MOST_DETAILS:,} more; --json FILE lists all")
    return "\n".join(lines) + "\n"


def _wrapped(text: str, first: str, rest: str, root: str, width: int) -> str:
    """Lines of at most `width`, paths whole and without `root`."""
    whole_words = {"width": max(width, 40), "break_long_words": False, "break_on_hyphens": False}
    text = text.replace(root, "") if root else text
    return textwrap.fill(text, initial_indent=first, subsequent_indent=rest, **whole_words)
