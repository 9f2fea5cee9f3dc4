"""hf_fst: Learning from Future, look-ahead teachers for self-training in semantic segmentation."""

from hf_fst import models
from hf_fst.config import FSTConfig
from hf_fst.teacher import EMATeacher
from hf_fst.trainer import FSTTrainer

__all__ = ["EMATeacher", "FSTConfig", "FSTTrainer", "models"]
