"""Objectives, one file each; `OBJECTIVES` names them."""

from __future__ import annotations

from hf_fst.method.objectives.base import Objective
from hf_fst.method.objectives.cct import CCTObjective
from hf_fst.method.objectives.class_mix import ClassMixObjective
from hf_fst.method.objectives.cps import CPSObjective
from hf_fst.method.objectives.cpsl import CPSLObjective
from hf_fst.method.objectives.cut_mix import CutMixObjective
from hf_fst.method.objectives.distill import DistillObjective
from hf_fst.method.objectives.entropy_drop import EntropyDropObjective
from hf_fst.method.objectives.feature_distance import FeatureDistance
from hf_fst.method.objectives.gct import GCTObjective
from hf_fst.method.objectives.proda import ProDAObjective
from hf_fst.method.objectives.pseudo_label import PseudoLabelObjective
from hf_fst.method.objectives.supervised import SupervisedObjective
from hf_fst.method.objectives.u2pl import U2PLObjective
from hf_fst.method.objectives.unimatch import UniMatchObjective
from hf_fst.method.objectives.unimatch_v2 import UniMatchV2Objective

OBJECTIVES = {
    "supervised": SupervisedObjective,
    "pseudo_label": PseudoLabelObjective,
    "class_mix": ClassMixObjective,
    "cut_mix": CutMixObjective,
    "entropy_drop": EntropyDropObjective,
    "cct": CCTObjective,
    "gct": GCTObjective,
    "cps": CPSObjective,
    "unimatch": UniMatchObjective,
    "unimatch_v2": UniMatchV2Objective,
    "u2pl": U2PLObjective,
    "proda": ProDAObjective,
    "cpsl": CPSLObjective,
    "distill": DistillObjective,
}


def default_objective(rule: str | None) -> str:
    """The name of what the student learns where an objective is left out."""
    return "supervised" if rule == "supervised" else "class_mix"


__all__ = ["OBJECTIVES", "FeatureDistance", "Objective", *(cls.__name__ for cls in OBJECTIVES.values())]
