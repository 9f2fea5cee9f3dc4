"""Checks every image and mask before training: what the files hold, and what is wrong with them."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import datasets
import numpy as np
import PIL.Image
import torch

from hf_fst.data.cached import map_files
from hf_fst.data.geometry import brought_together
from hf_fst.data.images import decode_pixels, file_of
from hf_fst.data.labels import IGNORED, LabelMap
from hf_fst.data.masks import decode_mask
from hf_fst.data.sampling import class_table
from hf_fst.data.transforms import size_within
from hf_fst.data.views import View, named_row
from hf_fst.errors import DataError

LABELED, EVALUATED = ("labeled", "labeled target"), ("validation", "test")
MOST_IGNORED = MOST_PADDING = 0.5  # shares; more is probably a mistake
FEATURES = datasets.Features(
    file=datasets.Value("string"),
    error=datasets.Value("string"),
    height=datasets.Value("int32"),
    width=datasets.Value("int32"),
    digest=datasets.Value("string"),
    ids=datasets.List(datasets.Value("uint8")),
    pixels=datasets.List(datasets.Value("int64")),
)
BINARY = "masks of 0 and 255 need id_map: {0: 0, 255: 1}"


@dataclass(frozen=True)
class Images:
    """Images to check, with their masks where these are read, and how training crops them: to `crop` (height, width),
    after resizing into `scale` (height, width) and by a random factor between those of `random_scale`; None for
    not."""

    view: View
    crop: tuple[int, int] | None = None
    scale: tuple[int, int] | None = None
    random_scale: tuple[float, float] | None = None


@dataclass
class Part:
    """What the files of one part hold.

    Args:
        files: the name of each image.
        sizes: (N,2), height and width of each, 0 where it cannot be used.
        digests: a hash of the pixels of each, "" where it cannot be used.
        errors: why an image or its mask cannot be used, by row.
        class_pixels: (N,C), pixels of each class in each mask; None without masks.
        ignored: pixels of each ignored id, by id.
        padding: share of padding in the crops, in 0..1; None without crops.
        causes: the errors without file names.
    """

    files: list[str]
    sizes: np.ndarray
    digests: list[str]
    errors: dict[int, str]
    class_pixels: np.ndarray | None
    ignored: dict[int, int]
    padding: float | None
    causes: dict[int, str] = field(default_factory=dict)

    @property
    def ignored_share(self) -> float | None:
        """Share of the pixels of the masks, in 0..1; None without masks."""
        if self.class_pixels is None:
            return None
        ignored = sum(self.ignored.values())
        return ignored / max(ignored + int(self.class_pixels.sum()), 1)


@dataclass
class Finding:
    """Something that is wrong.

    Args:
        kind: "unreadable", "labels", "classes", "ignored", "padding" or "duplicates".
        part: the part it is in.
        sentence: what was found, and what to do.
        details: a line for each file, class or id.
        causes: shown in place of `details` on a page: a line for all files with the same fault.
        heading: the sentence above all details, if `sentence` names the first of them.
        stops: whether training is refused.
    """

    kind: str
    part: str
    sentence: str
    details: list[str] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    heading: str | None = None
    stops: bool = False


@dataclass
class Report:
    """Everything that was found, by part, and what of it is wrong."""

    parts: dict[str, Part]
    names: list[str]
    findings: list[Finding]

    def refuse(self, skip_unreadable: bool) -> list[str]:
        """The sentences of the findings. Raises `DataError` with the first that stops training, which files that cannot
        be used do not where `skip_unreadable` leaves them out."""
        for finding in self.findings:
            skipped = skip_unreadable and finding.kind == "unreadable" and finding.part not in EVALUATED
            if finding.stops and not skipped:
                raise DataError(finding.sentence)
        return [finding.sentence for finding in self.findings]

    def as_dict(self) -> dict:
        """The report as plain data; shares are in 0..1."""
        parts = {}
        for name, part in self.parts.items():
            sizes, counts = np.unique(part.sizes[part.sizes[:, 0] > 0], axis=0, return_counts=True)
            parts[name] = {
                "images": len(part.files),
                "unreadable": len(part.errors),
                "sizes": {f"{w}x{h}": int(n) for (h, w), n in zip(sizes.tolist(), counts, strict=True)},
                "ignored": part.ignored_share,
                "ignored_pixels": {str(i): pixels for i, pixels in part.ignored.items()},
                "padding": part.padding,
                "classes": [] if part.class_pixels is None else class_table(part.class_pixels, self.names),
            }
        return {"parts": parts, "findings": [asdict(finding) for finding in self.findings]}


def check(parts: dict[str, Images], names: Sequence[str]) -> Report:
    """Opens every file, in several processes; the results are cached until a file changes.

    Args:
        parts: images by part: `labeled`, `labeled target`, `unlabeled`, `validation`, `test`, or some of these.
        names: of the classes.
    """
    seen = {name: look_at(images, name) for name, images in parts.items()}
    findings = [finding for name, part in seen.items() for finding in _unreadable(name, part)]
    findings += _labels(seen, list(names))
    findings += [finding for name in EVALUATED if name in seen for finding in _evaluated(name, seen[name])]
    findings += [finding for name, part in seen.items() for finding in _padding(name, part, parts[name].crop)]
    return Report(seen, list(names), findings + _duplicates(seen))


def look_at(images: Images, name: str) -> Part:
    """Opens the files of one part, `name`."""
    view = images.view
    label_map = view.label_map if view.with_labels else None
    desc = f"Checking {name} images"
    looked = map_files(view.stored, _look, FEATURES, "looks", desc, label_map=label_map)
    found = {column: list(looked[column]) for column in FEATURES}
    for row, error in enumerate(found["error"]):
        if error:  # it may be readable by now: a disk may have been offline
            for column, value in _look(view.stored[row], row, label_map).items():
                found[column][row] = value
    errors = {row: error for row, error in enumerate(found["error"]) if error}
    sizes = np.array([found["height"], found["width"]], dtype=np.int64).T
    return Part(
        found["file"],
        sizes,
        found["digest"],
        errors,
        *_counted(found["ids"], found["pixels"], label_map),
        padding=_padded(sizes[sizes[:, 0] > 0], images),
        causes={row: _nameless(error, view.stored[row]) for row, error in errors.items()},
    )


def _look(row: dict[str, dict], index: int, label_map: LabelMap | None) -> dict:
    """What one image and its mask hold (`FEATURES`); ids are those in the file."""
    found = {"file": f"row {index}", "error": None, "height": 0, "width": 0, "digest": "", "ids": [], "pixels": []}
    try:
        row = named_row(row, index)
        found["file"] = file_of(row["image"])
        pixels, turned = decode_pixels(row["image"])
        counts = [] if label_map is None else _ids(row, pixels, turned, label_map)
    except DataError as error:
        return found | {"error": str(error)}
    height, width = pixels.shape[-2:]
    content = pixels.permute(1, 2, 0).numpy().tobytes()
    found["digest"] = hashlib.blake2b(f"{(width, height)}".encode() + content, digest_size=16).hexdigest()
    found["ids"], found["pixels"] = ([*column] for column in zip(*counts, strict=True)) if counts else ([], [])
    return found | {"height": height, "width": width}


def _nameless(error: str, row: dict[str, dict | None]) -> str:
    for value in row.values():
        error = error.replace((value or {}).get("path") or "\0", "")
    return re.sub(r"row \d+ \(", "(", error)


def _ids(row: dict[str, dict], picture: torch.Tensor, turned: int, label_map: LabelMap) -> list[tuple[int, int]]:
    """The ids in a mask file and their numbers of pixels. Raises `DataError` if training could not use the mask."""
    raw, stored_as = decode_mask(row["label"], label_map.colors, label_map.first_channel)
    labels = label_map.train_ids(raw, row["label"])
    names = (file_of(row["label"]), file_of(row["image"]))
    brought_together(labels, stored_as, picture, turned, label_map.orientation, names)
    counts = PIL.Image.fromarray(raw.astype(np.uint8, copy=False)).histogram()
    return [(i, count) for i, count in enumerate(counts) if count]


def _counted(
    ids: list[list[int]], pixels: list[list[int]], label_map: LabelMap | None
) -> tuple[np.ndarray | None, dict[int, int]]:
    """Pixels of each class (N,C), None without masks, and of each ignored id."""
    if label_map is None:
        return None, {}
    raw = np.zeros((len(ids), IGNORED + 1), dtype=np.int64)
    for row, (found, counts) in enumerate(zip(ids, pixels, strict=True)):
        raw[row, found] = counts
    known = np.array([IGNORED if train is None else train for train in label_map.known()])
    of_class = np.stack([raw[:, known == train].sum(1) for train in range(len(label_map.names))], axis=1)
    total = raw.sum(0)
    return of_class, {int(i): int(total[i]) for i in np.flatnonzero((known == IGNORED) & (total > 0))}


def _padded(sizes: np.ndarray, images: Images) -> float | None:
    """Mean share of padding in crops of images of these sizes (N,2)."""
    if images.crop is None or not len(sizes):
        return None
    sizes, counts = np.unique(sizes, axis=0, return_counts=True)
    if images.scale is not None:
        sizes = np.array([size_within((h, w), images.scale) for h, w in sizes.tolist()])
    low, high = images.random_scale or (1, 1)
    middles = (np.arange(32) + 0.5) / 32  # half of the draws are from U(low, 1), half from U(1, high)
    factors = np.concatenate([low + (1 - low) * middles, 1 + (high - 1) * middles])
    scaled = np.maximum(np.floor(sizes[:, None] * factors[:, None] + 0.5), 1)
    inside = np.minimum(scaled, images.crop).prod(-1) / np.prod(images.crop)
    return float(1 - np.average(inside.mean(1), weights=counts))


def _unreadable(name: str, part: Part) -> list[Finding]:
    reasons = list(part.errors.values())
    if len(reasons) < 2:
        return [Finding("unreadable", name, reason, stops=True) for reason in reasons]
    heading = f"{len(reasons)} of {len(part.files)} {name} images cannot be used"
    same: dict[str, list[int]] = {}
    for row, cause in part.causes.items():
        same.setdefault(cause, []).append(row)
    causes = []
    for first, *others in sorted(same.values(), key=len, reverse=True):
        more = ", ".join(part.files[row] for row in others[:3]) + ", ..." * (len(others) > 3)
        causes.append(part.errors[first] + (f" The same holds for {len(others)} more: {more}" if others else ""))
    sentence = f"{heading}, the first: {reasons[0]}"
    return [Finding("unreadable", name, sentence, reasons, causes, f"{heading}:", stops=True)]


def _labels(seen: dict[str, Part], names: list[str]) -> list[Finding]:
    """What is wrong with the labels that training learns from."""
    parts = [seen[name] for name in LABELED if name in seen]
    if len(names) == 1:
        return _nothing_to_learn(
            f"The only class is {names[0]!r}, so there is nothing to distinguish it from; name the background too, as "
            f"['background', {names[0]!r}], with an id map if the masks need one."
        )
    if all(len(part.errors) == len(part.files) for part in parts):
        return []
    total = sum(part.class_pixels.sum(0) for part in parts)
    ignored = sum((Counter(part.ignored) for part in parts), Counter())
    binary = set(ignored) == {IGNORED} and total[1:].sum() == 0
    hint = f" ({BINARY})" if binary else ""
    there = [name for name, count in zip(names, total, strict=True) if count]
    if not there:
        ids = ", ".join(map(str, sorted(ignored)))
        return _nothing_to_learn(
            f"No pixel of the labels has a class: all are {ids} (ignored); check the id map{hint}."
        )
    if len(there) == 1:
        return _nothing_to_learn(
            f"Every labeled pixel is {there[0]!r}, so there is nothing to learn; check the masks and the id map{hint}."
        )
    findings = [_missing(seen, names, total)] if len(there) < len(names) else []
    pixels = sum(ignored.values()) + total.sum()
    if sum(ignored.values()) > MOST_IGNORED * pixels:
        shares = [f"id {i} {n / pixels:.0%}" for i, n in sorted(ignored.items(), key=lambda item: -item[1])]
        sentence = (
            f"{sum(ignored.values()) / pixels:.0%} of the pixels of the labels are ignored ({', '.join(shares[:3])}), so "
            "there is little to learn from; check the id map, unless the labels are sparse on purpose."
        )
        findings.append(Finding("ignored", "labeled", sentence, shares))
    return findings


def _nothing_to_learn(sentence: str) -> list[Finding]:
    return [Finding("labels", "labeled", sentence, stops=True)]


def _missing(seen: dict[str, Part], names: list[str], total: np.ndarray) -> Finding:
    """The classes without a labeled pixel, and where they are instead."""
    missing = [i for i, count in enumerate(total) if not count]
    shown = [f"{names[i]!r} (id {i})" for i in missing]
    few = ", ".join(shown[:5]) + (f" and {len(shown) - 5} more" if len(shown) > 5 else "")
    cure = f"check the class names and the id map, or leave the class{'es' * (len(missing) > 1)} out"
    if missing == [0]:
        cure = "if the mask ids start at 1, give id_map: {1: 0, 2: 1, ...}; otherwise leave the class out"
    evaluated = {name: seen[name].class_pixels.sum(0) for name in EVALUATED if name in seen}
    details = []
    for i, text in zip(missing, shown, strict=True):
        where = " and ".join(name for name, pixels in evaluated.items() if pixels[i])
        details.append(f"{text} has {f'pixels in {where}' if where else 'no pixel in any mask'}")
    return Finding("classes", "labeled", f"No pixel of the labels is {few}; {cure}.", details)


def _evaluated(name: str, part: Part) -> list[Finding]:
    if part.errors or part.class_pixels.any():
        return []
    sentence = f"No pixel of the {name} images has a class, so there is nothing to score; check their masks."
    return [Finding("labels", name, sentence, stops=True)]


def _padding(name: str, part: Part, crop: tuple[int, int] | None) -> list[Finding]:
    if part.padding is None or part.padding <= MOST_PADDING:
        return []
    height, width = np.median(part.sizes[part.sizes[:, 0] > 0], axis=0).astype(int)
    sentence = (
        f"{part.padding:.0%} of the area of the {name} crops ({crop[1]} x {crop[0]}) is padding, since the images are "
        f"about {width} x {height}; give a smaller crop_size."
    )
    return [Finding("padding", name, sentence)]


def _duplicates(seen: dict[str, Part]) -> list[Finding]:
    """Images with the same pixels in two parts that should have none in common."""
    labeled = [name for name in LABELED if name in seen]
    training = [*labeled, *(["unlabeled"] if "unlabeled" in seen else [])]
    scored = (training, "training images", "scores on these mean little; remove them from one of the two")
    pairs = {"unlabeled": (labeled, "labeled images", "take these out of the unlabeled ones")}
    findings = []
    for name, (others, of, cure) in (pairs | dict.fromkeys(EVALUATED, scored)).items():
        if name not in seen:
            continue
        known: dict[str, str] = {}
        for other in others:
            for digest, file in zip(seen[other].digests, seen[other].files, strict=True):
                known.setdefault(digest, f"{file} ({other})")
        files = zip(seen[name].digests, seen[name].files, strict=True)
        both = [f"{file} = {known[digest]}" for digest, file in files if digest and digest in known]
        if both:
            found = f"The {name} images include {len(both):,} of the {of}"
            sentence = f"{found}, the first: {both[0]}; {cure}."
            findings.append(Finding("duplicates", name, sentence, both, heading=f"{found}; {cure}:"))
    return findings
