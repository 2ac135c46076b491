"""Episodes of chasing and evading: one layout, starts, endings, seeds and exact resume."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.core.errors import UserError
from foundation.tasks.pursuit.chase import QuadcopterChaseEnv, QuadcopterChaseEnvCfg
from foundation.tasks.pursuit.evade import QuadcopterEvadeEnv, QuadcopterEvadeEnvCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.tasks.quadrotor.sim.quadrotor import POSITION

ENVS = {"chase": (QuadcopterChaseEnv, QuadcopterChaseEnvCfg), "evade": (QuadcopterEvadeEnv, QuadcopterEvadeEnvCfg)}
both = pytest.mark.parametrize("task", list(ENVS))


def make(task: str, num_envs: int = 8, **changes: Any) -> Any:
    env, cfg = ENVS[task]
    return env(replace(cfg(scene=SceneCfg(num_envs)), **changes))


def roll(env: Any, steps: int, seed: int = 0) -> list[torch.Tensor]:
    """Fly random commands around hovering, and return everything that the environment returned."""
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(steps):
        actions = 0.612 + 0.2 * torch.randn(env.num_envs, 4, generator=generator)
        obs, reward, dones, extras = env.step(actions)
        out += [*obs.values(), reward, dones, extras["time_outs"], *extras["episode_metrics"].values()]
        out += list(extras["log"].values())
    return [x.clone() for x in out]


def test_both_tasks_have_the_same_groups_and_differ_in_the_task_columns():
    """Sizes and order are the same; (1, 0) chases, (0, 1) evades."""
    chase, evade = (make(task).get_observations() for task in ENVS)
    assert {k: tuple(v.shape) for k, v in chase.items()} == {"policy": (8, 34), "deployable": (8, 30)}
    assert {k: v.shape for k, v in chase.items()} == {k: v.shape for k, v in evade.items()}
    assert torch.equal(chase["policy"][:, 28:30], torch.tensor([[1.0, 0.0]]).expand(8, 2))
    assert torch.equal(evade["policy"][:, 28:30], torch.tensor([[0.0, 1.0]]).expand(8, 2))


@both
def test_seeds_work_both_ways_and_the_global_generator_is_left_alone(task):
    """The same seed gives the same 150 steps in every bit, resets within them included; another seed other starts."""
    before = torch.get_rng_state()
    flights = [roll(make(task, seed=5), 150) for _ in range(2)]
    assert all(torch.equal(x, y) for x, y in zip(*flights, strict=True))
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(
        make(task, seed=5).get_observations()["policy"], make(task, seed=6).get_observations()["policy"]
    )


@both
@pytest.mark.parametrize("vehicles", [None, "sampled:3"])
def test_a_saved_state_resumes_exactly(task, vehicles):
    """Loaded into a fresh environment of another seed, the next 90 steps are the same in every bit."""
    env = make(task, vehicles=vehicles)
    env.cfg.observation_noise.deployable.relative_position = 0.1
    env = ENVS[task][0](env.cfg)
    roll(env, 77)
    saved = env.state_dict()
    expected = roll(env, 90, seed=1)
    other = ENVS[task][0](replace(env.cfg, seed=1234))
    other.load_state_dict(saved)
    assert all(torch.equal(x, y) for x, y in zip(expected, roll(other, 90, seed=1), strict=True))


@both
def test_a_step_copies_nothing_to_the_host_and_does_not_loop_over_environments(task):
    """No operation reads a tensor's value, and 4 or 64 environments take the same number of operations."""

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            assert func is not torch.ops.aten._local_scalar_dense.default
            counted.append(func)
            return func(*args, **(kwargs or {}))

    counts = []
    for num_envs in (4, 64):
        env = make(task, num_envs)
        counted: list[Any] = []
        with Watch():
            for _ in range(20):
                env.step(torch.full((num_envs, 4), 0.612))
        counts.append(len(counted))
    assert counts[0] == counts[1]


@both
def test_only_rows_that_ended_begin_anew(task):
    """Where an episode ended, the other body is the table's; elsewhere it moved on from where it was."""
    env = make(task, 64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        before = env.other.clone()
        _, _, dones, _ = env.step(torch.rand(64, 4, generator=generator) * 2 - 1)
        ended = dones.bool()
        moved = (env.other[:3] - before[:3]).norm(dim=0)
        assert torch.equal(env.other[:, ended], env._other_table[:, env.table_row][:, ended])
        assert moved[~ended].max() < 0.05  # 5 m/s
        assert (env.episode_length_buf[ended] == 0).all()


def test_a_chase_starts_beside_its_target_and_moves_in_both_ways():
    """Starts are within the box around the target; about half the targets are pushed at random, the rest periodic."""
    env = make("chase", 4000, seed=1)
    apart = env.state[POSITION] - env.other[:3]
    assert apart.abs().max() <= 0.25 + 1e-6 and apart.abs().max() > 0.24
    random = env._constants[9] > 0.5
    assert 0.45 < random.float().mean() < 0.55
    start = env.other.clone()
    for _ in range(100):
        env.move_others(env.state)
    periodic = ~random
    amplitude, pulse, phase = env._constants[:9].view(3, 3, -1)
    assert torch.allclose(env.other[:3, periodic], (amplitude * phase.sin())[:, periodic])
    first = torch.where(periodic, amplitude * (phase - pulse).sin(), start[:3])  # 100 steps of 0.01 s ago
    assert torch.allclose(first, start[:3], atol=1e-4)


def test_an_evasion_starts_with_the_pursuer_at_rest_and_far_enough():
    """Its distance is within the configured range, its speed zero."""
    env = make("evade", 4000)
    apart = (env.state[POSITION] - env.other[:3]).norm(dim=0)
    assert 0.5 - 1e-5 <= apart.min() < 0.51 and 0.89 < apart.max() <= 0.9 + 1e-5
    assert (env.other[3:] == 0).all()


@pytest.mark.parametrize(("task", "distance", "ends"), [("chase", 1.01, 1), ("chase", 0.9, 0), ("evade", 0.1, 1)])
def test_the_distance_ends_an_episode_without_a_bootstrap(task, distance, ends):
    """A target that is lost and a pursuer that arrives terminate; the log says so by name."""
    env = make(task, 4)
    env._other = torch.zeros(6, 4)
    env._other[:3] = env.state[POSITION]
    env._other[0] += distance
    env._constants = torch.zeros_like(env._constants)  # a pursuer without speed
    if task == "chase":
        env._constants[9] = 1.0  # pushed, but not far in 0.01 s
    _, reward, dones, extras = env.step(torch.full((4, 4), 0.612))
    assert dones.tolist() == [ends] * 4
    assert not extras["time_outs"].any()
    assert (reward < -90).tolist() == [bool(ends)] * 4
    if ends:
        name = {"chase": "lost", "evade": "caught"}[task]
        assert extras["log"][f"Episode_Termination/{name}"] == 1.0


def test_a_chase_succeeds_by_its_last_second():
    """A time-out with a mean distance below the bound is a success; above it, a time-out only."""
    for bound, expected in ((2.0, True), (1e-6, False)):
        env = make("chase", 4, episode_length_s=0.05, success_distance=bound)
        for _ in range(5):
            _, _, dones, extras = env.step(torch.full((4, 4), 0.612))
        assert dones.all() and extras["time_outs"].all()
        assert extras["episode_metrics"]["success"].tolist() == [expected] * 4
        assert extras["episode_metrics"]["tracking_error"].min() > 0


def test_the_tasks_pay_for_the_opposite():
    """The same two distances: a chase pays more for the smaller, an evasion for the larger, up to its cap."""
    for task, sign in (("chase", -1.0), ("evade", 1.0)):
        env = make(task, 3)
        env._other[:3] = env.state[POSITION]
        env._other[0] += torch.tensor([0.4, 0.6, 0.9])
        judged = env.judge(env.state, env.previous_action)
        gain = judged.terms[1].diff()
        assert gain.tolist() == pytest.approx([sign * 0.2, sign * 0.3], abs=1e-5)
    env = make("evade", 2)
    env._other[:3] = env.state[POSITION]
    env._other[0] += torch.tensor([1.0, 1.5])
    paid = env.judge(env.state, env.previous_action).terms[1]
    assert paid.tolist() == pytest.approx([1.0, 1.0], abs=1e-5)


def test_the_declared_fields_are_the_position_error_and_the_rotation():
    """R, row by row, times the declared columns is the position less the target's, in the world; in both groups."""
    env = make("chase", 64)
    roll(env, 20)
    for group, (first, frame) in env.position_fields.items():
        assert frame == "body"
        columns = env.get_observations()[group]
        rotation = columns[:, env.rotation_fields[group] :][:, :9].view(-1, 3, 3)
        apart = (rotation @ columns[:, first : first + 3].unsqueeze(-1)).squeeze(-1)
        torch.testing.assert_close(apart, (env.state[POSITION] - env.other[:3]).T, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("task", "change", "message"),
    [
        ("chase", lambda c: setattr(c.terminations, "lost", 0.0), "env.terminations.lost must be positive"),
        ("chase", lambda c: setattr(c.target.langevin, "share", 1.5), "env.target.langevin.share must be within"),
        ("chase", lambda c: setattr(c.target.lissajous, "amplitude", (0.5, 0.1)), "must be a range"),
        ("chase", lambda c: setattr(c, "rewards", None), "env.rewards=null"),
        ("evade", lambda c: setattr(c.pursuer, "response", 0.0), "env.pursuer.response must be positive"),
        ("evade", lambda c: setattr(c.pursuer, "start", (0.1, 0.5)), "must begin above env.terminations.caught"),
        ("evade", lambda c: setattr(c.init, "rotor_speed", (0.5, 2.0)), "env.init.rotor_speed"),
        ("evade", lambda c: setattr(c.observation_noise.deployable, "position", -1.0), "must not be negative"),
        ("evade", lambda c: setattr(c, "pursuer", None), "env.pursuer=null"),
    ],
)
def test_impossible_values_are_refused_by_name(task, change, message):
    """The error has the key that can be typed."""
    env, cfg = ENVS[task][0], ENVS[task][1](scene=SceneCfg(2))
    change(cfg)
    with pytest.raises(UserError, match=message):
        env(cfg)


@both
def test_the_picture_shows_the_other_body(task):
    """Another place of the other body gives another picture, in the colour of targets."""
    env = make(task, 1)
    before = env.render()
    assert before.dtype.name == "uint8" and before.shape == (720, 960, 3)
    env.close()
    env._other[:3] -= 0.4
    after = env.render()
    assert (before != after).any(-1).sum() > 200
    red = (after.astype(int)[..., 0] - after.astype(int)[..., 1]) > 100
    assert red.sum() > 100
