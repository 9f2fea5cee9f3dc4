"""The rules under their public name; they live in `hf_fst.method.rules`."""

from hf_fst.method.rules import *  # noqa: F403
