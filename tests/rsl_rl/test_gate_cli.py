"""``distillation.py`` with several teachers and a gate between them."""

from __future__ import annotations

import json
from pathlib import Path

import many_teachers
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import arguments, differing, run_folder

from foundation.core.errors import UserError
from foundation.rsl_rl.distillation import main
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner

GATE = [
    f"distill.teacher.{item}" for item in ("combine=gate", "gate.episodes=96", "gate.updates=200", "gate.horizon=30")
]


@pytest.fixture(scope="module")
def pair(tmp_path_factory) -> Path:
    """A teacher that hovers badly, and one that lets itself fall."""
    folder = tmp_path_factory.mktemp("pair")
    many_teachers.write_mlp(folder / "hovers.pt", 1, scale=0.1)
    many_teachers.write_mlp(folder / "falls.pt", 2, scale=0.1, bias=-0.9)
    return folder


def run(monkeypatch, folder: Path, teachers: Path, *more: str, **flags) -> Path:
    """Run the command in a folder of its own and return its run."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    assert main(arguments(teachers, *GATE, *more, n_epochs=4, **flags)) == 0
    return run_folder(folder)


def stop_after(monkeypatch, epochs: int) -> None:
    """Interrupt this process's next run after so many epochs."""
    epoch = DistillationRunner.run_epoch

    def stopping(self, number):
        epoch(self, number)
        if number + 1 == epochs:
            self.context.interrupted = lambda: "the test"

    monkeypatch.setattr(DistillationRunner, "run_epoch", stopping)


def test_a_gate_is_fitted_shown_and_resumed_exactly(monkeypatch, tmp_path, pair, capsys):
    """Its figures are shown, logged and kept; stopped after 2 of 4 epochs the run ends in the same bits, no new fit."""
    whole = run(monkeypatch, tmp_path / "whole", pair)
    out = capsys.readouterr().out
    assert "2 teachers, combined by gate" in out and "Gate over 2 teachers, from " in out
    figures = json.loads((whole / "summary.json").read_text())["gate"]
    assert figures["mean_weights"]["hovers"] > 0.7 > 0.3 > figures["mean_weights"]["falls"]
    assert figures["mean_returns"]["hovers"] > figures["mean_returns"]["falls"]
    events = EventAccumulator(str(whole)).Reload()
    logged = events.Scalars("baseline_gate_weight/hovers")[0].value
    assert logged == pytest.approx(figures["mean_weights"]["hovers"])
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "parts")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        main(arguments(pair, *GATE, n_epochs=4))
    parts = run_folder(tmp_path / "parts")
    assert not (parts / "final_student.pt").exists()
    monkeypatch.setattr(RunDir, "lock", lambda run: None)  # the interrupted run was this process too
    with pytest.raises(UserError, match="has another gate, or none"):
        main(["--resume", "distill.teacher.gate.hidden_dims=[8]"])
    capsys.readouterr()
    assert main(["--resume"]) == 0
    assert "Gate over" not in capsys.readouterr().out
    assert differing(whole / "final_student.pt", parts / "final_student.pt") == []
    assert json.loads((parts / "summary.json").read_text())["gate"] == figures


def test_the_gate_is_saved_as_plain_tensors(monkeypatch, tmp_path, pair):
    """``checkpoint_latest.pt`` loads with ``weights_only`` and has the gate's weights and moments."""
    path = run(monkeypatch, tmp_path / "run", pair, save_interval=1)
    saved = torch.load(path / "checkpoint_epoch_1.pt", weights_only=True)["resume"]["teachers"]["gate"]
    assert saved["weights"]["network.0.weight"].shape == (64, 26)
    assert float(saved["weights"]["normalizer.count"]) == saved["figures"]["rows"]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("gate.episodes=0", "distill.teacher.gate.episodes is 0: it must be at least 1"),
        ("gate.horizon=0", "distill.teacher.gate.horizon is 0: it must be at least 1"),
        ("gate.horizon=40", r"distill.teacher.gate.horizon is 40: it must be below the length of an episode \(40 "),
        ("gate.updates=0", "distill.teacher.gate.updates is 0"),
        ("gate.temperature=0", "distill.teacher.gate.temperature is 0: it must be a finite number above 0"),
        ("gate.hidden_dims=[0]", r"distill.teacher.gate.hidden_dims is \[0\]"),
        ("gate.episode=3", "did you mean 'episodes'|episodes"),
    ],
)
def test_bad_settings_are_one_line(monkeypatch, tmp_path, pair, setting, says):
    """Values out of range and unknown keys are refused by name before anything is flown."""
    with pytest.raises(UserError, match=says) as error:
        run(monkeypatch, tmp_path / "run", pair, f"distill.teacher.{setting}")
    assert "\n" not in str(error.value)


def test_one_teacher_has_no_gate(monkeypatch, tmp_path, pair):
    """``combine=gate`` with a single checkpoint says what it needs."""
    with pytest.raises(UserError, match="need several teachers"):
        run(monkeypatch, tmp_path / "run", pair / "hovers.pt")
