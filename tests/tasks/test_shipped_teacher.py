"""The teacher that the repository ships: real RSL-RL loads it, and it flies as well as the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
import yaml
from rsl_rl.runners import OnPolicyRunner

import foundation
from foundation.policies.mlp import build_mlp
from foundation.ppo.versions import translate
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

FOLDER = Path(foundation.__file__).parent / "assets" / "teachers" / "point_ctrl"


def _env(num_envs: int, seed: int) -> QuadcopterPointCtrlEnv:
    return QuadcopterPointCtrlEnv(QuadcopterPointCtrlEnvCfg(scene=SceneCfg(num_envs), seed=seed))


def _checkpoint() -> dict:
    return torch.load(FOLDER / "model.pt", weights_only=True)


def test_it_is_small_and_documented():
    """Below 1 MB with its parameters beside it, and the actor is 26 -> 256, 256, 256 -> 4."""
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 1e6
    shapes = [tuple(v.shape) for k, v in _checkpoint()["actor_state_dict"].items() if k.endswith("weight")]
    assert shapes == [(256, 26), (256, 256), (256, 256), (4, 256)]
    env_cfg = yaml.safe_load((FOLDER / "params" / "env.yaml").read_text())
    assert env_cfg["sim"]["dt"] == 0.01


def test_the_real_library_loads_it_and_goes_on_training():
    """OnPolicyRunner.load takes actor, critic and optimiser; its policy is the plain network; one iteration runs."""
    env = _env(16, 0)
    agent = yaml.safe_load((FOLDER / "params" / "agent.yaml").read_text())
    runner = OnPolicyRunner(env, translate(agent), log_dir=None, device="cpu")
    runner.load(str(FOLDER / "model.pt"))
    network = build_mlp(26, [256, 256, 256], 4, "elu")
    state = _checkpoint()["actor_state_dict"]
    network.load_state_dict({k.removeprefix("mlp."): v for k, v in state.items() if k.startswith("mlp.")})
    obs = env.get_observations()
    with torch.no_grad():
        torch.testing.assert_close(runner.get_inference_policy()(obs), network(obs["policy"]))
    runner.learn(num_learning_iterations=1)


def _fly(num_envs: int, seed: int, std: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Fly one episode per environment: returns, survival, error in the last second, and what was seen and earned."""
    env = _env(num_envs, seed)
    checkpoint = _checkpoint()
    network = build_mlp(26, [256, 256, 256], 4, "elu")
    state = checkpoint["actor_state_dict"]
    network.load_state_dict({k.removeprefix("mlp."): v for k, v in state.items() if k.startswith("mlp.")})
    returns, errors, survived = (torch.zeros(num_envs) for _ in range(3))
    flying = torch.ones(num_envs, dtype=torch.bool)
    obs, actions = env.get_observations(), []
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _ in range(500):
            action = network(obs["policy"])
            actions.append(action)
            if std is not None:
                action = action + std * torch.randn(action.shape, generator=generator)
            obs, reward, dones, extras = env.step(action)
            returns += reward * flying
            ended = dones.bool() & flying
            errors = torch.where(ended, extras["episode_metrics"]["position_error"], errors)
            survived += ended & extras["time_outs"]
            flying &= ~ended
    return returns, survived, errors, torch.stack(actions)


@pytest.mark.slow
def test_it_flies_as_well_as_documented():
    """Over 4096 fresh episodes: return >= 670, survival >= 99.9 %, position error in the last second <= 1 cm."""
    returns, survived, errors, _ = _fly(4096, seed=20260)
    assert returns.mean() >= 670
    assert survived.mean() >= 0.999
    assert errors.mean() <= 0.01


def test_its_noise_is_affordable():
    """Acting with its own standard deviation costs something, and less than a tenth of the return."""
    std = _checkpoint()["actor_state_dict"]["distribution.std_param"]
    assert std.shape == (4,)
    assert (std > 1e-3).all()
    calm, noisy = _fly(256, seed=5)[0].mean(), _fly(256, seed=5, std=std)[0].mean()
    assert 0.9 * calm < noisy < 0.995 * calm


def test_its_commands_stay_near_the_motors_range():
    """Nearly all commands are within [-1, 1], so that imitating them is not imitating what the motors ignore."""
    actions = _fly(128, seed=6)[3]
    assert (actions.abs() > 1).float().mean() < 0.1
    assert actions.abs().max() < 5


def test_its_critic_knows_what_is_coming():
    """At the target the value is near the discounted sum of the best reward; far and falling it is lower."""
    state = _checkpoint()["critic_state_dict"]
    critic = build_mlp(26, [128, 128], 1, "elu")
    critic.load_state_dict({k.removeprefix("mlp."): v for k, v in state.items()})
    cfg = QuadcopterPointCtrlEnvCfg(scene=SceneCfg(64))
    cfg.init.at_target = 1.0
    with torch.no_grad():
        near = critic(QuadcopterPointCtrlEnv(cfg).get_observations()["policy"]).mean()
        cfg.init.at_target = 0.0
        far = critic(QuadcopterPointCtrlEnv(cfg).get_observations()["policy"]).mean()
    assert 40 < near < 1.5 / 0.02
    assert far < near - 5


def test_the_clip_of_the_demo_ends_when_all_have_arrived():
    """Over the demo's 64 flights the last vehicle is at its target, within 5 cm, before the clip's last step."""
    script = (Path(__file__).parents[2] / "scripts" / "demo.sh").read_text(encoding="utf-8")
    [length] = re.findall(r"--num_envs 64 .*--video_length (\d+)", script)
    env = _env(64, 42)
    state = _checkpoint()["actor_state_dict"]
    network = build_mlp(26, [256, 256, 256], 4, "elu")
    network.load_state_dict({k.removeprefix("mlp."): v for k, v in state.items() if k.startswith("mlp.")})
    obs = env.reset(42)
    with torch.no_grad():
        for _ in range(int(length)):
            obs, *_ = env.step(network(obs["policy"]))
    assert float(obs["policy"][:, :3].norm(dim=-1).max()) < 0.05
