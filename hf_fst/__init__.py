"""hf_fst: Learning from Future, look-ahead teachers for self-training in semantic segmentation."""

from hf_fst import models
from hf_fst.method.teacher import EMATeacher
from hf_fst.training.config import FSTConfig
from hf_fst.training.trainer import FSTTrainer

__all__ = ["EMATeacher", "FSTConfig", "FSTTrainer", "models"]
