"""What every engine promises (``foundation.engines.base``), on Isaac Lab and on the built-in engine alike."""

from __future__ import annotations

import pytest
import torch

HOVER = 0.612
"""Motor command that carries the Crazyflie's weight."""
GROUPS = {"policy": 26, "deployable": 22, "l2f": 22}
LEVEL = {"init__at_target": 1.0, "init__rotor_speed": (0.806, 0.806), "episode_length_s": 0.2}
"""Episodes of 20 steps that begin hovering at the target."""

both = pytest.mark.parametrize("engine", ["torch", "isaaclab"])


def _hover(env):
    return torch.full((env.num_envs, 4), HOVER)


@both
def test_shapes_and_types(engine, open_environment):
    """Groups, rewards, dones, time-outs, logs and metrics have the documented shapes and types."""
    with open_environment(engine) as env:
        obs, rewards, dones, extras = env.step(_hover(env))
        assert (env.num_envs, env.num_actions, env.max_episode_length) == (8, 4, 500)
        assert {name: tuple(value.shape) for name, value in obs.items()} == {k: (8, v) for k, v in GROUPS.items()}
        assert all(value.dtype == torch.float32 for value in obs.values())
        assert rewards.shape == (8,)
        assert rewards.dtype == torch.float32
        assert dones.shape == (8,)
        assert dones.dtype == torch.long
        assert extras["time_outs"].shape == (8,)
        assert extras["time_outs"].dtype == torch.bool
        assert env.episode_length_buf.shape == (8,)
        assert all(float(value) == float(value) for value in extras["log"].values())
        assert extras["episode_metrics"]["position_error"].shape == (8,)
        assert env.unwrapped.position_fields["policy"] == (0, "body")


@both
def test_reading_observations_changes_nothing(engine, open_environment):
    """Teacher and student read the same numbers: what step returned, noise included, however often they ask."""
    with open_environment(engine, observation_noise__deployable__position=0.1) as env:
        stepped = env.step(_hover(env))[0]
        first, second = env.get_observations(), env.get_observations()
        for name in GROUPS:
            assert torch.equal(first[name], stepped[name])
            assert torch.equal(second[name], stepped[name])
        assert not torch.equal(stepped["deployable"], stepped["policy"][:, :22])


@both
def test_a_row_that_terminates_begins_anew_and_no_other_does(engine, open_environment):
    """Environment 0 flies off and is reset alone; its motor speeds and last action are those of a new episode."""
    with open_environment(engine, init__at_target=1.0, init__rotor_speed=(0.806, 0.806)) as env:
        env.reset(3)
        actions = _hover(env)
        actions[0] = 1.0
        for _ in range(200):
            obs, rewards, dones, extras = env.step(actions)
            if dones.any():
                break
        assert dones.tolist() == [1, 0, 0, 0, 0, 0, 0, 0]
        assert not extras["time_outs"].any()
        assert rewards[0] < -90.0
        lengths = env.episode_length_buf
        assert lengths[0] == 0
        assert (lengths[1:] > 10).all()
        torch.testing.assert_close(obs["policy"][0, 18:22], torch.full((4,), 2 * 0.806 - 1))
        torch.testing.assert_close(obs["policy"][0, :3], torch.zeros(3))
        assert (obs["policy"][1:, 18:22] == HOVER).all()


@both
def test_time_outs_are_told_from_terminations(engine, open_environment):
    """Twenty steps of hovering end by time-out, in each row when its own counter says so."""
    with open_environment(engine, **LEVEL) as env:
        env.reset(0)
        env.episode_length_buf = torch.tensor([0, 0, 0, 0, 10, 10, 0, 0])
        ends = []
        for step in range(1, 21):
            _, _, dones, extras = env.step(_hover(env))
            assert torch.equal(extras["time_outs"], dones.bool())
            ends += [(step, row) for row in dones.nonzero().flatten().tolist()]
        assert ends == [(10, 4), (10, 5), *((20, row) for row in (0, 1, 2, 3, 6, 7))]


@both
def test_the_same_seed_gives_the_same_flight_and_another_seed_another(engine, open_environment):
    """Seeds work both ways, resets within the flight included."""

    def fly(env, seed):
        flights = [env.reset(seed)["policy"].clone()]
        generator = torch.Generator().manual_seed(0)
        commands = [torch.rand(8, 4, generator=generator) * 2 - 1 for _ in range(40)]
        return torch.stack(flights + [env.step(command)[0]["policy"].clone() for command in commands])

    with open_environment(engine, episode_length_s=0.3) as env:
        first, again, other = fly(env, 7), fly(env, 7), fly(env, 8)
        assert torch.equal(first, again)
        assert not torch.allclose(first[0], other[0])


@both
def test_the_processs_random_numbers_are_left_alone(engine, open_environment):
    """What learning draws does not depend on how often an environment is reset or stepped in between."""
    with open_environment(engine, episode_length_s=0.1) as env:
        torch.manual_seed(5)
        alone = torch.rand(3)
        torch.manual_seed(5)
        env.reset(11)
        for _ in range(12):
            env.step(_hover(env))
        assert torch.equal(torch.rand(3), alone)


@both
def test_tensors_can_be_learned_from(engine, open_environment):
    """Nothing is made under inference mode and nothing carries a graph, even if the actions do."""
    with open_environment(engine) as env:
        actions = _hover(env).requires_grad_()
        obs, rewards, dones, extras = env.step(actions)
        tensors = [*obs.values(), rewards, dones, extras["time_outs"], env.episode_length_buf]
        assert not any(t.is_inference() or t.requires_grad for t in tensors)
        weight = torch.ones(26, requires_grad=True)
        (obs["policy"] @ weight).sum().backward()
        assert weight.grad is not None


@both
def test_each_step_has_extras_of_its_own(engine, open_environment):
    """What a step returned is not changed by the next one."""
    with open_environment(engine, **LEVEL) as env:
        env.reset(0)
        _, _, _, first = env.step(_hover(env))
        kept = first["time_outs"].clone()
        for _ in range(19):
            _, _, _, last = env.step(_hover(env))
        assert last["time_outs"].all()
        assert torch.equal(first["time_outs"], kept)


@both
def test_actions_are_clipped_to_the_agents_bound(engine, open_environment):
    """The agent's clip_actions is 1: an action of 5 flies like one of 1."""
    with open_environment(engine) as env:
        env.reset(2)
        inside = env.step(torch.ones(8, 4))[0]["policy"].clone()
        env.reset(2)
        assert torch.equal(env.step(torch.full((8, 4), 5.0))[0]["policy"], inside)
