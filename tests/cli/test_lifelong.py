"""Lifelong stages: which commands run, what each is given, the forgetting matrix, what is not run again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from foundation.cli import lifelong, stages, steps
from foundation.cli.finetune_job import STAGED
from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.evaluation.report_table import evaluation_figures
from foundation.rollout.episodes import EvaluationResult
from foundation.rsl_rl import finetune
from foundation.rsl_rl.finetune import build_parser

FILE = """
lifelong: {episodes: 7, distill: {n_epochs: 3, student: {hidden_dims: [4, 4]}}, compress: {max_iterations: 2}}
stages:
  - {task: A, max_iterations: 5}
  - {task: B, kl_coef: 0.5}
"""
RETURNS = {("random", "A"): 0.0, ("random", "B"): 10.0}
"""Of the stages' own policies 100 and 110; of the small network as written below."""
SMALL = {("stage1_store", "A"): 90.0, ("stage1_store", "B"): 20.0}
SMALL |= {("stage2_compress", "A"): 80.0, ("stage2_compress", "B"): 105.0}


class Processes:
    """Stands in for the commands: makes their runs' folders, and measures by the table."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, list[str]]] = []

    def __call__(self, module: str, argv: Sequence[str], out: Any = None) -> int:
        self.calls.append((module, list(argv)))
        given = dict(pairwise(argv))
        if module == stages.PLAY:
            step = (
                Path(given["--checkpoint"]).parent.name.partition("mine_")[2] if "--checkpoint" in given else "random"
            )
            table = RETURNS | SMALL
            own = {("stage1", "A"): 100.0, ("stage2", "B"): 110.0}
            value = torch.tensor([(table | own)[step, given["--task"]]])
            figures = evaluation_figures(EvaluationResult(value, torch.ones(1), None))
            Path(given["--json"]).write_text(json.dumps(figures))
            return 0
        root = "distillation" if module == stages.DISTILLATION else "finetune"
        name = f"2026-01-01_00-00-{len(self.calls):02d}_{given['--run_name']}"
        folder = Path("logs") / root / given["--experiment_name"] / name
        (folder / "params").mkdir(parents=True)
        values = load_yaml(Path(next(w.partition("=")[2] for w in argv if w.startswith("experiment="))))
        task = given.get("--task") or values["task"]
        for file in ("best_student.pt", "final_student.pt", "checkpoint_latest.pt"):
            torch.save({"task": task, "obs_groups": ["policy"], "epoch": 1}, folder / file)
        (folder / "summary.json").write_text("{}")
        return 0


@pytest.fixture
def processes(tmp_path, monkeypatch) -> Processes:
    """The stand-in, in a working folder of its own with the file."""
    monkeypatch.chdir(tmp_path)
    Path("two.yaml").write_text(FILE)
    made = Processes()
    for module in (steps, lifelong):
        monkeypatch.setattr(module, "run_in_a_process", made)
    return made


def run(*more: str) -> int:
    """Run the stages of the file."""
    argv = ["experiment=./two.yaml", "--checkpoint", "s.pt", "--run_name", "mine", "--device", "cpu", *more]
    curriculum = stages.Curriculum.read(STAGED, build_parser(), argv)
    assert curriculum is not None
    return curriculum.run()


def test_each_stage_is_learned_compressed_and_measured_and_done_ones_are_left_out(processes, capfd):
    """The commands in order, what they start from and replay, and the matrix by hand; a second time nothing runs."""
    assert run("--num_envs", "64", "env.x=1") == 0
    commands = [(module.rpartition(".")[2], argv) for module, argv in processes.calls if module != stages.PLAY]
    named = [(command, argv[argv.index("--run_name") + 1]) for command, argv in commands]
    assert named == [
        ("finetune", "mine_stage1"),
        ("distillation", "mine_stage1_store"),
        ("finetune", "mine_stage2"),
        ("distillation", "mine_stage2_store"),
        ("finetune", "mine_stage2_compress"),
    ]
    given = [dict(pairwise(argv)) for _, argv in commands]
    assert given[0]["--checkpoint"] == "s.pt" and given[0]["--num_envs"] == "64" and "--num_envs" not in given[1]
    assert all("env.x=1" in argv and own["--device"] == "cpu" for (_, argv), own in zip(commands, given, strict=True))
    small = given[2]["--checkpoint"]
    assert "stage1_store/best_student.pt" in small and given[4]["--checkpoint"] == small
    assert "_stage2/best_student.pt" in given[4]["--teacher_checkpoint"] and given[4]["--task"] == "B"
    folder = Path("logs/finetune/curriculum/stages")
    values = load_yaml(folder / "mine_stage2_compress.yaml")
    assert values["alpha"] == 1.0 and values["max_iterations"] == 2
    assert values["replay"]["dataset"] == [given[1]["--save_dataset"]]
    stored = load_yaml(folder / "mine_stage2_store.yaml")
    assert stored == {
        "student": {"obs_groups": ["policy"], "init_checkpoint": small, "hidden_dims": [4, 4]},
        "n_epochs": 3,
    }
    report = json.loads((folder / "mine_forgetting.json").read_text())
    assert [value for row in report["matrix"] for value in row] == pytest.approx([0.9, 0.1, 0.8, 0.95])
    assert report["measures"]["forgetting/backward_transfer"] == pytest.approx(-0.1)
    out = capfd.readouterr().out
    assert "80.0      95.0" in out and "Mean 87.5 %" in out
    before = len(processes.calls)
    assert run("--resume") == 0 and len(processes.calls) == before
    assert "stage2_compress is done" in capfd.readouterr().out


def test_bad_settings_and_a_command_that_fails(processes, monkeypatch, capfd):
    """One line that names the key; the exit code of a measurement that fails, and where its output is."""
    for text, says in (
        ("lifelong: 3", "it must be a mapping"),
        ("lifelong: {episode: 3}", "episode"),
        ("lifelong: {episodes: 0}", "at least 1"),
        ("lifelong: {episodes: 1000000000000}", "lifelong.episodes is 1000000000000: it must be at most 2147483647"),
        ("lifelong: {seed: -1}", "lifelong.seed is -1: it must be at least 0 and at most 4294967295"),
        ("lifelong: {episodes: many}", "it must be an integer"),
        ("lifelong: {distill: 3}", "it must be a mapping"),
        ("lifelong: {distill: {n_epoch: 3}}", "lifelong.distill: unknown key 'n_epoch'. Did you mean 'n_epochs'"),
        ("lifelong: {compress: {ewc: {coeff: 3}}}", "lifelong.compress: unknown key 'ewc.coeff'"),
        ("lifelong: {distill: {task: A}}", "lifelong.distill.task is the stage's own"),
        ("lifelong: {compress: {teacher: {checkpoint: a.pt}}}", "lifelong.compress.teacher.checkpoint is the stage's"),
    ):
        Path("two.yaml").write_text(f"{text}\nstages: [{{task: A}}]\n")
        with pytest.raises(UserError, match=says):
            run()
    Path("two.yaml").write_text(FILE)
    monkeypatch.setattr(lifelong, "run_in_a_process", lambda *args, **options: 2)
    assert run() == 2
    assert "could not be measured on A" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["--run_name", "a/b"], "--run_name is 'a/b': it must be a plain name"),
        (["--experiment_name", "../up"], "--experiment_name is '../up': it must be a plain name"),
        (["lifelong.episodes=3"], "'lifelong.episodes=3': 'stages' and 'lifelong' are set in a file"),
    ],
)
def test_what_is_typed_is_checked_before_a_stages_file_is_written(processes, typed, says):
    """A name with slashes would put it elsewhere, and a key of the file is none of a stage's."""
    before = sorted(Path.cwd().rglob("*"))
    with pytest.raises(UserError, match=says):
        run(*typed)
    assert processes.calls == [] and sorted(Path.cwd().rglob("*")) == before


@pytest.mark.parametrize("flag", [["--cfg", "job"], ["--multirun", "seed=1,2"]])
def test_stages_are_no_one_run_whose_config_could_be_shown_or_swept(processes, flag):
    """One line instead of a key that is said to be unknown."""
    with pytest.raises(UserError, match=r"the file of experiment= has stages, .* leave them out"):
        finetune.main(["experiment=./two.yaml", "--checkpoint", "s.pt", *flag])
