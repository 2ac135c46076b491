"""Observation groups: what is concatenated, in which order, and what a mismatch says."""

from __future__ import annotations

import pytest
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.policies.obs_groups import ObsSelector

OBS = TensorDict(
    {"policy": torch.arange(6.0).view(2, 3), "extra": torch.tensor([[10.0], [20.0]]), "image": torch.zeros(2, 4, 4)},
    batch_size=[2],
)


def test_groups_are_concatenated_in_the_order_given():
    """The order of the list is the order of the columns."""
    assert ObsSelector(["policy", "extra"])(OBS).tolist() == [[0.0, 1.0, 2.0, 10.0], [3.0, 4.0, 5.0, 20.0]]
    assert ObsSelector(["extra", "policy"])(OBS).tolist() == [[10.0, 0.0, 1.0, 2.0], [20.0, 3.0, 4.0, 5.0]]


def test_slice_is_taken_after_concatenation():
    """``[a, b]`` keeps columns a to b - 1 of the whole."""
    selector = ObsSelector(["policy", "extra"], [2, 4])
    assert selector(OBS).tolist() == [[2.0, 10.0], [5.0, 20.0]]
    assert selector.check(OBS, "student") == 2


@pytest.mark.parametrize(
    ("groups", "columns", "wanted", "message"),
    [
        (["polcy"], None, None, r"no observation group 'polcy'\. Did you mean 'policy'\?"),
        (["image"], None, None, r"group 'image' has shape \(4, 4\)"),
        (["policy"], [1, 4], None, r"obs_slice=\[1,4\] does not fit the 3 columns"),
        (["policy"], None, 26, r"expects 26 observations.*gives 3.*policy \(3\), extra \(1\)"),
    ],
)
def test_a_misfit_names_groups_and_sizes(groups, columns, wanted, message):
    """Errors name the key, the groups that there are, their sizes, and the size wanted."""
    with pytest.raises(UserError, match=message):
        ObsSelector(groups, columns).check(OBS, "teacher", wanted)


def test_no_groups_is_an_error():
    """An empty list selects nothing."""
    with pytest.raises(UserError, match="empty"):
        ObsSelector([])
