"""Fine-tuning runs on a small linear system: every student becomes the actor, exact resume, critics, stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import differing
from toy_env import RegulatorEnv

import foundation
from foundation.config.agent_cfg import PPOAlgorithmCfg
from foundation.config.distillation_cfg import ScheduleCfg
from foundation.config.finetune_cfg import ActorCfg, CriticCfg, FinetuneCfg, RetainedTeacherCfg
from foundation.core.errors import RunInterrupted, UserError
from foundation.ppo.finetune import START, FinetuneRunner
from foundation.ppo.settings import AgentSettings
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import BEST, LATEST
from foundation.students import student_cfg_class, student_from_description
from foundation.students.base import Student
from foundation.teachers import TeacherPolicyWrapper

NUM_ENVS = 8


def write_student(path: Path, name: str = "mlp", seed: int = 0, **options: Any) -> Path:
    """Write the checkpoint of an untrained student of the system's state."""
    torch.manual_seed(seed)
    described = {"num_obs": 2, "num_actions": 2, "name": name, **options}
    student = student_from_description(described)
    student.normalizer.update(torch.randn(100, 2) + 0.5)
    checkpoint = {"student": student.describe(), "model_state_dict": student.state_dict(), "task": "Regulator"}
    torch.save(checkpoint | {"obs_groups": ["policy"], "obs_slice": None, "clip_actions": None}, path)
    return path


def settings(**values: Any) -> AgentSettings:
    """PPO's settings."""
    algorithm = PPOAlgorithmCfg(num_learning_epochs=2, num_mini_batches=2, learning_rate=3e-3, **values)
    return AgentSettings(algorithm, 6, ["policy"], ["privileged"], [16], "elu", 0.0, None)


def config(checkpoint: Path | None, **values: Any) -> FinetuneCfg:
    """A run of a second."""
    small = {"max_iterations": 6, "eval_interval": 2, "num_eval_episodes": 8, "final_eval_episodes": 16}
    start = None if checkpoint is None else str(checkpoint)
    return FinetuneCfg(task="Regulator", device="cpu", checkpoint=start, **{**small, **values})


def make_runner(folder: Path, cfg: FinetuneCfg, **options: Any) -> FinetuneRunner:
    """Build a run in a folder."""
    folder.mkdir(exist_ok=True)
    known = {"make_eval_env": RegulatorEnv, **options}
    return FinetuneRunner(RegulatorEnv(NUM_ENVS), cfg, settings(), RunDir(folder), **known)


STUDENTS = [
    ("mlp", {"hidden_dims": [8]}),
    ("mlp", {"hidden_dims": [8], "stochastic": True, "init_std": 0.3}),
    ("mlp", {"hidden_dims": [8], "stochastic": True, "state_dependent_std": True, "value_head": True}),
    ("gru", {"encoder_dims": [8], "hidden_size": 4}),
    ("lstm", {"encoder_dims": [], "hidden_size": 4, "hidden_dims": [8]}),
    ("history", {"length": 3, "hidden_dims": [8]}),
    ("mlp", {"hidden_dims": [8], "distribution": "tanh"}),
]
IDS = ["deterministic", "gaussian", "state_dependent_std", "gru", "lstm", "history", "tanh"]


@pytest.mark.parametrize(("name", "options"), STUDENTS, ids=IDS)
def test_every_student_becomes_the_actor_and_its_result_is_a_policy_again(name, options, tmp_path):
    """It begins with the student's mean actions to the bit, learns, and its result is a teacher and a start again."""
    start = write_student(tmp_path / "s.pt", name, **options)
    runner = make_runner(tmp_path / "run", config(start, critic=CriticCfg(warmup_iterations=1)))
    obs = torch.randn(5, 3, 2)
    teacher = TeacherPolicyWrapper(start)
    assert torch.equal(runner.student.sequence(obs)[0].mean, teacher.sequence(obs)[0].mean)
    summary = runner.run()
    assert summary["start_return"] is not None and summary["iterations"] == 6
    final = TeacherPolicyWrapper(tmp_path / "run" / "final_student.pt")
    assert final.has_std and final.obs_groups == ["policy"]
    assert not torch.equal(final.sequence(obs)[0].mean, teacher.sequence(obs)[0].mean)
    again = make_runner(tmp_path / "next", config(tmp_path / "run" / BEST, max_iterations=2, kl_coef=1.0))
    assert again.run()["iterations"] == 2


@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_a_run_that_is_interrupted_and_resumed_ends_with_the_same_bits(name, tmp_path):
    """Stopped in the fourth iteration of six, with a KL that is held to a target: the last checkpoint is the same."""
    start = write_student(tmp_path / "s.pt", name)
    values = {"kl_coef": 0.5, "critic": CriticCfg(warmup_iterations=1)}
    make_runner(tmp_path / "whole", config(start, **values)).run()
    polls = []

    def stop() -> str | None:
        polls.append(None)
        return "SIGINT" if len(polls) > 30 else None

    with pytest.raises(RunInterrupted):
        make_runner(tmp_path / "half", config(start, **values), interrupted=stop).run()
    resumed = make_runner(tmp_path / "half", config(start, **values))
    assert resumed.resume() == "" and 0 < resumed.epoch < 6
    resumed.run()
    for file in (LATEST, BEST, "final_student.pt"):
        names = differing(tmp_path / "whole" / file, tmp_path / "half" / file)
        assert not names, (file, names)
    whole, half = (json.loads((tmp_path / run / "summary.json").read_text()) for run in ("whole", "half"))
    assert whole["evaluations"] == half["evaluations"] and whole["best"] == half["best"]


def test_the_same_seed_gives_the_same_run_and_another_another(tmp_path):
    """Bits of the last policy."""
    start = write_student(tmp_path / "s.pt")
    for run, seed in (("one", 1), ("two", 1), ("three", 2)):
        make_runner(tmp_path / run, config(start, seed=seed, max_iterations=3)).run()
    assert not differing(tmp_path / "one" / "final_student.pt", tmp_path / "two" / "final_student.pt")
    assert differing(tmp_path / "one" / "final_student.pt", tmp_path / "three" / "final_student.pt")


def test_the_policy_is_frozen_in_the_warm_up_and_never_worse_than_the_start_as_best(tmp_path):
    """After the critic's iterations the mean actions are those of the start; the best policy is at least as good."""
    start = write_student(tmp_path / "s.pt")
    runner = make_runner(tmp_path / "run", config(start, critic=CriticCfg(warmup_iterations=3)))
    assert runner.warmup == 3
    before = {name: value.clone() for name, value in runner.student.state_dict().items()}
    runner.begin()
    for epoch in range(3):
        runner.run_epoch(epoch)
    assert all(torch.equal(value, before[name]) for name, value in runner.student.state_dict().items())
    runner.run_epoch(3)
    assert not all(torch.equal(value, before[name]) for name, value in runner.student.state_dict().items())
    assert runner.best_return >= runner.evaluations[0][1]
    assert (tmp_path / "run" / START).exists()


def test_a_recurrent_critic_resumes_with_the_same_bits_and_knows_what_it_has_seen(tmp_path):
    """Of an actor with memory: its value depends on the step before; stopped and resumed, the last checkpoint is equal.

    Its values of a rollout are those of single steps, with the memory that the rollout began with.
    """
    start = write_student(tmp_path / "s.pt", "gru")
    critic = CriticCfg(memory="lstm", hidden_size=4, warmup_iterations=1)
    runner = make_runner(tmp_path / "whole", config(start, critic=critic))
    obs = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))  # the run draws from the global one
    assert runner.critic.state_size == 8
    values = runner.critic.sequence(obs, None, None)[0]
    first, state = runner.critic.step(obs[0], None)
    torch.testing.assert_close(values[1], runner.critic.step(obs[1], state)[0])
    assert not torch.allclose(values[1], runner.critic.step(obs[1], None)[0]) and torch.allclose(values[0], first)
    runner.run()
    half = make_runner(tmp_path / "half", config(start, critic=critic))
    half.begin()
    for epoch in range(3):
        half.run_epoch(epoch)
    resumed = make_runner(tmp_path / "half", config(start, critic=critic))
    assert resumed.resume() == ""
    resumed.run()
    assert not differing(tmp_path / "whole" / LATEST, tmp_path / "half" / LATEST)


def test_a_critics_layer_of_rsl_rls_size_of_the_input_is_that_large(tmp_path, monkeypatch):
    """-1 among the agent config's ``hidden_dims``: as many units as the critic has observations."""
    agent = settings()
    agent.critic_dims = [-1, 5]
    monkeypatch.setitem(globals(), "settings", lambda: agent)
    runner = make_runner(tmp_path / "run", config(write_student(tmp_path / "start.pt")))
    layers = [layer for layer in runner.critic.modules() if isinstance(layer, torch.nn.Linear)]
    assert [layer.in_features for layer in layers] == [3, 3, 5]


def test_by_default_a_fresh_critic_is_warmed_up_for_an_actor_that_is_there(tmp_path):
    """Ten iterations; none for a fresh actor, which has nothing to lose."""
    start = write_student(tmp_path / "s.pt")
    assert make_runner(tmp_path / "a", config(start, max_iterations=50)).warmup == 10
    teacher = RetainedTeacherCfg(checkpoint=str(start))
    fresh = config(None, teacher=teacher, alpha=1.0, student=student_cfg_class("mlp")())
    assert make_runner(tmp_path / "b", fresh).warmup == 0


def test_a_fresh_actor_learns_from_its_teacher_alone_with_alpha_1(tmp_path):
    """Kickstarting begins as DAgger: after some iterations the fresh actor's actions are near the teacher's."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    cfg = config(None, teacher=RetainedTeacherCfg(checkpoint=str(start)), alpha=1.0, max_iterations=60)
    cfg.student = student_cfg_class("mlp")(hidden_dims=[32])
    runner = make_runner(tmp_path / "run", cfg)
    obs = torch.randn(200, 2)
    target = TeacherPolicyWrapper(start).step(obs)[0].mean

    @torch.no_grad()
    def error() -> float:
        return float((runner.student.step(obs)[0].mean - target).square().mean())

    before = error()
    runner.run()
    assert error() < 0.1 * before


def test_the_rate_follows_the_kl_only_where_ppo_has_a_share(tmp_path):
    """Distillation moves a policy of little noise by far more than PPO may: the rule would end at its smallest rate."""
    policies = [write_student(tmp_path / f"{seed}.pt", seed=seed, hidden_dims=[8]) for seed in (0, 1)]
    teacher = RetainedTeacherCfg(checkpoint=str(policies[1]))
    rates = {}
    for alpha in (1.0, 0.9, ScheduleCfg("linear", 1.0, 0.5)):
        cfg = config(policies[0], alpha=alpha, teacher=teacher, critic=CriticCfg(warmup_iterations=0))
        cfg.actor.init_std = 0.01
        runner = make_runner(tmp_path / str(len(rates)), cfg)
        runner.run()
        rates[len(rates)] = runner.ppo.learning_rate
    assert rates[0] == 3e-3
    assert max(rates[1], rates[2]) < 1e-3


def test_a_large_kl_keeps_the_policy_and_none_lets_it_go(tmp_path):
    """After the same iterations the retained policy is nearer to the start than the one that PPO alone has trained."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    obs = torch.randn(200, 2)
    target = TeacherPolicyWrapper(start).step(obs)[0].mean
    distance = {}
    for kl_coef in (0.0, 100.0):
        cfg = config(start, kl_coef=kl_coef, max_iterations=20, critic=CriticCfg(warmup_iterations=2))
        runner = make_runner(tmp_path / f"kl{kl_coef}", cfg)
        runner.run()
        distance[kl_coef] = float((runner.student.step(obs)[0].mean - target).square().mean())
    assert distance[100.0] < 0.1 * distance[0.0]


@pytest.mark.parametrize(
    ("actor", "expected"),
    [(ActorCfg(init_std=0.25), 0.25), (ActorCfg(init_entropy=2.0), 0.65774), (ActorCfg(), 0.05)],
)
def test_the_deviation_at_the_start(actor, expected, tmp_path):
    """By the flag; by the entropy: exp(2 / 2) / sqrt(2 pi e) = 0.658; else 0.05 for a deterministic student."""
    start = write_student(tmp_path / "s.pt")
    runner = make_runner(tmp_path / "run", config(start, actor=actor))
    std = runner.student.step(torch.randn(4, 2))[0].std
    assert std is not None and std.flatten().tolist() == pytest.approx([expected] * 8, rel=1e-4)


def test_the_deviation_and_the_critic_of_a_teacher_of_rsl_rl(tmp_path):
    """A deterministic student takes the teacher's deviation; ``critic.init=teacher`` starts with its values."""
    path = tmp_path / "model_1.pt"
    generator = torch.Generator().manual_seed(0)
    state = {"std": torch.tensor([0.2, 0.4])}
    for who, last in (("actor", 2), ("critic", 1)):
        for layer, (rows, columns) in enumerate([(8, 2), (last, 8)]):
            state[f"{who}.{2 * layer}.weight"] = torch.randn(rows, columns, generator=generator)
            state[f"{who}.{2 * layer}.bias"] = torch.zeros(rows)
    torch.save({"model_state_dict": state, "iter": 1, "infos": None}, path)
    start = write_student(tmp_path / "s.pt")
    teacher = RetainedTeacherCfg(checkpoint=str(path), activation="elu")
    cfg = config(start, teacher=teacher, critic=CriticCfg(init="teacher"), kl_coef=1.0)
    runner = make_runner(tmp_path / "run", cfg)
    obs = torch.randn(4, 2)
    assert runner.student.step(obs)[0].std[0].tolist() == pytest.approx([0.2, 0.4])
    wrapper = TeacherPolicyWrapper(path, activation="elu")
    assert torch.equal(runner.critic.step(obs, None)[0], wrapper.step(obs)[0].value.squeeze(-1))
    before = runner.critic.step(obs, None)[0].clone()
    assert runner.warmup == 0
    runner.run()
    assert not torch.equal(runner.critic.step(obs, None)[0], before)


def test_a_stage_can_freeze_its_policy_as_the_next_ones_teacher_and_be_resumed(tmp_path):
    """``set_teacher`` writes the teacher, and a resumed run has it again."""
    start = write_student(tmp_path / "s.pt")
    cfg = config(start, kl_coef=1.0, critic=CriticCfg(warmup_iterations=0))
    runner = make_runner(tmp_path / "run", cfg)
    runner.begin()
    runner.run_epoch(0)
    runner.set_teacher("stage1")
    runner.run_epoch(1)
    other = make_runner(tmp_path / "run", cfg)
    assert other.resume() == ""
    assert [teacher.name for teacher in other.retention.teachers] == ["start", "stage1"]
    obs = torch.randn(5, 4, 2)
    none = torch.zeros(5, 4, dtype=torch.bool)
    for ours, theirs in zip(other.retention.teachers, runner.retention.teachers, strict=True):
        assert torch.equal(ours.label(obs, none, none[0]).mean, theirs.label(obs, none, none[0]).mean)


def test_where_only_one_environment_can_exist_the_training_return_is_the_measure(tmp_path):
    """No second environment is built; the best policy is there all the same."""
    start = write_student(tmp_path / "s.pt")
    runner = make_runner(tmp_path / "run", config(start, max_iterations=12), make_eval_env=None)
    summary = runner.run()
    assert (tmp_path / "run" / BEST).exists() and "start_return" not in summary


def test_sizes_that_differ_are_one_line(tmp_path):
    """A student of other observations or actions: the line says both numbers and what to set."""
    start = write_student(tmp_path / "s.pt")
    with pytest.raises(UserError, match=r"The policy expects 2 observations, but .*\['privileged'\] gives 3"):
        make_runner(tmp_path / "a", config(start, actor=ActorCfg(obs_groups=["privileged"])))
    env = RegulatorEnv(NUM_ENVS)
    env.num_actions = 3
    with pytest.raises(UserError, match="has 2 actions but the task 'Regulator' takes 3"):
        FinetuneRunner(env, config(start), settings(), RunDir(tmp_path))


def test_the_checkpoint_is_that_of_a_student(tmp_path):
    """A user's script rebuilds the policy from it as from any distilled student's."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[64, 64])
    make_runner(tmp_path / "run", config(start, max_iterations=2)).run()
    saved = torch.load(tmp_path / "run" / BEST, weights_only=True)
    student: Student = foundation.StudentPolicy(2, 2, stochastic=True)
    student.load_state_dict(saved["model_state_dict"])
    assert saved["task"] == "Regulator" and saved["finetune"]["max_iterations"] == 2
