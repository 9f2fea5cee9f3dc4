"""What a card says of each rule and each objective."""

from __future__ import annotations

# what each rule makes of the teacher before the student's real step, and the equation of it
RULES = {
    "supervised": ("no teacher follows the student", ""),
    "mean_teacher": (
        "the teacher is the moving average of the student (classical self-training, ST)",
        "φ_{t+1} = μφ_t + (1-μ)θ_t",
    ),
    "naive_fst": (
        "the teacher takes in the student of the next step, which is computed first and taken back",
        "φ_{t+1} = μφ_t + (1-μ)(θ_t - γ∇L(θ_t, φ_t))",
    ),
    "improved_fst": (
        "the teacher takes in the present student, then the student of the next step",
        "φ' = μφ_t + (1-μ)θ_t\nφ_{t+1} = μ'φ' + (1-μ')(θ_t - γ∇L(θ_t, φ'))",
    ),
    "fst_d": (
        "FST-D: the teacher takes in the students of the next K steps, one after the other",
        "φ̃ = μφ_t + (1-μ)θ_t,  θ̃ = θ_t\nK times:  θ̃ ← θ̃ - γ∇L(θ̃, φ̃),  φ̃ ← μ'φ̃ + (1-μ')θ̃\nφ_{t+1} = φ̃",
    ),
    "fst_w": (
        "FST-W: the teacher takes in the mean of N students of the next step, each from its own batch",
        "φ' = μφ_t + (1-μ)θ_t\nφ_{t+1} = μ'φ' + (1-μ')·(1/N)Σ_i (θ_t - γ∇L_i(θ_t, ψ))\n"
        "ψ = φ' (as in the authors' code) or φ_t (as printed in the paper)",
    ),
}
# the settings that symbols in these stand for; a card shows those that its rule has
SYMBOLS = {
    "μ": "teacher_momentum",
    "μ'": "lookahead_momentum",
    "memory in steps": "teacher_memory",
    "K": "lookahead_steps",
    "N": "lookahead_students",
    "M": "lookahead_every",
    "batches": "lookahead_batches",
    "labels of the virtual steps": "lookahead_labels",
}
LOOKAHEAD_RULES = ("naive_fst", "improved_fst", "fst_d", "fst_w")
OBJECTIVES = {
    "supervised": "cross entropy on labeled images",
    "pseudo_label": "cross entropy on labeled images, and on unlabeled ones with the teacher's hard labels",
    "class_mix": "as `pseudo_label`, on unlabeled images into which half the classes of a labeled one are pasted "
    "(ClassMix), with color jitter and blur",
    "cut_mix": "as `pseudo_label`, on unlabeled images with rectangles exchanged between them (CutMix)",
    "entropy_drop": "as `cut_mix`, without the unlabeled pixels on which the teacher is least sure (by entropy)",
    "cct": "cross entropy on labeled images; on unlabeled ones decoders of perturbed features agree with the teacher's "
    "probabilities (CCT)",
    "gct": "two branches learn labeled images, and each the prediction of the other one of the teacher where a flaw "
    "detector, which learns along, sees fewer flaws in it (GCT)",
    "cps": "two branches learn labeled images, and each the hard labels that the other one of the teacher gives (CPS)",
    "unimatch": "cross entropy on labeled images, and with the teacher's confident labels on two strongly augmented, cut "
    "views of each unlabeled image and on its features with dropped channels (UniMatch)",
    "unimatch_v2": "cross entropy on labeled images, and with the teacher's confident labels on two strongly augmented, "
    "cut views of each unlabeled image that see complementary feature channels (UniMatch V2)",
    "proda": "cross entropy on labeled images, and on unlabeled ones symmetric cross entropy with a fixed network's "
    "labels, corrected by how near the teacher's features are to prototypes of the classes; a strong view is kept "
    "consistent with the image (ProDA, stage 1)",
    "u2pl": "as `entropy_drop`, and a contrast of pixels with classes that remembers for each class the unsure pixels "
    "that are not of it (U2PL)",
    "cpsl": "as `proda`, with prototypes that learn from labels they give themselves, in which each class has its share, "
    "and with rectangles of labeled images (CPSL, first stage)",
    "distill": "cross entropy on labeled images, and on strong views of unlabeled ones with the confident labels of a "
    "fixed network, whose probabilities they are kept near (ProDA, stages 2 and 3)",
}
