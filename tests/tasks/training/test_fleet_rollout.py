"""The differentiable rollout of many vehicles."""

from __future__ import annotations

import torch

from foundation.tasks.quadrotor import mdp
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.tasks.quadrotor.training.fleet_rollout import FleetRollout, FleetRolloutCfg


def _env(num_envs: int = 12) -> QuadcopterPointCtrlEnv:
    return QuadcopterPointCtrlEnv(QuadcopterPointCtrlEnvCfg(SceneCfg(num_envs), seed=0, vehicles="sampled:6:1"))


def _actions(steps: int, num: int) -> torch.Tensor:
    return torch.rand(steps, num, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1


def test_it_flies_as_the_environment_does():
    """From the same states and forces, with the same commands, it sees what the environment sees."""
    env = _env()
    task = FleetRollout(env, FleetRolloutCfg(motor_noise=0.0))
    env.reset(5)
    task._state, task._action, task._forces = env.state.clone(), env.previous_action.clone(), env._forces.clone()
    for action in _actions(10, 12):
        obs, *_ = env.step(action)
        task.step(action)
        torch.testing.assert_close(task.observe(), obs["policy"], rtol=1e-4, atol=1e-5)


def test_its_reward_is_the_smooth_reward():
    """Far from all limits and with commands inside [-1, 1] the reward is ``mdp.smooth_reward``."""
    env = _env()
    task = FleetRollout(env)
    before = task._action
    action = _actions(1, 12)[0] * 0.5
    reward = task.step(action)
    s = task._state
    expected = mdp.smooth_reward(s[0:3], s[9:13], action.T, before, env.reward_weights, task.cfg.softness)
    torch.testing.assert_close(reward, expected)


def test_the_gradient_is_the_slope():
    """Without fading, the gradient of the reward after five steps by the first command is its slope."""
    actions = _actions(5, 12) * 0.5

    def reward(change: torch.Tensor) -> torch.Tensor:
        task = FleetRollout(_env(), FleetRolloutCfg(gradient_decay=1.0, max_gradient=1e9))
        out = torch.zeros(12)
        for number, action in enumerate(actions):
            out = out + task.step(action + change if number == 0 else action)
        return out.sum() + task.terminal_value().sum()

    change = torch.zeros(12, 4, requires_grad=True)
    reward(change).backward()
    assert change.grad is not None
    for env, rotor in ((0, 1), (7, 3)):
        nudge = torch.zeros(12, 4)
        nudge[env, rotor] = 2e-2
        slope = (reward(nudge) - reward(-nudge)) / 4e-2
        assert abs(slope - change.grad[env, rotor]) < 0.02 * abs(slope) + 0.02


def test_a_gradient_that_is_not_finite_is_left_out():
    """One environment's NaN or infinity does not reach the others, whose gradients only fade."""
    task = FleetRollout(_env(), FleetRolloutCfg(gradient_decay=0.5, max_gradient=10.0))
    grad = torch.ones(17, 12)
    grad[3, 1], grad[5, 2], grad[:, 4] = float("nan"), float("inf"), 100.0
    faded = task._fade_state(grad)
    assert torch.equal(faded[:, 0], torch.full((17,), 0.5))
    assert not faded[:, 1].any() and not faded[:, 2].any()
    torch.testing.assert_close(faded[:, 4].norm(), torch.tensor(5.0))


def test_passing_a_limit_costs_and_ends_only_beyond_the_slack():
    """At 1.5 times the velocity limit an episode goes on at a price; at three times it begins anew."""
    env = _env()
    task = FleetRollout(env)
    fast = task._state.clone()
    fast[3:6] = 0.0
    fast[3, 0], fast[3, 1] = 1.5 * env.limits[3, 0], 3.0 * env.limits[3, 1]
    task._state = fast
    task._age = torch.zeros(12)
    reward = task.step(torch.zeros(12, 4))
    assert task._age[:3].tolist() == [1.0, 0.0, 1.0]
    assert reward[0] < reward[2] - 100.0


def test_a_saved_rollout_goes_on_exactly():
    """States, forces, noise and starts to come are the same after loading."""
    first, second = FleetRollout(_env()), FleetRollout(_env(), noise_seed=9)
    actions = _actions(40, 12)
    for action in actions[:20]:
        first.step(action)
        first.observe()
    second.load_state_dict(first.state_dict())
    for action in actions[20:]:
        assert torch.equal(first.step(action), second.step(action))
        assert torch.equal(first.observe(), second.observe())
