"""The state of a curriculum in checkpoints."""

from __future__ import annotations

import pytest

from foundation.config.env_state import EnvState, furthest, read_env_state
from foundation.core.errors import UserError


def test_the_state_is_read_from_both_places():
    """The entry is in infos, where mjlab writes it; a student has it beside its weights; others have none."""
    state = {"common_step_counter": 7, "their_next_entry": 1.0}
    assert read_env_state({"infos": {"env_state": state}}, "f") == EnvState(7)
    assert read_env_state({"env_state": EnvState(7).to_plain()}, "f") == EnvState(7)
    assert read_env_state({"infos": None}, "f") is None
    assert read_env_state({"infos": {"evaluation": {}}}, "f") is None


def test_levels_of_terrain_go_along():
    """They are read back as they were written; fewer and more environments get those at the same place in the row."""
    state = EnvState(7, (0, 1, 2, 5))
    assert read_env_state({"env_state": state.to_plain()}, "f") == state
    assert state.levels_of(4) == [0, 1, 2, 5]
    assert state.levels_of(2) == [0, 2]
    assert state.levels_of(8) == [0, 0, 1, 1, 2, 2, 5, 5]
    assert EnvState(7).levels_of(3) is None
    with pytest.raises(UserError, match="terrain_levels must be whole numbers"):
        read_env_state({"env_state": {"common_step_counter": 7, "terrain_levels": [0, -1]}}, "f")


@pytest.mark.parametrize("steps", [-1, 1.5, True, None, "7", 2**63])
def test_a_counter_that_counts_nothing_is_corrupt(steps):
    """The message names the file and the entry."""
    with pytest.raises(UserError, match=r"file is corrupt: its env_state is .* must count env steps"):
        read_env_state({"infos": {"env_state": {"common_step_counter": steps}}}, "file")


def test_of_several_teachers_the_one_that_was_trained_longest_counts():
    """A teacher without a state does not count."""
    assert furthest([None, EnvState(3), EnvState(12), EnvState(5)]) == EnvState(12)
    assert furthest([None]) is None
