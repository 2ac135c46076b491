"""Our PPO beside that of RSL-RL 3.0.1, which Isaac Lab 2.3 has: the same losses and weights from the same start."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from rsl_rl_versions import run_with
from toy_env import RegulatorEnv

from foundation.config.agent_cfg import PPOAlgorithmCfg
from foundation.policies.obs_groups import ObsSelector
from foundation.ppo.critic import ValueFunction
from foundation.ppo.ppo import Ppo
from foundation.ppo.rollout import RolloutCollector
from foundation.students import StudentPolicy

PROGRAM = Path(__file__).with_name("run_rsl_rl_3.py")
NUM_ENVS = 6
NUM_STEPS = 8
ITERATIONS = 5
DIMS = [16, 12]


def named_as_theirs(actor: StudentPolicy, critic: ValueFunction) -> dict[str, torch.Tensor]:
    """Return our weights by RSL-RL 3.x's names."""
    weights = {"log_std": actor.state_dict()["log_std"]}
    for name, value in actor.state_dict().items():
        if name.startswith("body."):
            weights[name.replace("body.", "actor.")] = value
        elif name.startswith("mean."):
            weights[name.replace("mean.", f"actor.{2 * len(DIMS)}.")] = value
    prefix = "trunk.layers."
    weights |= {
        f"critic.{name.removeprefix(prefix)}": value
        for name, value in critic.state_dict().items()
        if name.startswith(prefix)
    }
    return {name: value.clone() for name, value in weights.items()}


@pytest.mark.parametrize("values", [{}, {"use_clipped_value_loss": False}, {"entropy_coef": 0.05}])
def test_without_retention_it_is_the_ppo_of_rsl_rl_3(values, tmp_path):
    """Five iterations of RSL-RL 3.0.1's own PPO: the same losses to 1e-5, and the same weights to 1e-6.

    Ours follows what 5.x has changed in PPO, which the test leaves out: 3.0.1 adds 1e-5 inside the KL's logarithm, so
    that its adaptive rate rises in every iteration's first batch, and it clips actor and critic by one common norm.
    """
    options = {
        "num_learning_epochs": 2,
        "num_mini_batches": 3,
        "learning_rate": 3e-3,
        "max_grad_norm": 1e9,
        "schedule": "fixed",
    }
    cfg = PPOAlgorithmCfg(**options, **values)
    torch.manual_seed(0)
    ppo = Ppo(
        StudentPolicy(2, 2, DIMS, "elu", stochastic=True), ValueFunction.fresh(3, DIMS, "elu", normalize=False), cfg
    )
    later = ("class_name", "optimizer", "rnd_cfg", "symmetry_cfg")  # what 3.0.1 does not take, and what is off
    known = {name: value for name, value in asdict(cfg).items() if name not in later}
    start = {"weights": named_as_theirs(ppo.actor, ppo.critic), "settings": known, "dims": DIMS, "num_envs": NUM_ENVS}
    torch.save(start, tmp_path / "start.pt")
    ran = run_with("3.0.1", PROGRAM, tmp_path / "start.pt", tmp_path / "end.pt", str(ITERATIONS), cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    theirs = torch.load(tmp_path / "end.pt", weights_only=True)

    env = RegulatorEnv(NUM_ENVS)
    selectors = ObsSelector(["policy"]), ObsSelector(["privileged"])
    collector = RolloutCollector(env, ppo, *selectors, NUM_STEPS, random_starts=False, seed=3)
    for iteration in range(ITERATIONS):
        torch.manual_seed(iteration)
        losses = ppo.update(collector.collect()[0])
        their_losses = theirs["losses"][iteration]
        assert losses["surrogate"] == pytest.approx(their_losses["surrogate"], rel=1e-4, abs=1e-6)
        assert losses["value"] == pytest.approx(their_losses["value_function"], rel=1e-5)
        assert losses["entropy"] == pytest.approx(their_losses["entropy"], rel=1e-5)
    for name, value in named_as_theirs(ppo.actor, ppo.critic).items():
        torch.testing.assert_close(value, theirs["weights"][name], atol=1e-6, rtol=1e-5, msg=name)
