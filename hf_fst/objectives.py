"""The objectives under their public name; they live in `hf_fst.method.objectives`."""

from hf_fst.method.objectives import *  # noqa: F403
