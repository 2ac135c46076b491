"""Rows of many teachers: who labelled them, whose are drawn, and where the teachers' offsets go."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from toy_env import CountingEnv, LinearTeacher, Stateless

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.actors import PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.rollout.collector import Collector
from foundation.rollout.position_offset import PositionCorrection
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class
from foundation.teachers.assignment import ExpertSelector, TeacherAssignment, make_choice

POLICY = ObsSelector(["policy"])


class EnvNumberTeacher(Stateless):
    """Teacher k labels with 10 k: rows i % 2 in ``per_env``, or by the last column."""

    num_obs, num_actions, num_teachers, names = 3, 2, 2, ("zero", "ten")

    def __init__(self, mode: str):
        self.mode = mode

    def step(self, obs: torch.Tensor, state: Any = None) -> tuple[PolicyOutput, None]:
        index = obs[:, -1] if self.mode == "expert" else torch.arange(len(obs)) % 2
        return PolicyOutput((10.0 * index.float()).unsqueeze(-1).expand(-1, 2)), None


def collect(assignment: TeacherAssignment, selector: ObsSelector, mode: str) -> tuple[DistillationDataset, Any]:
    env = CountingEnv([[4, 6]] * 4, 6)
    dataset = DistillationDataset(BufferSpec(3, 4, 400, {"mean": 2}, chunk_steps=10, num_teachers=2))
    teacher = EnvNumberTeacher(mode)
    collector = Collector(
        env, teacher, teacher, dataset, selector, POLICY, mode="episodes", num_episodes=8, assignment=assignment
    )
    return dataset, collector.collect(0, 1.0)


def test_rows_keep_the_index_of_the_teacher_that_labelled_them():
    """In every stored row the label is its teacher's, and environment i follows teacher i % K."""
    dataset, stats = collect(TeacherAssignment(["zero", "ten"]), POLICY, "per_env")
    index = dataset.teacher_index[: dataset.num_chunks]
    env = dataset.rows[: dataset.num_chunks, :, :, 0].long()
    assert torch.equal(index.long(), env % 2)
    assert torch.equal(dataset.rows[: dataset.num_chunks, :, :, 3], 10.0 * index)
    assert Counter(stats.teacher.long().tolist()) == {0: 4, 1: 4}


def step_parity(obs: TensorDict) -> torch.Tensor:
    """Choose by the step of the episode."""
    return obs["policy"][:, 2] % 2


def test_an_expert_may_change_at_every_step():
    """A callable chooses by the step: labels and indices follow it within an episode."""
    choose = make_choice(f"{__name__}:step_parity", CountingEnv([[4]] * 4, 6).get_observations())
    assignment = TeacherAssignment(["zero", "ten"], choose, "distill.teacher.expert=x")
    dataset, _ = collect(assignment, ExpertSelector(POLICY, assignment), "expert")
    rows = dataset.rows[: dataset.num_chunks]
    assert torch.equal(rows[..., 3], 10.0 * (rows[..., 2] % 2))
    assert torch.equal(dataset.teacher_index[: dataset.num_chunks].float(), rows[..., 2] % 2)


def test_an_index_out_of_range_is_one_line_after_the_chunk():
    """Index 3 of two teachers is clamped on the step and refused, when the chunk ends."""
    assignment = TeacherAssignment(["zero", "ten"], lambda obs: obs["policy"][:, 0], "distill.teacher.expert=skill")
    with pytest.raises(UserError, match=r"distill\.teacher\.expert=skill chose teacher 3, but there are 2") as caught:
        collect(assignment, ExpertSelector(POLICY, assignment), "expert")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("expert", "words"),
    [("skil", "Did you mean"), ("policy", "is one column"), ("no_such:f", "cannot be imported")],
)
def test_what_cannot_choose_experts_is_one_line(expert, words, typed):
    """A misspelt group, a group of several columns and a missing function are named."""
    typed(expert)
    obs = TensorDict({"policy": torch.zeros(2, 3), "skill": torch.zeros(2, 1)}, batch_size=[2])
    with pytest.raises(UserError, match=words):
        make_choice(expert, obs)


@pytest.mark.parametrize("sequences", [False, True])
def test_rows_of_inactive_environments_are_not_drawn(sequences):
    """Of two chunks, one with environments 1 and 3 alone: every active row comes once in a pass, and no other."""
    dataset = DistillationDataset(
        BufferSpec(1, 4, 10_000, {"mean": 1}, chunk_steps=6, sequence_length=3 if sequences else 1)
    )
    for chunk in range(2):
        dataset.begin_chunk()
        for step in range(6):
            number = 1000.0 * chunk + 10.0 * step + torch.arange(4.0)
            output = PolicyOutput(number.unsqueeze(-1))
            dataset.write(step, number.unsqueeze(-1), output, torch.zeros(4, dtype=torch.bool))
        dataset.commit_chunk()
    dataset.activate([1], torch.tensor([False, True, False, True]))
    wanted = {10 * s + e for s in range(6) for e in range(4)} | {1000 + 10 * s + e for s in range(6) for e in (1, 3)}
    if sequences:
        (batch,) = dataset.sequence_minibatches(12, 1)
        assert torch.equal(batch.obs[1:] - batch.obs[:-1], torch.full((2, 12, 1), 10.0))
    else:
        (batch,) = dataset.flat_minibatches(36, 1)
    drawn = batch.obs.flatten().long().tolist()
    assert set(drawn) == wanted and len(drawn) == len(wanted)
    assert torch.equal(batch.obs, batch.targets.mean)


def test_a_chunk_that_is_written_again_is_active_again():
    """Eviction puts new rows where inactive ones were, and these are drawn."""
    dataset = DistillationDataset(BufferSpec(1, 2, 2, {"mean": 1}, chunk_steps=1))
    for number in range(2):
        dataset.begin_chunk()
        value = torch.full((2, 1), float(number))
        dataset.write(0, value, PolicyOutput(value), torch.zeros(2, dtype=torch.bool))
        dataset.commit_chunk()
        if number == 0:
            dataset.activate([0], torch.tensor([True, False]))
    (batch,) = dataset.flat_minibatches(2, 1)
    assert batch.obs.tolist() == [[1.0], [1.0]]


def test_emphasised_environments_are_drawn_so_many_times_as_often():
    """One environment counts five times, another not at all: a pass has its rows five times, and none of the other."""
    dataset = DistillationDataset(BufferSpec(1, 3, 1000, {"mean": 1}, chunk_steps=4))
    dataset.begin_chunk()
    for step in range(4):
        value = (10.0 * step + torch.arange(3.0)).unsqueeze(-1)
        dataset.write(step, value, PolicyOutput(value), torch.zeros(3, dtype=torch.bool))
    dataset.commit_chunk()
    dataset.activate([0], torch.tensor([1, 5, 0]))
    (batch,) = dataset.flat_minibatches(24, 1)
    wanted = {10 * step: 1 for step in range(4)} | {10 * step + 1: 5 for step in range(4)}
    assert Counter(batch.obs.flatten().long().tolist()) == wanted


# -- position offsets ---------------------------------------------------------------------------------------------


class PointEnv:
    """A point in space, seen from a body turned about z by an angle of its own environment; p' = p + 0.3 a.

    ``policy`` is (R^T p, R row by row), ``world`` is p. An episode terminates where |p_x| > 3.
    """

    num_actions, max_episode_length, limit = 3, 40, 40
    position_fields = {"policy": (0, "body"), "world": (0, "world")}  # noqa: RUF012
    rotation_fields = {"policy": 3}  # noqa: RUF012

    def __init__(self, num_envs: int):
        self.num_envs, self.device = num_envs, torch.device("cpu")
        self.cfg: dict[str, Any] = {}
        angle = torch.linspace(0.0, 3.0, num_envs)
        c, s, zero, one = angle.cos(), angle.sin(), torch.zeros(num_envs), torch.ones(num_envs)
        self.rotation = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], dim=-1).view(-1, 3, 3)
        self.generator = torch.Generator()
        self.reset(0)

    def reset(self, seed: int | None = None) -> TensorDict:
        if seed is not None:
            self.generator.manual_seed(seed)
        self.position = torch.rand(self.num_envs, 3, generator=self.generator) * 2.0 - 1.0
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        body = (self.rotation.transpose(1, 2) @ self.position.unsqueeze(-1)).squeeze(-1)
        groups = {"policy": torch.cat([body, self.rotation.flatten(1)], dim=-1), "world": self.position.clone()}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        self.position = self.position + 0.3 * actions
        self.episode_length_buf = self.episode_length_buf + 1
        terminated = self.position[:, 0].abs() > 3.0
        time_outs = (self.episode_length_buf >= self.limit) & ~terminated
        rewards, dones = 1.0 - self.position.norm(dim=-1), terminated | time_outs
        metrics = {"rest": self.position.norm(dim=-1)}
        drawn = torch.rand(self.num_envs, 3, generator=self.generator) * 2.0 - 1.0
        self.position = torch.where(dones.unsqueeze(-1), drawn, self.position)
        self.episode_length_buf = self.episode_length_buf * ~dones
        return self.get_observations(), rewards, dones, {"time_outs": time_outs, "episode_metrics": metrics}

    def close(self) -> None:
        """Nothing is open."""


OFFSETS = torch.tensor([[0.3, 0.0, -0.1], [0.0, -0.2, 0.2]])


class OffsetTeachers(Stateless, torch.nn.Module):
    """Two teachers, by environment: each drives the point to an offset of its own."""

    num_obs, num_actions, num_teachers, names, mode = 3, 3, 2, ("one", "two"), "per_env"

    def step(self, obs: torch.Tensor, state: Any = None) -> tuple[PolicyOutput, None]:
        return PolicyOutput(OFFSETS[torch.arange(len(obs)) % 2] - obs), None


def test_the_offsets_are_measured_by_teacher_in_the_world_frame():
    """The estimate is each teacher's known resting place; an environment whose episode terminated is left out."""
    env = PointEnv(8)
    correction = PositionCorrection(env, POLICY, 2)
    teacher = PolicyActor(OffsetTeachers(), ObsSelector(["world"]))
    counts = correction.measure(env, teacher, TeacherAssignment(["one", "two"]).index, seed=3)
    assert counts.tolist() == [4.0, 4.0]
    torch.testing.assert_close(correction.offsets, OFFSETS, rtol=0, atol=2e-3)

    class Thrower(OffsetTeachers):
        def step(self, obs, state=None):
            actions = super().step(obs)[0].mean.clone()
            actions[0] = 100.0  # environment 0 of teacher "one" flies away at once
            return PolicyOutput(actions), None

    counts = correction.measure(env, PolicyActor(Thrower(), ObsSelector(["world"])), lambda obs: torch.arange(8) % 2, 3)
    assert counts.tolist() == [3.0, 4.0]
    torch.testing.assert_close(correction.offsets, OFFSETS, rtol=0, atol=2e-3)


@pytest.mark.parametrize("steps", [39, 40])
def test_an_episode_may_end_in_time_a_step_before_its_greatest_length(steps):
    """As Isaac Lab's direct environments have it: what follows in the next episode does not enter."""
    env = PointEnv(8)
    env.limit = steps
    correction = PositionCorrection(env, POLICY, 2)
    counts = correction.measure(
        env, PolicyActor(OffsetTeachers(), ObsSelector(["world"])), lambda obs: torch.arange(8) % 2, 3
    )
    assert counts.tolist() == [4.0, 4.0]
    torch.testing.assert_close(correction.offsets, OFFSETS, rtol=0, atol=2e-3)


def test_the_stored_position_is_turned_into_the_groups_frame():
    """Stored is R^T (p - d) in the body-frame group and p - d in the world-frame one; nothing else changes."""
    env = PointEnv(4)
    obs, index = env.get_observations(), torch.tensor([0, 1, 0, 1])
    offset = OFFSETS[index]
    body = PositionCorrection(env, POLICY, 2)
    body.offsets.copy_(OFFSETS)
    stored = body(obs["policy"], obs, index)
    for i in range(4):
        torch.testing.assert_close(stored[i, :3], env.rotation[i].T @ (env.position[i] - offset[i]))
    assert torch.equal(stored[:, 3:], obs["policy"][:, 3:])
    both = ObsSelector(["policy", "world"], [0, 15])
    world = PositionCorrection(env, both, 2)
    world.offsets.copy_(OFFSETS)
    selected = both(obs)
    torch.testing.assert_close(world(selected, obs, index)[:, 12:], env.position - offset)
    assert torch.equal(selected, both(obs)), "what the student sees stays"


def run(folder: Path, correct: bool) -> float:
    """Distil both teachers into one student and return where it comes to rest [m]."""
    cfg = DistillationCfg(
        task="Point",
        seed=1,
        n_epochs=8,
        epoch_teacher_forcing=2,
        num_episodes=32,
        batch_size=64,
        learning_rate=5e-3,
        num_eval_episodes=16,
        final_eval_episodes=64,
    )
    cfg.student = student_cfg_class("mlp")(name="mlp")
    cfg.student.hidden_dims = [32, 32]
    cfg.teacher.obs_groups, cfg.teacher.position_offset_correction = ["world"], correct
    cfg.dataset.disk_gb = 0.0
    folder.mkdir()
    runner = DistillationRunner(PointEnv(16), OffsetTeachers(), cfg, RunDir(folder), make_eval_env=PointEnv)
    return runner.run()["student"]["rest"]


def test_a_student_rests_nearer_to_the_target_than_its_teachers(tmp_path):
    """Teachers rest 0.28 to 0.32 m away; with the correction the student rests within a third of that."""
    corrected, plain = run(tmp_path / "corrected", True), run(tmp_path / "plain", False)
    assert corrected < 0.09, f"rests at {corrected:.3f} m"
    assert plain > 1.5 * corrected, f"{plain:.3f} m without the correction"


@pytest.mark.parametrize(
    ("change", "groups", "columns", "words"),
    [
        ({"position_fields": {}}, ["policy"], None, "does not declare"),
        ({"rotation_fields": {}}, ["policy"], None, "rotation_fields"),
        ({"position_fields": {"world": (0, "world")}}, ["policy"], None, "declare no position"),
        ({}, ["policy"], [1, 5], "obs_slice"),
    ],
)
def test_a_task_that_declares_no_position_refuses_the_flag(change, groups, columns, words):
    """Missing positions, missing rotations, undeclared groups and slices through the position are one line each."""
    env = PointEnv(2)
    for name, value in change.items():
        setattr(env, name, value)
    with pytest.raises(UserError, match=words):
        PositionCorrection(env, ObsSelector(groups, columns), 1)


def test_a_single_teacher_can_be_corrected_too():
    """Without an assignment there is one offset for all environments."""
    env = PointEnv(4)
    teacher = LinearTeacher(-torch.eye(3), offset=0.2)
    correction = PositionCorrection(env, POLICY)
    correction.measure(env, PolicyActor(teacher, ObsSelector(["world"])), None, seed=1)
    torch.testing.assert_close(correction.offsets, torch.full((1, 3), 0.2), rtol=0, atol=2e-3)
