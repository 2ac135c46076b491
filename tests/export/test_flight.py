"""Closed loops in which the exported file flies, not the network that it was made from."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch

import foundation
from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.deploy import Policy
from foundation.export.bundle import make_bundle
from foundation.export.formats import export
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.l2f_env import QuadcopterPointCtrlL2fEnv
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

EPISODES, SEED = 64, 3
PACKAGE = Path(foundation.__file__).resolve().parent
POLICIES = {
    "teacher": (PACKAGE / "assets" / "teachers" / "point_ctrl" / "model.pt", "policy"),
    "raptor": (HERE.parent / "checkpoints" / "published-raptor" / "checkpoint.h5", "l2f"),
}
"""Files of policies that fly well, and the group that each reads: an MLP, and a GRU with an initial state."""


class ExportedActor:
    """Acts by an exported file; episodes that begin are told to it as to any actor."""

    def __init__(self, path: Path, group: str) -> None:
        self.policy, self.group = Policy(path), group

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones``, or everywhere."""
        self.policy.reset(None if dones is None else dones.numpy())

    def act(self, obs) -> torch.Tensor:
        """Return the file's actions."""
        return torch.from_numpy(numpy.array(self.policy.step(obs[self.group].numpy())))


def environment(kind):
    """Return the task on the built-in physics or on the real simulator."""
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = EPISODES
    return kind(cfg)


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(QuadcopterPointCtrlEnv, id="torch"),
        pytest.param(QuadcopterPointCtrlL2fEnv, id="l2f", marks=pytest.mark.l2f),
    ],
)
@pytest.mark.parametrize("name", POLICIES)
def test_the_exported_file_flies_as_the_policy(name, kind, tmp_path):
    """Compiled C, ONNX and the NumPy archive fly 64 episodes with the policy's return to 1 %."""
    path, group = POLICIES[name]
    loaded = load_policy(path, Overrides())
    expected = evaluate(environment(kind), PolicyActor(loaded.network, ObsSelector([group])), EPISODES, SEED)
    wanted = expected.returns.mean()
    assert float(wanted) > 400
    for written in export(make_bundle(loaded), tmp_path / "exported", ["so", "onnx", "npz"]):
        flown = evaluate(environment(kind), ExportedActor(written.files[0], group), EPISODES, SEED)
        assert float(abs(flown.returns.mean() - wanted)) <= 0.01 * float(wanted), written.format
