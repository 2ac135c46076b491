"""Environments of the mjlab engine, beside mjlab's own."""

from __future__ import annotations

import copy

import pytest
import torch
from mjlab.envs import ManagerBasedRlEnv
from mjlab.rl import RslRlVecEnvWrapper
from mjlab.tasks.registry import load_env_cfg
from mjlab_envs import CARTPOLE, GO1, ROUGH, SMALL_TERRAIN, actions_of, open_env

from foundation.config.env_state import EnvState
from foundation.core.errors import UserError
from foundation.engines import mjlab as engine_module
from foundation.engines import mjlab_vec_env
from foundation.engines.base import EnvCapabilities


@pytest.mark.parametrize("task", [CARTPOLE, GO1])
def test_a_step_is_that_of_mjlabs_own_wrapper(task):
    """Without noise, all that a step returns is what mjlab's own returns, to the bit, across new episodes."""
    values = {"episode_length_s": 0.5, "observations__actor__enable_corruption": False}
    with open_env(task, seed=3, **values) as env:
        inner = copy.deepcopy(env.unwrapped.cfg)
        inner.auto_reset = True
        theirs = RslRlVecEnvWrapper(ManagerBasedRlEnv(cfg=inner, device="cpu"))
        first, _ = theirs.env.reset(seed=5)
        ours = env.reset(5)
        assert all(torch.equal(ours[name], first[name]) for name in first)
        ended = 0
        for actions in actions_of(env, 35):
            obs, rewards, dones, extras = env.step(actions)
            their_obs, their_rewards, their_dones, their_extras = theirs.step(actions)
            assert torch.equal(rewards, their_rewards)
            assert torch.equal(dones.long(), their_dones)
            assert torch.equal(extras["time_outs"], their_extras["time_outs"])
            assert all(torch.equal(obs[name], their_obs[name]) for name in their_obs.keys())  # noqa: SIM118
            logged = {key: value for key, value in their_extras["log"].items() if key.startswith("Episode_")}
            assert logged.items() <= extras["log"].items()
            ended += int(dones.sum())
        assert ended >= env.num_envs


def test_the_last_observations_of_an_episode_are_those_that_a_longer_one_goes_on_with():
    """``final_observations`` are what the environment without the time limit observes at that step."""
    with open_env(seed=2, episode_length_s=0.5) as env:
        actions = actions_of(env, env.max_episode_length)
        env.reset(4)
        for action in actions:
            obs, _, dones, extras = env.step(action)
        assert dones.all() and extras["time_outs"].all()
        final = extras["final_observations"].clone()
        env.step(actions[0])
    assert not torch.equal(final["actor"], obs["actor"])
    with open_env(seed=2) as env:
        env.reset(4)
        for action in actions:
            obs, _, dones, extras = env.step(action)
        assert not dones.any() and "final_observations" not in extras
        assert torch.equal(obs["actor"], final["actor"])


def test_the_others_keep_their_observations_where_an_episode_ends():
    """One environment's end changes no other's observations, though every group is noisy."""
    noisy = {"observations__actor__enable_corruption": True}
    seen = []
    for ends in (False, True):
        with open_env(GO1, seed=2, **noisy) as env:
            env.reset(6)
            if ends:
                env.episode_length_buf = torch.tensor([env.max_episode_length - 1, 0, 0, 0])
            obs, _, dones, _ = env.step(actions_of(env, 1)[0])
            assert dones.tolist() == [ends, False, False, False]
            seen.append(obs["actor"])
    assert torch.equal(seen[0][1:], seen[1][1:])
    assert not torch.equal(seen[0][0], seen[1][0])


def test_a_fall_is_no_time_out():
    """Go1 that is dropped on its back ends by termination: done, and not timed out."""
    with open_env(GO1, num_envs=2, episode_length_s=4.0) as env:
        env.reset(1)
        robot = env.unwrapped.scene["robot"]
        pose = robot.data.default_root_state[:1, :7].clone()
        pose[0, 2] = 0.3
        pose[0, 3:7] = torch.tensor([0.0, 1.0, 0.0, 0.0])
        robot.write_root_link_pose_to_sim(pose, env_ids=torch.tensor([0]))
        ended = [env.step(torch.zeros(2, env.num_actions)) for _ in range(3)]
        first = next(step for step in ended if step[2].any())
        assert first[2].tolist() == [True, False]
        assert not first[3]["time_outs"].any()


def test_a_tasks_with_a_finite_horizon_bootstraps_nothing():
    """Its end of time is no time-out, and is the episode's success."""
    with open_env(episode_length_s=0.1, is_finite_horizon=True) as env:
        env.reset(0)
        ends = [env.step(torch.zeros(4, 1)) for _ in range(2)][-1]
        assert ends[2].all() and not ends[3]["time_outs"].any()
        assert ends[3]["episode_metrics"]["success"].all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_actions_that_are_not_finite_are_refused(value):
    """Where mjlab goes on with finite rewards, an error names the action and the environment."""
    with open_env() as env:
        actions = torch.zeros(4, 1)
        actions[2, 0] = value
        with pytest.raises(UserError, match=r"action 0 of environment 2 is (nan|inf)"):
            env.step(actions)


def test_random_numbers_of_others_are_left_alone():
    """Making, resetting and stepping an environment draws nothing from the process's generators and seeds none."""
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    with open_env(GO1, num_envs=2) as env:
        env.reset(1)
        env.step(torch.zeros(2, env.num_actions))
        assert torch.equal(torch.rand(3), expected)


def test_an_override_of_one_group_leaves_the_other_alone():
    """Actor and critic share the objects of their terms in mjlab's config; here each has its own."""
    groups = load_env_cfg(CARTPOLE).observations
    assert groups["actor"].terms["cart_vel"] is groups["critic"].terms["cart_vel"]
    with open_env(observations__actor__terms__cart_vel__scale=2.0) as env:
        obs = env.step(actions_of(env, 1)[0])[0]
        assert torch.equal(obs["actor"][:, 3], 2.0 * obs["critic"][:, 3])
        assert torch.equal(obs["actor"][:, 4], obs["critic"][:, 4])


def test_what_an_environment_can_do_is_declared():
    """Its step is 50 ms, a process holds one of it, and it draws."""
    with open_env() as env:
        declared = EnvCapabilities.of(env)
    assert declared.step_dt == pytest.approx(0.05)
    assert declared.one_per_process and declared.can_render and not declared.can_save_state


def test_levels_of_terrain_are_carried_and_kept_by_a_reset_of_all():
    """Robots stand on the levels of a checkpoint; only the end of an episode, not a reset of all, changes them."""
    with open_env(ROUGH, num_envs=3, commands__twist__rel_standing_envs=0.0, **SMALL_TERRAIN) as env:
        bare = env.unwrapped
        env.load_env_state(EnvState(40_000, (1, 1, 2, 2, 9, 9)))  # of six environments, one of them on a harder terrain
        for _ in range(2):
            assert env.env_state() == EnvState(40_000, (1, 2, 3))  # the last level is the fourth
            offset = bare.scene["robot"].data.root_link_pos_w - bare.scene.terrain.env_origins
            assert (offset[:, :2].abs() <= 0.51).all()  # the task's starts are half a metre around the origin
            env.reset(5)
        env.episode_length_buf = torch.full((3,), env.max_episode_length - 1)
        _, _, dones, _ = env.step(torch.zeros(3, env.num_actions))
        assert dones.all()
        assert env.env_state().terrain_levels == (0, 1, 2)  # none has walked as far as it was told to


@pytest.mark.parametrize("task", [CARTPOLE, GO1])
def test_graphs_give_the_same_bits(task):
    """Steps with the kernels in graphs equal those without, new episodes included."""
    with open_env(task) as env:
        cfg = env.unwrapped.cfg
        engine = engine_module.MjlabEngine()
        assert mjlab_vec_env.graphs_agree(lambda: engine._build(copy.deepcopy(cfg), None))


def test_graphs_that_differ_are_found(monkeypatch):
    """A reset that graphs lose makes the trial fail."""
    with open_env() as env:
        cfg = env.unwrapped.cfg
    engine = engine_module.MjlabEngine()

    def build():
        made = engine._build(copy.deepcopy(cfg), None)
        simulation = made.unwrapped.sim
        step = simulation.step
        monkeypatch.setattr(simulation, "step", lambda: None if simulation.use_cuda_graph else step())
        return made

    assert not mjlab_vec_env.graphs_agree(build)
