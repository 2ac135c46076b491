"""The study of forgetting: which commands it runs, what it skips, and what it reports."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import forgetting  # noqa: E402
import raptor.stages  # noqa: E402
from continual import report  # noqa: E402
from continual.methods import METHODS, TASKS  # noqa: E402

from foundation.core.errors import UserError  # noqa: E402

RANDOM = {"chase": -100.0, "evade": -50.0}
TEACHERS = {"chase": {"chase": 600.0, "evade": 0.0}, "evade": {"chase": -100.0, "evade": 450.0}}


def figures(chase: float, evade: float) -> dict[str, Any]:
    return {
        "chase": {"mean_return": chase, "js_divergence": 0.25},
        "evade": {"mean_return": evade, "js_divergence": 0.5},
    }


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A study whose commands leave empty files, and whose policies reach known returns."""
    calls: list[list[str]] = []

    def python(script: str, *arguments: object, log: Path) -> None:
        tokens = [str(x) for x in arguments]
        calls.append([script, *tokens])
        kind = "distillation" if "distillation" in script else "finetune"
        folder = Path("logs") / kind / "forgetting" / f"2026-01-01_00-00-00_{tokens[tokens.index('--run_name') + 1]}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "best_student.pt").touch()

    def measure(self: Any, checkpoint: Path | None) -> dict[str, Any]:
        if checkpoint is None:
            return figures(**RANDOM)
        for name, path in self.teachers.items():
            if checkpoint == path:
                return figures(**TEACHERS[name])
        if "student" in str(checkpoint.parent):
            return figures(530.0, -50.0)
        return figures(250.0, 400.0) if "kl" in str(checkpoint.parent) else figures(-100.0, 450.0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("raptor.stages.python", python)
    monkeypatch.setattr(forgetting.Study, "measure", measure)
    monkeypatch.setattr(
        "foundation.teachers.TeacherPolicyWrapper", lambda path: type("Teacher", (), {"hidden_dims": [16, 8]})
    )
    for name in ("chase", "evade"):
        Path(f"{name}.pt").touch()
    line = "--methods ppo distil_ppo kl_replay --no-joint --seeds 0 1 --chase chase.pt --evade evade.pt"
    line += " --out out/forgetting"
    return forgetting.parse(line.split()), calls


def test_stages_are_run_once_and_reported(study):
    """Six second stages on one distillation; the same command runs nothing again, and one more seed runs only that."""
    args, calls = study
    forgetting.Study(args).run()
    assert [Path(call[0]).name for call in calls] == ["distillation.py", *["finetune.py"] * 6]
    assert "distill.student.hidden_dims=[16,8]" in calls[0]
    starts = {call[call.index("--run_name") + 1]: call[call.index("--checkpoint") + 1] for call in calls[1:]}
    assert starts["ppo_s0"].endswith("chase.pt") and starts["distil_ppo_s1"].endswith("student/best_student.pt")
    forgetting.Study(args).run()
    assert len(calls) == 7
    args.seeds = [0, 1, 5]
    forgetting.Study(args).run()
    assert len(calls) == 10
    written = json.loads(Path("out/forgetting.json").read_text())
    assert len(written["runs"]) == 9
    plain = next(run for run in written["runs"] if run["method"] == "ppo")
    assert plain["matrix"] == [[1.0, 0.1], [0.0, 1.0]]  # all is forgotten, and the new task learned
    assert plain["measures"]["forgetting/backward_transfer"] == -1.0
    distilled = next(run for run in written["runs"] if run["method"] == "distil_ppo")
    assert distilled["matrix"][0] == pytest.approx([0.9, 0.0])
    assert Path("out/forgetting.png").stat().st_size > 1000
    assert (
        "| PPO + KL + replay | 3 | 100.0 (100.0 to 100.0) | 50.0 (50.0 to 50.0) |"
        in Path("out/forgetting.md").read_text()
    )
    events = EventAccumulator("logs/forgetting/tensorboard/ppo_s0")
    events.Reload()
    for task, column in (("chase", [1.0, 0.0]), ("evade", [0.1, 1.0])):  # of the matrix, a row after each stage
        logged = [(event.step, event.value) for event in events.Scalars(f"forgetting/score/{task}")]
        assert logged == [(1, pytest.approx(column[0])), (2, pytest.approx(column[1]))]
    assert events.Scalars("forgetting/backward_transfer")[0].value == -1.0


def test_a_second_stage_that_was_stopped_is_resumed(study, monkeypatch):
    """What a signal has ended goes on in its own run; a run of the same name from before the stage does not."""
    args, calls = study
    args.methods, args.seeds = ["ppo"], [0]
    old = Path("logs/finetune/forgetting/2020-01-01_00-00-00_ppo_s0")
    old.mkdir(parents=True)
    (old / "checkpoint_latest.pt").touch()
    new = Path("logs/finetune/forgetting/2099-01-01_00-00-00_ppo_s0")
    finish = raptor.stages.python

    def stop(script: str, *arguments: object, log: Path) -> None:
        if "finetune" not in script:
            return finish(script, *arguments, log=log)
        calls.append([script, *map(str, arguments)])
        new.mkdir(parents=True)
        (new / "checkpoint_latest.pt").touch()
        raise SystemExit(143)

    monkeypatch.setattr("raptor.stages.python", stop)
    with pytest.raises(SystemExit):
        forgetting.Study(args).run()
    assert "--resume" not in calls[-1]

    def go_on(script: str, *arguments: object, log: Path) -> None:
        calls.append([script, *map(str, arguments)])
        (new / "best_student.pt").touch()

    monkeypatch.setattr("raptor.stages.python", go_on)
    whole = forgetting.Study(args)
    whole.run()
    assert calls[-1][1:] == ["--resume", "--experiment_name", "forgetting", "--load_run", new.name]
    assert new.name in whole.stages.done["ppo_s0"]["checkpoint"]


def test_other_settings_in_the_same_folder_are_refused(study):
    """Figures of different lengths of training do not stand in one table."""
    args, _ = study
    forgetting.Study(args).run()
    args.iterations += 1
    with pytest.raises(UserError, match="other settings"):
        forgetting.Study(args)


def test_a_missing_teacher_is_named(study):
    """Before anything is trained."""
    args, _ = study
    args.chase = Path("nowhere.pt")
    with pytest.raises(UserError, match=r"--chase nowhere\.pt: no such file"):
        forgetting.Study(args)


def test_methods_say_what_they_add_to_ppo():
    """Plain PPO adds nothing; each retention adds its own arguments, and only those."""
    tokens = {name: method.tokens(Path("data")) for name, method in METHODS.items()}
    assert tokens["ppo"] == tokens["distil_ppo"] == []
    assert tokens["kl"] == ["--kl_coef", str(METHODS["kl"].kl_coef)]
    assert "finetune.replay.dataset=data" in tokens["replay"] and "--kl_coef" not in tokens["replay"]
    assert tokens["kl_replay"] == ["--kl_coef", str(METHODS["kl_replay"].kl_coef), *tokens["replay"]]
    assert "finetune.replay.coef=0.0" in tokens["ewc"]
    assert tokens["head"] == ["finetune.heads.layers=0"]


def test_medians_and_ranges():
    """The median of three in per cent with its range; one value alone has none."""
    assert report.spread([0.5, 0.1, 0.9]) == "50.0 (10.0 to 90.0)"
    assert report.spread([0.5]) == "50.0"
    assert report.spread([0.123], percent=False) == "0.12"


def run_of(old: float, new: float, first: float = 1.0) -> Any:
    """Measures of a run that ends with these scores, and that began with ``first`` on the old task."""
    own = {name: figures(**TEACHERS[name])[name] for name in TASKS}
    returns = [figures(600.0 * first, 0.0), figures(600.0 * old, 450.0 * new)]
    return report.measures(figures(0.0, 0.0), own, returns)


@pytest.mark.parametrize(
    ("student", "answer"),
    [
        ([0.7, 0.8], "yes, every run of the student's keeps more"),
        ([0.1, 0.2], "no, every run of the student's keeps less"),
        ([0.5, 0.8], "no difference is seen, the ranges overlap"),
    ],
)
def test_whether_distilling_first_helps_is_answered_by_the_ranges(student, answer):
    """Of two runs each: what the student keeps is a share of its own score before, not of the teacher's."""
    found = {
        "PPO": [run_of(0.4, 1.0), run_of(0.6, 0.8)],
        "distil, then PPO": [run_of(0.5 * kept, 1.0, first=0.5) for kept in student],
    }
    text = "\n".join(report.findings(found))
    assert "the teacher keeps 50.0 (40.0 to 60.0) % of the old task" in text and answer in text


def test_methods_that_keep_one_task_and_learn_the_other_are_named():
    """90 % of the old score and 95 % of plain PPO's median on the new one, here 0.9 and 0.76."""
    found = {
        "PPO": [run_of(0.2, 0.8)],
        "keeps all": [run_of(1.0, 0.75)],
        "does both": [run_of(0.91, 0.77)],
        "learns": [run_of(0.89, 1.0)],
    }
    assert "on the new one: does both." in report.findings(found)[0]
    table = report.markdown(found, {label: [figures(0.0, 0.0)] for label in found})
    assert "| does both | 1 | 100.0 | 91.0 | 91.0 | 77.0 | 96.2 |" in table


def test_stages_of_another_folder_are_adopted(study):
    """Half of the seeds ran elsewhere: nothing of them is run again, and one table has all."""
    args, calls = study
    args.seeds = [1]
    forgetting.Study(args).run()
    args.seeds, args.folder = [0], Path("logs/elsewhere")
    forgetting.Study(args).run()
    before = len(calls)
    args.seeds = [0, 1]
    whole = forgetting.Study(args)
    whole.adopt([Path("logs/forgetting")])
    assert whole.dataset == Path("logs/forgetting/chase_transitions").resolve()
    whole.run()
    assert len(calls) == before
    assert len(json.loads(Path("out/forgetting.json").read_text())["runs"]) == 6
    with pytest.raises(UserError, match=r"--adopt nowhere: there is no stages\.json"):
        whole.adopt([Path("nowhere")])


def test_one_student_of_both_teachers_is_measured_on_its_own_heads(study, monkeypatch):
    """The file of tasks has both teachers; each head is measured on its task, and stands among the references."""
    args, calls = study
    args.joint, args.methods, args.seeds = True, ["ppo"], [0]
    seen = []

    def measure(checkpoint: Path, tasks: dict[str, str], *_: object) -> dict[str, Any]:
        seen.append((checkpoint.parent.name, tasks))
        return {name: {"mean_return": 400.0, "success_rate": 0.5} for name in tasks}

    monkeypatch.setattr("continual.measure.measure", measure)
    forgetting.Study(args).run()
    assert seen == [("chase", {"chase": TASKS["chase"]}), ("evade", {"evade": TASKS["evade"]})]
    listed = yaml.safe_load(Path("logs/forgetting/joint.yaml").read_text())["tasks"]
    assert [(entry["id"], Path(entry["teacher"]).name) for entry in listed] == [
        ("chase", "chase.pt"),
        ("evade", "evade.pt"),
    ]
    assert any("--multi_task" in call for call in calls)
    row = "| one student of both teachers, a head for each task | 400.0, 50.0 % | 400.0, 50.0 % |"
    assert row in Path("out/forgetting.md").read_text()


def test_what_ppo_learned_is_compressed_with_the_old_task(study, monkeypatch):
    """One student of the chase's teacher and of PPO's end, which is run first where it has not been; once each."""
    args, calls = study
    args.methods, args.seeds = ["compress"], [1]

    def measure(checkpoint: Path, tasks: dict[str, str], *_: object) -> dict[str, Any]:
        assert "compress_s1" in str(checkpoint)
        both = figures(520.0, 440.0)
        return {name: both[name] for name in tasks}

    monkeypatch.setattr("continual.measure.measure", measure)
    forgetting.Study(args).run()
    listed = yaml.safe_load(Path("logs/forgetting/compress_s1.yaml").read_text())["tasks"]
    assert [entry["id"] for entry in listed] == ["chase", "evade"]
    assert listed[0]["teacher"].endswith("/chase.pt")
    assert listed[1]["teacher"].endswith("_ppo_s1/best_student.pt")
    number = len(calls)
    forgetting.Study(args).run()
    assert len(calls) == number
    runs = {run["method"]: run for run in json.loads(Path("out/forgetting.json").read_text())["runs"]}
    assert runs["compress"]["stages"][1]["evade"]["mean_return"] == 440.0
    assert set(runs) == {"ppo", "compress"}
