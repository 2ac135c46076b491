"""The commands on CartPole: a shipped Q-network is distilled into a small student, and that is played."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from command_server import run_script
from tensordict import TensorDict

from foundation.cli.discrete_actions import check_choices
from foundation.config.distillation_cfg import CollectionCfg
from foundation.core.errors import UserError
from foundation.policies.actors import RandomActor
from foundation.policies.output import PolicyOutput
from foundation.rollout.mixture import PolicyMixture
from foundation.teachers import TeacherPolicyWrapper

ROOT = Path(__file__).resolve().parents[2]
TEACHER = ROOT / "foundation" / "assets" / "teachers" / "cartpole" / "teacher.zip"
NOTHING = TensorDict({}, batch_size=[3000])


def command(name: str, *argv: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return run_script(ROOT / name if "/" in name else name, *argv, folder=cwd)


@pytest.mark.slow
def test_cart_pole_is_distilled_and_played(tmp_path):
    """Without a word about losses or choices: >= 99 % of the teacher's return with 1/15 of its parameters or less."""
    few = ["distill.student.hidden_dims=[32,32]", "n_epochs=2", "epoch_teacher_forcing=1", "num_episodes=24"]
    few += ["num_envs=24", "final_eval_episodes=24", "--num_eval_episodes", "24", "learning_rate=3e-3", "seed=3"]
    done = command("distillation.py", "--task", "CartPole-v1", "--teacher_checkpoint", str(TEACHER), *few, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Discrete actions: 2 choices, loss kl" in done.stdout
    run = next((tmp_path / "logs" / "distillation" / "CartPole-v1").iterdir())
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher_return"] > 490.0 and summary["return_ratio"] >= 0.99
    assert summary["parameters"]["teacher"] >= 15 * summary["parameters"]["student"]
    assert 15.0 < summary["baselines"]["random"]["mean_return"] < 32.0  # known: 22 of a fair coin
    played = command("play.py", "--num_episodes", "16", "--json", "figures.json", "--seed", "4", cwd=tmp_path)
    assert played.returncode == 0, played.stderr
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["engine"] == "gymnasium" and figures["return"]["mean"] > 490.0
    assert TeacherPolicyWrapper(run / "best_student.pt").num_choices == 2


@pytest.mark.slow
def test_ppo_on_discrete_actions_is_one_line(tmp_path):
    """train.py says which trainer to use instead, and leaves no folder; DQN on a continuous task says so too."""
    done = command("train.py", "--task", "CartPole-v1", cwd=tmp_path)
    assert done.returncode == 2
    assert "error: CartPole-v1 takes one of 2 actions" in done.stderr.splitlines()[-1]
    assert "scripts/train_dqn.py --task CartPole-v1" in done.stderr
    assert not list(tmp_path.rglob("*.yaml"))
    done = command("scripts/train_dqn.py", "--task", "CartPole-v1", "--net_arch", "0", cwd=tmp_path)
    assert done.returncode == 2 and "--net_arch 0: each size must be at least 1" in done.stderr


@pytest.mark.slow
def test_ppo_trains_on_continuous_actions(tmp_path):
    """An iteration of RSL-RL's PPO on Pendulum with the agent config that is ours; no agent config is asked for."""
    few = ["--num_envs", "4", "--max_iterations", "1", "agent.num_steps_per_env=8", "agent.num_eval_episodes=2"]
    done = command("train.py", "--task", "Pendulum-v1", *few, "env.actions=scale", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run = next((tmp_path / "logs" / "rsl_rl" / "Pendulum-v1").iterdir())
    assert (run / "best_model.pt").is_file()


@pytest.mark.parametrize(
    ("declared", "count", "message"),
    [
        ({"action_choices": (3,)}, 2, r"the teacher chooses one of 2 actions and T takes one of 3"),
        ({"action_choices": (3,)}, None, r"the teacher's actions are continuous and T takes one of 3 actions"),
        ({"action_choices": (3, 2)}, 3, r"T takes 2 choices at once \(3 x 2\)"),
        ({"action_range": ((-1.0, 1.0),)}, 3, r"the teacher chooses one of 3 actions and T takes 1 numbers"),
    ],
)
def test_choices_that_do_not_fit_are_refused(declared, count, message):
    """A policy of other choices than the task's is named with both."""
    env = SimpleNamespace(num_actions=1, **declared)
    with pytest.raises(UserError, match=message):
        check_choices(count, env, "T", "teacher")  # pyright: ignore[reportArgumentType]


def test_choices_that_fit_are_returned():
    """The same choices on both sides, those of a task that declares nothing, and continuous actions."""
    assert check_choices(3, SimpleNamespace(action_choices=(3,)), "T", "teacher") == 3  # pyright: ignore[reportArgumentType]
    assert check_choices(3, SimpleNamespace(), "T", "teacher") == 3  # pyright: ignore[reportArgumentType]
    assert check_choices(None, SimpleNamespace(), "T", "teacher") is None  # pyright: ignore[reportArgumentType]


def test_random_actions_are_uniform_over_choices_and_bounds():
    """Each choice is drawn as often as the others; numbers fill their bounds, and [-1, 1] where there are none."""
    drawn = RandomActor(2, 0, choices=(3, 2)).act(NOTHING)
    for column, count in ((0, 3), (1, 2)):
        shares = torch.bincount(drawn[:, column].long(), minlength=count) / 3000
        assert len(shares) == count and torch.allclose(shares, torch.full((count,), 1 / count), atol=0.04)
    numbers = RandomActor(2, 0, bounds=((2.0, 6.0), (-float("inf"), 1.0))).act(NOTHING)
    for column, low, high in ((0, 2.0, 6.0), (1, -1.0, 1.0)):
        assert low <= float(numbers[:, column].min()) < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < float(numbers[:, column].max()) <= high


def test_exploration_among_choices():
    """Epsilon draws choices evenly, a student may sample its softmax, and noise on an index is refused."""
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(4000, 3)
    output = PolicyOutput(logits.argmax(-1, keepdim=True).float(), logits=logits)

    def shares(cfg: CollectionCfg) -> torch.Tensor:
        chosen = PolicyMixture(None, cfg, 4000, 1).actions(None, output, 0.0)  # pyright: ignore[reportArgumentType]
        return torch.bincount(chosen.flatten().long(), minlength=3) / 4000

    assert torch.allclose(shares(CollectionCfg(epsilon=0.6)), torch.tensor([0.2, 0.2, 0.6]), atol=0.03)
    sampled = shares(CollectionCfg(student_deterministic=False))
    assert torch.allclose(sampled, logits[0].softmax(-1), atol=0.03)
    with pytest.raises(UserError, match=r"noise_std adds a number to the actions.*collection\.epsilon"):
        shares(CollectionCfg(noise_std=0.1))
