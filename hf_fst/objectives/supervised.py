"""Labels alone."""

from __future__ import annotations

from hf_fst.objectives.base import Objective


class SupervisedObjective(Objective):
    """CE(g_θ(x_l), y_l): the labelled images alone, whatever the rule does."""
