"""Which teachers are chosen, by returns that are averaged over epochs and measured against the teachers' own."""

import torch

from foundation.teachers.teacher_board import NEWEST, TeacherBoard

EACH = torch.arange(3)


def board(*epochs: list[float], teachers: list[float] | None = None) -> TeacherBoard:
    """Record epochs with one episode of each of three teachers."""
    out = TeacherBoard(["a", "b", "c"])
    if teachers is not None:
        out.record("teacher", torch.tensor(teachers), EACH)
    for returns in epochs:
        out.record("collected", torch.tensor(returns), EACH)
    return out


def test_worst_is_furthest_below_its_own_teacher():
    """A vehicle that allows 400 and got 390 is not worse than one that allows 600 and got 450."""
    chosen = board([390.0, 450.0, 600.0], teachers=[400.0, 600.0, 610.0])
    assert chosen.choose(1, "worst", 0).tolist() == [False, True, False]
    assert chosen.choose(2, "best", 0).tolist() == [True, False, True]
    assert board([390.0, 450.0, 600.0]).choose(1, "worst", 0).tolist() == [True, False, False]


def test_one_lucky_episode_does_not_hide_a_vehicle_that_keeps_falling():
    """After epochs of crashes one good episode moves the running mean by its weight alone, in closed form."""
    falling = board(*[[0.0, 500.0, 500.0]] * 5, [600.0, 500.0, 500.0])
    torch.testing.assert_close(falling.running, torch.tensor([600.0 * NEWEST, 500.0, 500.0], dtype=torch.float64))
    assert falling.choose(1, "worst", 0).tolist() == [True, False, False]


def test_a_teacher_without_an_episode_keeps_its_mean_and_an_unknown_one_comes_first():
    """Nothing ended with a teacher in an epoch: its mean stays; nothing ever ended: it is chosen first."""
    some = TeacherBoard(["a", "b", "c"])
    some.record("collected", torch.tensor([100.0, 200.0]), torch.tensor([0, 1]))
    some.record("collected", torch.tensor([300.0]), torch.tensor([1]))
    assert some.running[0] == 100.0 and abs(some.running[1] - (200.0 + NEWEST * 100.0)) < 1e-9
    assert some.choose(1, "worst", 0).tolist() == [False, False, True]
    again = TeacherBoard(["a", "b", "c"])
    again.load_state_dict(some.state_dict())
    assert torch.equal(again.running.nan_to_num(-1.0), some.running.nan_to_num(-1.0))
