"""What is in force where an option is left out: not hf_fst's own choice, but the paper's equations or the authors' code.

docs/exactness.md shows them side by side, with everything the authors' code does that none of them follows.
"""

from __future__ import annotations

# the equations: two constants μ and μ'; what the paper does not print stays our choice
PAPER = {"teacher_momentum": 0.999, "momentum_warmup": False}

# the authors' domain adaptation code (DACS and DAFormer with a look-ahead)
OFFICIAL_ADAPTATION = {
    "teacher_momentum": 0.999,
    "lookahead_state": "carry",
    "lookahead_start": 1,
    "teacher_follows": "before",
    "momentum_warmup": True,
    "warmup_counts": "forwards",
    "teacher_buffers": "batch",
    "mix_classes": "batch",
    "augmentation_draw": "batch",
    "loss_reduction": "all",
    "auxiliary_pseudo_weight": False,
}

# their semi-supervised code (U2PL's loop without its contrastive branch)
OFFICIAL_SEMI = {
    **OFFICIAL_ADAPTATION,
    "lookahead_start": 0,
    "teacher_follows": "both",
    "warmup_counts": "steps",
    "loss_reduction": "valid",
    "contrast": "coded",
}

# other methods as their authors' code runs them, where their published numbers come from that
OFFICIAL_METHODS = {
    "cct": {"teacher_follows": "live", "teacher_buffers": "batch", "annealed_threshold": 0.0, "vat_step": 1e-6},
    "gct": {"teacher_follows": "live", "teacher_buffers": "batch", "loss_reduction": "all"},
    "cps": {"teacher_follows": "live", "teacher_buffers": "batch", "cut_partner": "same"},
    "unimatch": {"teacher_follows": "live", "teacher_buffers": "batch", "cut_partner": "same"},
    "unimatch_v2": {"teacher_follows": "after", "momentum_warmup": True, "teacher_buffers": "ema"},
}

SEMI_OBJECTIVES = ("cut_mix", "entropy_drop", "u2pl")
PRESETS = ("paper", "official")


def preset_values(name: str | None, rule: str, objective: str) -> dict[str, object]:
    """The options that the preset `name` sets for a rule and an objective, by their `FSTConfig` names; {} for None.

    One that the rule or the objective does not have is not applied.
    """
    if name is None:
        return {}
    if name == "paper":
        return PAPER
    if objective in OFFICIAL_METHODS:
        ours = rule not in ("supervised", "mean_teacher")  # a look-ahead, which their code does not have
        values = OFFICIAL_METHODS[objective]
        return values | ({"teacher_follows": "before"} if ours and values["teacher_follows"] == "live" else {})
    if objective in SEMI_OBJECTIVES:
        # the baseline's teacher follows the student after its step alone
        return OFFICIAL_SEMI | ({"teacher_follows": "after"} if rule == "mean_teacher" else {})
    # FST-W is coded with its first update of the teacher at the end of the iteration before
    return OFFICIAL_ADAPTATION | ({"teacher_follows": "after"} if rule == "fst_w" else {})
