"""What is said where a repository cannot be made."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hf_fst.errors import PushError
from hf_fst.training.hub_strategy import made_first


@pytest.mark.parametrize(
    ("before", "begins", "ends"),
    [
        (True, "Nothing was trained, since me/run cannot be pushed to: ", "; then start again."),
        (False, "me/run cannot be pushed to: ", "; then push again."),  # `push_to_hub()` of a trainer that has trained
    ],
)
def test_only_a_refusal_before_the_training_says_that_nothing_was_trained(before, begins, ends):
    def make():
        raise ConnectionError("no route")

    args = SimpleNamespace(push_to_hub=before, hub_model_id="me/run", output_dir="runs/mine", hub_revision=None)
    with pytest.raises(PushError) as caught:
        made_first(SimpleNamespace(args=args), make)
    assert str(caught.value).startswith(begins) and str(caught.value).endswith(ends)
