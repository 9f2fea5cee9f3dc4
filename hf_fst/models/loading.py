"""Networks by their Hub id or directory, and where they lie in the directory of a run."""

from __future__ import annotations

from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    PreTrainedModel,
    SegformerImageProcessor,
)
from transformers.utils import logging

logger = logging.get_logger(__name__)

# `output_dir/` is the teacher, with the student in STUDENT_DIR; `checkpoint-N/` is the student, with the teacher in
# TEACHER_DIR, and counts once MARKER, written last, is there
TEACHER_DIR, STUDENT_DIR, MARKER = "teacher", "student", "complete.json"


def from_hub(model: str, processor=None, id2label: dict[int, str] | None = None) -> tuple[PreTrainedModel, object]:
    """A network and its image processor from the Hub or a directory.

    Args:
        model: the id or the directory.
        processor: an image processor to use in place of its own.
        id2label: class names; a head with another number of classes is made anew.
    """
    names = {} if id2label is None else {"id2label": id2label, "label2id": {v: k for k, v in id2label.items()}}
    network = AutoModelForSemanticSegmentation.from_pretrained(model, ignore_mismatched_sizes=True, **names)
    if processor is None:
        try:
            processor = AutoImageProcessor.from_pretrained(model)
        except OSError:
            logger.warning("%s has no image processor: one is made with ImageNet's mean and deviation.", model)
            processor = SegformerImageProcessor(do_resize=False)
    return network, processor
