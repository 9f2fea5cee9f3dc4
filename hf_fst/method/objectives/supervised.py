"""Labels alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hf_fst.method.objectives.base import Objective


@dataclass(frozen=True, kw_only=True, eq=False)
class SupervisedObjective(Objective):
    """CE(g_θ(x_l), y_l): the labeled images alone, whatever the rule does."""

    replayable: ClassVar[bool] = True
