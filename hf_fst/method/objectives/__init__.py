"""Objectives: one file each; `OBJECTIVES` names them."""

from __future__ import annotations

from hf_fst.method.objectives.base import Objective
from hf_fst.method.objectives.class_mix import ClassMixObjective
from hf_fst.method.objectives.cut_mix import CutMixObjective
from hf_fst.method.objectives.entropy_drop import EntropyDropObjective
from hf_fst.method.objectives.feature_distance import FeatureDistance
from hf_fst.method.objectives.pseudo_label import PseudoLabelObjective
from hf_fst.method.objectives.supervised import SupervisedObjective

OBJECTIVES = {
    "supervised": SupervisedObjective,
    "pseudo_label": PseudoLabelObjective,
    "class_mix": ClassMixObjective,
    "cut_mix": CutMixObjective,
    "entropy_drop": EntropyDropObjective,
}


def make_objective(args, num_labels: int, align_corners: bool = False, reference=None) -> Objective:
    """The objective that an `FSTConfig` names, with its numbers, for a model of `num_labels` classes whose logits are
    resized with `align_corners`; `reference` is the network of the feature distance, if one is asked for."""
    common = {"loss_reduction": args.loss_reduction, "auxiliary_loss_weight": args.auxiliary_loss_weight}
    common["align_corners"] = align_corners
    if args.feature_distance_weight:
        common["feature_distance"] = FeatureDistance(
            reference.to(args.device), args.feature_distance_weight, num_labels, args.feature_distance_classes
        )
    if args.objective == "supervised":
        return SupervisedObjective(**common)
    pseudo = {
        **common,
        "unlabeled_weight": args.unlabeled_weight,
        "weighting": args.unlabeled_weighting,
        "confidence_threshold": args.confidence_threshold,
        "ignore_top": args.pseudo_ignore_top,
        "ignore_bottom": args.pseudo_ignore_bottom,
        "jitter_probability": args.jitter_probability,
        "jitter_strength": args.jitter_strength,
        "blur_probability": args.blur_probability,
        "augmentation_draw": args.augmentation_draw,
        "weigh_auxiliary": args.auxiliary_pseudo_weight,
    }
    if args.objective == "class_mix":
        return ClassMixObjective(num_labels=num_labels, classes_from=args.mix_classes, **pseudo)
    if args.objective == "cut_mix":
        return CutMixObjective(cut_probability=args.cut_probability, **pseudo)
    if args.objective == "entropy_drop":
        return EntropyDropObjective(
            drop_percent=args.entropy_drop_percent,
            ohem_threshold=args.ohem_threshold,
            ohem_min_kept=args.ohem_min_kept,
            cut_probability=args.cut_probability,
            **pseudo,
        )
    return PseudoLabelObjective(**pseudo)


__all__ = ["OBJECTIVES", "Objective", "make_objective", *(cls.__name__ for cls in OBJECTIVES.values())]
