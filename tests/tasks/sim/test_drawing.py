"""The pictures show something, and what they show follows the state."""

from __future__ import annotations

import numpy as np

from foundation.tasks.quadrotor.sim.drawing import FleetRenderer


def _states(num: int, x: float = 0.2) -> np.ndarray:
    states = np.zeros((num, 17))
    states[:, 0], states[:, 9], states[:, 13:] = x, 1.0, 0.5
    return states


def _renderer(num: int, resolution: tuple[int, int] = (480, 360)) -> FleetRenderer:
    return FleetRenderer(num, np.ones(num), np.full(num, 0.04), resolution)


def test_a_frame_is_not_blank_and_has_the_size_asked_for():
    """Every panel has ink of several colours."""
    frame = _renderer(4).draw(_states(4), np.zeros(4))
    assert frame.shape == (360, 480, 3)
    assert frame.dtype == np.uint8
    for rows in (slice(0, 180), slice(180, 360)):
        for columns in (slice(0, 240), slice(240, 480)):
            panel = frame[rows, columns].reshape(-1, 3)
            assert len(np.unique(panel, axis=0)) > 50


def test_the_picture_moves_with_the_vehicle():
    """Another position gives another picture; the same state gives the same one."""
    a = _renderer(1).draw(_states(1, 0.2), np.zeros(1))
    b = _renderer(1).draw(_states(1, 0.2), np.zeros(1))
    c = _renderer(1).draw(_states(1, -0.4), np.zeros(1))
    assert np.array_equal(a, b)
    assert (a != c).any(axis=-1).mean() > 0.005


def test_a_new_episode_clears_the_trail():
    """After a reset (time falls) the trail of the last episode is gone."""
    renderer = _renderer(1)
    for k in range(12):
        renderer.draw(_states(1, 0.5 - 0.05 * k), np.array([0.1 * k]))
    after = renderer.draw(_states(1), np.zeros(1))
    assert np.array_equal(after, _renderer(1).draw(_states(1), np.zeros(1)))


def test_odd_sizes_and_bad_states_are_survived():
    """Odd resolutions become even for the video codec, and a state that is not finite is said, not crashed on."""
    states = _states(3)
    states[1] = np.nan
    frame = _renderer(3, (333, 217)).draw(states, np.zeros(3)).astype(int)
    assert frame.shape == (216, 332, 3)
    red = frame[:25, :, 0] - frame[:25, :, 1] > 60  # where the panels' texts are; the words are red
    assert red[:, 166:].any() and not red[:, :166].any()
