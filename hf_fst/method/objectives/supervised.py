"""Labels alone."""

from __future__ import annotations

from hf_fst.method.objectives.base import Objective


class SupervisedObjective(Objective):
    """CE(g_θ(x_l), y_l): the labeled images alone, whatever the rule does."""
