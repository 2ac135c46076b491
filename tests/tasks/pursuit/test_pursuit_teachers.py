"""The shipped teachers of chasing and evading: small, readable by RSL-RL, and as good as they are said to be."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
import yaml
from rsl_rl.runners import OnPolicyRunner

import foundation
from foundation.core.errors import UserError
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.ppo.versions import translate
from foundation.rollout.evaluate import evaluate
from foundation.tasks.pursuit.chase import QuadcopterChaseEnv, QuadcopterChaseEnvCfg
from foundation.tasks.pursuit.evade import QuadcopterEvadeEnv, QuadcopterEvadeEnvCfg
from foundation.tasks.quadrotor.env_cfg import SceneCfg
from foundation.teachers import TeacherPolicyWrapper

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "scripts"))
import ship_teacher

TEACHERS = Path(foundation.__file__).parent / "assets" / "teachers"
ENVS = {
    "chase": lambda n: QuadcopterChaseEnv(QuadcopterChaseEnvCfg(scene=SceneCfg(n))),
    "evade": lambda n: QuadcopterEvadeEnv(QuadcopterEvadeEnvCfg(scene=SceneCfg(n))),
}
LEAST = {"chase": (650.0, 0.97), "evade": (330.0, 0.7)}
"""Mean return and success rate that are promised."""


@pytest.mark.parametrize("task", list(ENVS))
def test_it_does_its_task(task):
    """From fresh starts of another seed; below 1 MB, and its critic and optimiser go on in RSL-RL."""
    folder = TEACHERS / task
    assert sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 1e6
    policy = TeacherPolicyWrapper(folder / "model.pt")
    actor = PolicyActor(policy, ObsSelector(policy.obs_groups or []))
    summary = evaluate(ENVS[task](128), actor, 128, seed=987_654).summary()
    least_return, least_success = LEAST[task]
    assert summary["mean_return"] > least_return
    assert summary["success_rate"] > least_success
    agent = yaml.safe_load((folder / "params" / "agent.yaml").read_text())
    runner = OnPolicyRunner(ENVS[task](16), translate(agent), log_dir=None, device="cpu")
    runner.load(str(folder / "model.pt"))
    runner.learn(num_learning_iterations=1)


@pytest.mark.parametrize("task", list(ENVS))
def test_the_other_tasks_columns_are_inputs_of_order_one(task):
    """The task's columns never changed in training; flipped, no normalised input is as large as 1 / 0.01."""
    policy = TeacherPolicyWrapper(TEACHERS / task / "model.pt")
    other = ENVS["evade" if task == "chase" else "chase"](8).get_observations()["policy"]
    model = torch.load(TEACHERS / task / "model.pt", weights_only=True)["actor_state_dict"]
    scaled = (other - model["obs_normalizer._mean"]) / (model["obs_normalizer._std"] + 0.01)
    assert scaled[:, 28:30].abs().max() <= 1.0
    assert policy.act(other).isfinite().all()


def test_constant_columns_are_opened_and_no_other():
    """A deviation of 1 where the variance is 0; the rest stays bit for bit, and so does the function there."""
    var = torch.tensor([[0.25, 0.0, 1e-12]])
    model = {"obs_normalizer._var": var, "obs_normalizer._std": var.sqrt(), "mlp.0.weight": torch.ones(1)}
    assert ship_teacher.open_constant_columns(model) == 1
    assert torch.equal(model["obs_normalizer._var"], torch.tensor([[0.25, 1.0, 1e-12]]))
    assert torch.equal(model["obs_normalizer._std"], torch.tensor([[0.5, 1.0, 1e-6]]))
    assert ship_teacher.open_constant_columns({"mlp.0.weight": torch.ones(1)}) == 0


def test_an_optimiser_that_is_not_wanted_is_left_out(tmp_path):
    """Without it the file has the models and the iteration as they were, and nothing else is lost."""
    (tmp_path / "params").mkdir()
    for name in ship_teacher.SETTINGS:
        (tmp_path / "params" / name).write_text("seed: 1\n")
    models = {name: {"mlp.0.weight": torch.ones(2)} for name in ship_teacher.MODELS}
    torch.save({**models, "optimizer_state_dict": {"state": {}}, "iter": 3}, tmp_path / "best_model.pt")
    for flags, names in (([], {"optimizer_state_dict"}), (["--without_optimizer"], set())):
        out = tmp_path / f"out{len(flags)}"
        assert ship_teacher.main([str(tmp_path), str(out), *flags]) == 0
        shipped = torch.load(out / "model.pt", weights_only=True)
        assert set(shipped) == {*ship_teacher.MODELS, "iter", *names}
        assert (out / "params" / "env.yaml").read_text() == "seed: 1\n"


def test_a_run_without_an_evaluation_is_named(tmp_path):
    """The folder that was given is in the error."""
    with pytest.raises(UserError, match=r"best_model\.pt: no such file; give the folder of a run"):
        ship_teacher.main([str(tmp_path), str(tmp_path / "out")])
