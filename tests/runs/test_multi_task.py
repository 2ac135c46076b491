"""Runs of several tasks: the tasks' students together, the best by their scores, resuming, what is saved."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path

import pytest
import torch
from test_discrete_run import ChoosingEnv, QTeacher
from toy_env import REGULATOR_GAIN, LinearTeacher, RegulatorEnv

from foundation.config.distillation_cfg import DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.learning.turns import share_moments, turns
from foundation.rollout.baselines import geometric_mean
from foundation.runs.context import RunContext
from foundation.runs.metrics_writer import MetricsWriter
from foundation.runs.multi_task import MultiTaskRunner
from foundation.runs.multi_task_state import load_multi_task
from foundation.runs.run_dir import RunDir
from foundation.runs.task_part import SharedStudents, TaskPart
from foundation.students import student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

IDS = ["push", "choose"]


class Recorder(MetricsWriter):
    """Keeps scalars."""

    def __init__(self):
        self.tags: dict[str, list[float]] = {}

    def add_scalars(self, scalars, step):
        for tag, value in scalars.items():
            self.tags.setdefault(tag, []).append(value)


def config(n_epochs: int, loss: str, num_choices: int | None, **options: object) -> DistillationCfg:
    cfg = DistillationCfg(
        task="Toy", seed=1, n_epochs=n_epochs, epoch_teacher_forcing=1, num_episodes=16, learning_rate=1e-2,
        batch_size=32, num_eval_episodes=16, final_eval_episodes=64, loss=LossCfg(loss),
    )  # fmt: skip
    cfg.student = student_cfg_class("mlp")(num_choices=num_choices, hidden_dims=[32, 32])
    for name, value in options.items():
        setattr(cfg.optimizer, name, value)
    return cfg


def make(folder: Path, n_epochs: int = 4, writer: MetricsWriter | None = None, **options):
    """Make a run of two tasks, with other observations and actions each, resumed where there is a checkpoint."""
    run = RunDir(folder)
    (folder / "params").mkdir(parents=True, exist_ok=True)
    shared = SharedStudents()
    privileged = torch.cat([REGULATOR_GAIN, torch.zeros(1, 2)])
    tasks = {
        "push": (RegulatorEnv, LinearTeacher(privileged), "mse", None),
        "choose": (ChoosingEnv, QTeacher(), "q_mse", 5),
    }
    checkpoint = load_multi_task(run, IDS)
    parts = {}
    for name, (env, teacher, loss, num_choices) in tasks.items():
        own = RunDir(folder / "tasks" / name)
        own.path.mkdir(parents=True, exist_ok=True)
        cfg = config(n_epochs, loss, num_choices, **options)
        if name == "push":
            cfg.teacher.obs_groups = cfg.student.obs_groups = ["privileged"]
        build = functools.partial(TaskPart, name, shared, env(8), teacher, cfg, own, make_eval_env=env)
        parts[name] = build(writer=writer)
        if checkpoint is not None:
            assert parts[name].restore(checkpoint.tasks[name]) == ""
    runner = MultiTaskRunner(RunContext.make(config(n_epochs, "mse", None), run, "cpu", writer), parts)
    if checkpoint is not None:
        runner.restore(checkpoint.state)
        state = checkpoint.tasks["choose"].state
        assert state is not None
        state.restore_rng(torch.device("cpu"))
    return runner


def weights(folder: Path) -> dict[str, torch.Tensor]:
    tasks = torch.load(folder / "final_student.pt", weights_only=True)["tasks"]
    return {f"{task}.{name}": value for task in tasks for name, value in tasks[task]["model_state_dict"].items()}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of four epochs, with its scalars."""
    folder = tmp_path_factory.mktemp("run")
    recorder = Recorder()
    summary = make(folder, writer=recorder).run()
    return folder, summary, recorder


def test_one_student_learns_both_tasks(run):
    """Each score is near 1, and their geometric mean is that of the definition, in summary, scalars and per task."""
    folder, summary, recorder = run
    scores = summary["normalized_scores"]
    assert list(scores) == IDS and min(scores.values()) > 0.9
    assert summary["geometric_mean_score"] == pytest.approx(math.sqrt(scores["push"] * scores["choose"]))
    assert json.loads((folder / "summary.json").read_text())["tasks"]["push"]["student"]
    assert len(recorder.tags["evaluation/geometric_mean_score"]) == 4
    for name in IDS:
        assert len(recorder.tags[f"{name}/evaluation/normalized_score"]) == 4
    best = max(recorder.tags["evaluation/geometric_mean_score"])
    assert torch.load(folder / "best_student.pt", weights_only=True)["best_return"] == pytest.approx(best)


def test_the_trunk_is_one(run):
    """After training the hidden layers behind the first are the same numbers in both tasks, and the heads are not."""
    saved = weights(run[0])
    assert torch.equal(saved["push.body.2.weight"], saved["choose.body.2.weight"])
    assert saved["push.body.0.weight"].shape == (32, 3) and saved["choose.body.0.weight"].shape == (32, 2)
    assert saved["push.mean.weight"].shape == (2, 32) and saved["choose.mean.weight"].shape == (5, 32)
    assert run[1]["parameters"]["shared"] == 32 * 32 + 32
    assert run[1]["parameters"]["student"] == sum(
        value.numel() for name, value in saved.items() if "body" in name or "mean." in name
    ) - (32 * 32 + 32)


def test_a_head_is_an_ordinary_policy(run):
    """The head of the file of all tasks acts as the task's own file does, and as its weights say."""
    folder = run[0]
    obs = torch.randn(20, 3)
    alone = TeacherPolicyWrapper(folder / "tasks" / "push" / "best_student.pt")
    head = TeacherPolicyWrapper(folder / "best_student.pt", head="push")
    assert torch.equal(alone.act(obs), head.act(obs))
    assert TeacherPolicyWrapper(folder / "best_student.pt", head="choose").num_choices == 5
    for named, says in ((None, r"2 tasks: push \(Toy\), choose \(Toy\)\. Name one: --task push"),
                        ("Toy", r"several tasks of 'Toy': name one of push, choose"),
                        ("pusch", r"no student of task 'pusch'\. Did you mean 'push'")):  # fmt: skip
        with pytest.raises(UserError, match=says):
            TeacherPolicyWrapper(folder / "best_student.pt", head=named)
    with pytest.raises(UserError, match=r"policy of one task, so that distill\.teacher\.head=push has no effect"):
        TeacherPolicyWrapper(folder / "tasks" / "push" / "best_student.pt", head="push")


@pytest.mark.parametrize("options", [{}, {"ema_decay": 0.9}])
def test_resumed_equals_uninterrupted(tmp_path, options):
    """A run that is killed after two epochs and resumed ends in the tensors of one that never stopped."""
    make(tmp_path / "whole", **options).run()
    part = make(tmp_path / "parts", **options)
    part.begin()
    part.run_epoch(0)
    part.run_epoch(1)
    resumed = make(tmp_path / "parts", **options)
    assert resumed.epoch == 2
    resumed.run()
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    figures = [
        json.loads((tmp_path / name / "summary.json").read_text())["normalized_scores"] for name in ("whole", "parts")
    ]
    assert figures[0] == figures[1]


def test_a_best_student_that_a_kill_left_halfway_is_made_whole(tmp_path):
    """The file of all tasks is what counts: a task's own best student of another epoch is replaced by it."""
    first = make(tmp_path)
    first.begin()
    first.run_epoch(0)
    own = tmp_path / "tasks" / "push" / "best_student.pt"
    torch.save({"model_state_dict": {}, "best_return": 99.0, "best_epoch": 7}, own)
    make(tmp_path)
    assert torch.load(own, weights_only=True)["best_epoch"] == 0


def test_shared_moments_are_those_of_one_optimiser():
    """Two optimisers, a trunk in common, take the steps of one Adam over all parameters, to the bit."""

    def train(make_optimizers):
        torch.manual_seed(0)
        trunk, heads = torch.nn.Linear(3, 4), [torch.nn.Linear(4, 2), torch.nn.Linear(4, 1)]
        optimizers = make_optimizers(trunk, heads)
        for step in range(20):
            task = step % 2
            optimizers[task].zero_grad(set_to_none=True)
            heads[task](trunk(torch.randn(5, 3))).square().mean().backward()
            optimizers[task].step()
        return [parameter for part in (trunk, *heads) for parameter in part.parameters()]

    def of_each(trunk, heads):
        optimizers = [torch.optim.Adam([*trunk.parameters(), *head.parameters()], lr=0.1) for head in heads]
        share_moments(optimizers, trunk.parameters())
        return optimizers

    def of_all(trunk, heads):
        return [torch.optim.Adam([p for part in (trunk, *heads) for p in part.parameters()], lr=0.1)] * 2

    assert all(torch.equal(one, other) for one, other in zip(train(of_each), train(of_all), strict=True))


def test_turns_go_round_and_spread_the_fewer():
    """As many of each alternate; of fewer updates each lies in its own share of the others."""
    assert turns({"a": 3, "b": 3}) == ["a", "b"] * 3
    assert turns({"a": 4, "b": 2}) == ["a", "b", "a", "a", "b", "a"]
    assert sorted(turns({"a": 5, "b": 1, "c": 3})) == ["a"] * 5 + ["b"] + ["c"] * 3


def test_the_geometric_mean():
    """By hand; a score at or below zero counts as a thousandth, so that the others still tell students apart."""
    assert geometric_mean([0.5, 0.5, 1.0]) == pytest.approx(0.25 ** (1 / 3))
    assert geometric_mean([-3.0, 1.0]) == pytest.approx(math.sqrt(1e-3))
    assert geometric_mean([0.0, 0.9]) > geometric_mean([0.0, 0.8])
