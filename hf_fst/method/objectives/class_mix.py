"""Cross-domain mixed sampling: classes of a labeled image pasted onto an unlabeled one."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from hf_fst.errors import UserError
from hf_fst.method.mixing import class_mask, mix
from hf_fst.method.objectives.pseudo_label import PseudoLabelObjective
from hf_fst.method.options import option


@dataclass(frozen=True, kw_only=True, eq=False)
class ClassMixObjective(PseudoLabelObjective):
    """CE(g_θ(x_l), y_l) + CE(g_θ(mix), ŷ_mix): DACS (Tranheden et al., 2021) and DAFormer's self-training.

    Half of the classes of a labeled image are pasted, with their labels and weight 1, onto an unlabeled image whose
    pseudo-labels weigh q, the share of confident pixels.

    Args:
        num_labels: number of classes.
        classes_from: `"image"` or `"batch"`, see `hf_fst.method.mixing.class_mask`.
    """

    num_labels: int
    classes_from: str = option("image", "mix_classes")
    weighting: str = option("quality", "unlabeled_weighting")
    jitter_probability: float = option(0.8)
    blur_probability: float = option(0.5)

    def mix(self, batch: dict, images: torch.Tensor, labels: torch.Tensor, weight: torch.Tensor) -> dict:
        """The mixed images; with several unlabeled images to a labeled one, it is pasted onto each."""
        rows = torch.arange(len(images), device=images.device) % len(batch["labels"])
        source, source_labels = batch["pixel_values"][rows], batch["labels"][rows]
        if source.shape[-2:] != images.shape[-2:]:
            raise UserError(
                f"class_mix got labeled crops of {tuple(source.shape[-2:])} and unlabeled ones of "
                f"{tuple(images.shape[-2:])} pixels; give both the same crop size."
            )
        mask = class_mask(source_labels, self.num_labels, self.classes_from)
        if "valid" in batch:  # ignored pixels are a class of "batch", padding is none
            mask = mask & batch["valid"][rows].unsqueeze(1)
        return {
            "mixed_pixel_values": mix(mask, source, images),
            "mixed_labels": mix(mask, source_labels, labels),
            "mixed_weight": mix(mask, torch.ones_like(weight), weight),
            "mixed_is_pseudo": ~mask.squeeze(1),
        }
