"""Observations of bytes, as games and cameras give, are stored as bytes and learned from as numbers."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from toy_env import RegulatorEnv, Stateless

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.policies.output import PolicyOutput
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class

CARTPOLE = Path(__file__).resolve().parents[2] / "foundation" / "assets" / "teachers" / "cartpole" / "teacher.zip"


class ByteEnv(RegulatorEnv):
    """The regulator, its state seen in steps of 1/32."""

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": (self.state * 32 + 128).clamp(0, 255).to(torch.uint8)}, batch_size=[self.num_envs])


class ByteTeacher(Stateless, torch.nn.Module):
    """Drives what it sees to the origin."""

    num_obs, num_actions = 2, 2

    def step(self, obs: torch.Tensor, state: torch.Tensor | None = None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(-0.8 * (obs.float() - 128) / 32), None


@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_bytes_are_stored_as_bytes(tmp_path, student):
    """A run stores two bytes for two observations, in the environment's values, and its student does as its teacher."""
    cfg = DistillationCfg(
        task="Toy", seed=1, n_epochs=8, epoch_teacher_forcing=2, num_episodes=16, learning_rate=1e-2,
        num_eval_episodes=16,
        batch_size=4 if student == "gru" else 32, sequence_length=4 if student == "gru" else None,
        final_eval_episodes=32,
    )  # fmt: skip
    cfg.student = student_cfg_class(student)(name=student)
    runner = DistillationRunner(ByteEnv(8), ByteTeacher(), cfg, RunDir(tmp_path), make_eval_env=ByteEnv)
    summary = runner.run()
    stored = runner.dataset.column("obs")[: runner.dataset.num_chunks]
    assert stored.dtype == torch.uint8 and stored.shape[-1] == 2 and len(stored.unique()) > 50
    label = -0.8 * (stored.float() - 128) / 32
    assert torch.allclose(runner.dataset.column("mean")[: runner.dataset.num_chunks], label)
    of_numbers = 4 * 2 + 1  # two targets of float32, and the mark of an episode's start
    memory = 4 * runner.student.state_size / runner.sequence_length if runner.dataset.states is not None else 0
    assert runner.dataset.spec.transition_bytes == of_numbers + 2 + memory
    assert summary["return_ratio"] > 0.97


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"_shape": [2, 2], "dtype": "bool"}, ""),
        ({"_shape": [2, 2], "dtype": "uint8"}, r"reads images \[2, 2\], which its library divides by 255"),
        ({"_shape": [2, 3]}, r"states observations of shape \[2, 3\], but its weights expect 4"),
    ],
)
def test_a_teacher_of_boards_reads_them_flat(tmp_path, space, message):
    """Stable-Baselines3 flattens an observation of several dimensions; images it scales besides."""
    path = tmp_path / "teacher.zip"
    with zipfile.ZipFile(CARTPOLE) as source, zipfile.ZipFile(path, "w") as changed:
        for name in source.namelist():
            content = source.read(name)
            if name == "data":
                data = json.loads(content)
                data["observation_space"] |= space
                content = json.dumps(data).encode()
            changed.writestr(name, content)
    if not message:
        assert load_policy(path, Overrides()).network.num_obs == 4
        return
    with pytest.raises(UserError, match=message):
        load_policy(path, Overrides())
