"""The pipeline from sampled vehicles to one student, and its ablation: at tiny sizes, and their rules."""

from __future__ import annotations

import importlib.util
import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from l2f_flights import PUBLISHED, flight, recorded_and_live
from many_teachers import write_set
from task_flights import hover

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import raptor_ablation
import raptor_pipeline
from raptor import report, stages
from raptor.flights import Flight, fly, load_flyer, published_policy, summarise

from foundation.core.errors import UserError
from foundation.rollout.evaluate import EvaluationResult
from foundation.tasks.quadrotor.sim import l2f_dynamics
from foundation.tasks.quadrotor.sim.vehicles import load_vehicles


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """An empty working folder: everything is written below it."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_stage_is_run_once(folder):
    """A second start skips what is done and keeps its figures; what failed is run again; CPU time is counted."""
    calls: list[str] = []

    def work() -> dict:
        calls.append("work")
        sum(i * i for i in range(2_000_000))
        return {"run": "here"}

    def fail() -> None:
        calls.append("fail")
        raise UserError("no")

    first = stages.Stages(folder / "job", {"n": 1})
    done = first.run("one", work)
    with pytest.raises(UserError):
        first.run("two", fail)
    again = stages.Stages(folder / "job", {"n": 1})
    assert again.run("one", work) == done
    assert done["run"] == "here"
    assert 0.01 < done["cpu_seconds"] < 10
    with pytest.raises(UserError):
        again.run("two", fail)
    assert calls == ["work", "fail", "fail"]
    with pytest.raises(UserError, match=r"other settings \(n: 1, now 2\)"):
        stages.Stages(folder / "job", {"n": 2})


def test_settings_of_a_stage_to_come_may_be_changed(folder):
    """Until it is done; what was begun with others is not gone on with, and what was done before is kept."""

    def fail() -> None:
        raise UserError("no")

    first_used = {"tokens": "two"}
    job = stages.Stages(folder, {"n": 1, "tokens": ["wrong"]}, first_used)
    job.run("one", dict)
    with pytest.raises(UserError):
        job.run("two", fail)
    assert "two" in stages.Stages(folder, {"n": 1, "tokens": ["wrong"]}, first_used).begun
    job = stages.Stages(folder, {"n": 1, "tokens": []}, first_used)
    assert list(job.done) == ["one"] and job.begun == {}
    job.run("two", dict)
    with pytest.raises(UserError, match=r"other settings \(tokens: \[\], now \['wrong'\]\)"):
        stages.Stages(folder, {"n": 1, "tokens": ["wrong"]}, first_used)


def test_a_stage_that_was_stopped_counts_all_it_took(folder):
    """Attempts add up, in the next process too; a folder is of its settings from its first stage's start."""

    def stop() -> None:
        time.sleep(0.2)
        raise SystemExit(130)

    job = stages.Stages(folder / "job", {"n": 1})
    with pytest.raises(SystemExit):
        job.run("one", stop)
    with pytest.raises(UserError, match="other settings"):
        stages.Stages(folder / "job", {"n": 2})
    done = stages.Stages(folder / "job", {"n": 1}).run("one", lambda: {"run": "here"})
    assert done["wall_seconds"] > 0.2 and done["run"] == "here"
    assert stages.Stages(folder / "job", {"n": 1}).done["one"] == done


def test_a_distillation_that_was_stopped_goes_on(folder, monkeypatch):
    """The run that this folder has begun is resumed; of other names, teachers, from before, or empty ones are not."""
    manifest = write_set(folder / "set", 2, vehicles=True)
    runs = folder / "logs" / "distillation" / "raptor"
    calls: list[list[str]] = []

    def begin(name: str, teachers: object) -> None:
        (runs / name / "params").mkdir(parents=True)
        (runs / name / "params" / "distillation.yaml").write_text(f"teacher:\n  checkpoint: {teachers}\n")
        (runs / name / "checkpoint_latest.pt").touch()

    def python(script: str, *arguments: object, log: Path) -> None:
        calls.append([str(argument) for argument in arguments])
        if len(calls) == 1:
            begin("2999-01-01_00-00-00_2", manifest)
            begin("2999-01-01_00-00-01_2", "other.yaml")
            begin("2999-01-01_00-00-02_quick_2", manifest)
            begin("2999-01-01_00-00-03_2", manifest)
            (runs / "2999-01-01_00-00-03_2" / "checkpoint_latest.pt").unlink()
            raise SystemExit(130)

    begin("2020-01-01_00-00-00_2", manifest)
    monkeypatch.setattr(stages, "python", python)
    args = raptor_pipeline.parse(["2", "--quick", "--teachers", str(manifest)])
    for _ in range(2):
        pipeline = raptor_pipeline.Pipeline(args)
        try:
            found = pipeline.stages.run("distillation", pipeline.distil)
        except SystemExit:
            assert "--resume" not in calls[-1]
    mine = "logs/distillation/raptor/2999-01-01_00-00-00_2"
    assert calls[1] == ["--resume", "--load_run", mine]
    assert found["run"] == mine


def test_a_failing_command_is_one_line_that_names_its_output(folder, capsys):
    """The end of the output is shown, and the error says where all of it is."""
    with pytest.raises(UserError, match=r"play.py failed with exit code 2; its output is in '.*play.log'"):
        stages.python("foundation/rsl_rl/play.py", "--agent", "zero", log=folder / "play.log")
    assert "needs a task" in capsys.readouterr().err


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="asks Linux for a signal at the parent's death")
def test_a_command_ends_with_its_pipeline(folder):
    """After kill -9 of the pipeline the command gets SIGTERM, saves, and ends, instead of writing on its own."""
    child = folder / "child.py"
    child.write_text(
        "import signal, sys, time, pathlib\n"
        "def end(*_): pathlib.Path('saved').touch(); sys.exit()\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "pathlib.Path('running').touch()\n"
        "time.sleep(60)\n"
    )
    parent = (
        f"import sys; sys.path[:0] = [{str(stages.ROOT / 'scripts')!r}, {str(stages.ROOT)!r}]\n"
        f"from pathlib import Path; from raptor import stages; stages.python({str(child)!r}, log=Path('log'))"
    )
    pipeline = subprocess.Popen([sys.executable, "-c", parent], cwd=folder)
    wait_for(folder / "running")
    assert not (folder / "saved").exists()
    pipeline.kill()
    pipeline.wait()
    wait_for(folder / "saved")


def wait_for(path: Path) -> None:
    """Wait until a file is there."""
    deadline = time.monotonic() + 30.0
    while not path.exists():
        assert time.monotonic() < deadline, f"{path} never came"
        time.sleep(0.02)


@pytest.mark.parametrize(("missing", "says"), [("l2f", "'l2f'"), ("matplotlib", "'matplotlib'")])
def test_what_the_last_stage_needs_is_asked_for_before_the_first(folder, monkeypatch, missing, says):
    """Hours of training do not end in "not installed": nothing is sampled, and the line says how to install it."""
    from foundation.engines import engine_class

    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found(name))
    monkeypatch.setattr(engine_class("l2f"), "why_not", lambda task: "needs 'l2f'" if missing == "l2f" else None)
    pipeline = raptor_pipeline.Pipeline(raptor_pipeline.parse(["2", "--quick", "--folder", str(folder / "new")]))
    with pytest.raises(UserError, match=says) as caught:
        pipeline.run()
    assert "pip install" in str(caught.value)
    assert not (folder / "new" / "vehicles").exists()


def test_how_far_a_command_is_is_shown(folder, capsys, monkeypatch):
    """The last line that counts something, as it changes, and nothing twice; paths with numbers count nothing."""
    script = folder / "slow.py"
    script.write_text(
        "import time\n"
        "print('reads logs/raptor/64/2 of it', flush=True)\n"
        "for number in (1, 2):\n"
        "    print(f'Epoch {number}/2 (student), 7 env steps/s\\nTraining - Mean loss: 1', flush=True)\n"
        "    time.sleep(1)\n"
    )
    monkeypatch.setattr(stages, "SHOW_EVERY", 0.2)
    stages.python(str(script), log=folder / "slow.log")
    shown = [line for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert shown == ["    Epoch 1/2 (student), 7 env steps/s", "    Epoch 2/2 (student), 7 env steps/s"]


def test_episodes_are_sorted_by_vehicle():
    """Means by hand; errors are those of episodes flown to their end."""
    result = EvaluationResult(
        returns=torch.tensor([10.0, 20.0, 30.0, 40.0]),
        lengths=torch.full((4,), 500.0),
        success=torch.tensor([1.0, 0.0, 1.0, 0.0]),
        metrics={"position_error": torch.tensor([0.1, 9.0, 0.3, 9.0])},
    )
    flight = summarise(result, torch.tensor([0, 1, 0, 1]), 2)
    assert flight.returns == [20.0, 30.0]
    assert flight.terminations == [0.0, 1.0]
    assert flight.errors == [pytest.approx(0.2), None]
    assert flight.error == pytest.approx(0.2)
    assert (flight.mean_return, flight.terminated, flight.episodes) == (25.0, 0.5, 4)


@recorded_and_live
def test_the_published_policy_hovers_beside_the_target(source):
    """On the Crazyflie it stays 5.3 cm off, as published for it, in our simulator and in rl-tools' own alike."""
    flights = [hover("torch"), flight("hover", source)]
    for flown in flights:
        assert flown["error"] == pytest.approx(0.053, abs=0.001)
        assert flown["terminated"] < 0.2
    assert flights[0]["mean_return"] == pytest.approx(flights[1]["mean_return"], rel=1e-3)


@pytest.mark.l2f
def test_the_published_policy_is_found_in_its_package():
    """The pipeline flies the file of the installed package."""
    path = published_policy()
    assert path is not None
    assert path.read_bytes() == PUBLISHED.read_bytes()


def test_without_l2f_the_pipeline_does_not_begin(folder, capsys, monkeypatch):
    """What only the last stage needs is asked for before hours of training: one line that names the extra."""
    monkeypatch.setattr(l2f_dynamics.importlib.util, "find_spec", lambda name: None)
    assert raptor_pipeline.main(["2", "--folder", "made", "--quick"]) == 2
    shown = capsys.readouterr().err
    assert "'l2f' is not installed: pip install -e '.[raptor]'" in shown
    assert len([line for line in shown.splitlines() if line.startswith("error")]) == 1
    assert not list((folder / "made").rglob("*.json"))


def test_teachers_fly_their_own_vehicles(folder):
    """A manifest's teachers are stacked in its order, each on its vehicle, equally often."""
    manifest = write_set(folder / "set", 3, vehicles=True)
    manifest = manifest.rename(manifest.with_suffix(".yml"))
    teachers, vehicles = load_flyer(manifest)
    assert len(vehicles) == 3
    flight = fly(teachers, "torch", vehicles, 2, 5)
    assert (len(flight.returns), flight.episodes) == (3, 6)
    assert flight.mean_return == pytest.approx(sum(flight.returns) / 3, rel=1e-5)


@pytest.mark.l2f
@pytest.mark.slow
def test_the_pipeline_runs_and_goes_on(folder, capsys, monkeypatch):
    """With teachers that are there: held-out vehicles, distillation, flights, table and figure; then all is skipped."""
    manifest = write_set(folder / "set", 2, vehicles=True)
    monkeypatch.setattr(raptor_pipeline, "CRAZYFLIE_EPISODES", 2)
    argv = ["--folder", "logs/raptor/2", "--quick", "--teachers", str(manifest), "--held_out", "3", "--"]
    argv += ["--n_epochs", "2", "--num_envs", "8", "distill.teacher.check=false", "env.episode_length_s=0.5"]
    assert raptor_pipeline.main(argv) == 0
    out = folder / "logs" / "raptor" / "2"
    flights = json.loads((out / "flights.json").read_text())
    assert set(flights["training"]["l2f"]) == {"student", "published", "teachers"}
    assert set(flights["held_out"]["torch"]) == {"student", "published"}
    assert len(flights["held_out"]["torch"]["student"]["returns"]) == 3
    assert load_vehicles(str(out / "held_out")).num_vehicles == 3
    assert (out / "figure.png").stat().st_size > 5000
    table = (out / "table.md").read_text()
    assert "# 2 teachers, one student of 2084 parameters" in table
    assert "| distillation |" in table
    capsys.readouterr()
    assert raptor_pipeline.main(argv) == 0
    assert capsys.readouterr().out.count("done before") == 3


@pytest.mark.parametrize("script", ["raptor_pipeline", "raptor_ablation"])
def test_ctrl_c_is_no_traceback(script, folder, monkeypatch):
    """Between two commands too: the exit code of a signal, and nothing else."""

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("foundation.cli.parser.ScriptParser.read", stop)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(Path(stages.ROOT) / "scripts" / f"{script}.py"), run_name="__main__")
    assert ended.value.code == 130


@pytest.mark.parametrize(
    "text", ["{", "3", '{"stages": []}', '{"stages": {"vehicles": 3}}', '{"begun": {"x": {}}}', '{"settings": 3}']
)
def test_damaged_stages_are_one_line(folder, text, capsys):
    """The file is named, and what to do."""
    (folder / "stages.json").write_text(text)
    assert raptor_pipeline.main(["2", "--folder", str(folder)]) == 2
    assert "stages.json' is corrupt" in capsys.readouterr().err


def test_a_misspelt_manifest_leaves_nothing_behind(folder, capsys):
    """The folder is not begun with it: the right one would be other settings."""
    assert raptor_pipeline.main(["2", "--teachers", "none.yaml"]) == 2
    assert "'none.yaml' does not exist" in capsys.readouterr().err
    assert list(folder.iterdir()) == []


def test_a_file_where_the_folder_is_to_be_is_one_line(folder, capsys, monkeypatch):
    """No traceback."""
    monkeypatch.setattr("raptor.flights.check_needed", lambda: None)
    (folder / "taken").touch()
    assert raptor_pipeline.main(["2", "--folder", "taken"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: cannot write 'taken/stages.json': File exists.") and len(error.splitlines()) == 1


def test_the_pipeline_sets_some_arguments_itself(folder, capsys):
    """What it decides cannot be typed behind ``--``."""
    assert raptor_pipeline.main(["2", "--", "--task", "Other"]) == 2
    assert "the pipeline sets this itself" in capsys.readouterr().err
    assert stages.checked_tokens(["--n_epochs", "3"]) == ["--n_epochs", "3"]


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("--n_epoch", "'--n_epochs'"),
        ("distill.student.hiden_size=32", "hidden_size"),
        ("--teacher_selection=worse", "worst"),
        ("distill.teacher.weights.crazyflie=0", "1 to 255"),
        ("env.observation_nois.deployable.position=0.1", "observation_noise"),
        ("--resume", "the pipeline sets this itself"),
    ],
)
def test_what_the_distillation_would_refuse_is_refused_before_anything_is_trained(folder, capsys, token, says):
    """One line, and nothing is begun: hours of teachers lie between a typing mistake and its stage."""
    assert raptor_pipeline.main(["2", "--", token]) == 2
    error = capsys.readouterr().err
    assert says in error and len(error.splitlines()) == 1
    assert not (folder / "logs").exists()


def test_a_seed_that_is_none_begins_nothing(folder, capsys):
    """The folder would be of this seed, and the right one would be other settings."""
    assert raptor_pipeline.main(["2", "--seed", "-5"]) == 2
    error = capsys.readouterr().err
    assert "must be between 0 and 4294967295, got -5" in error and len(error.splitlines()) == 1
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(("number", "passed"), [("SIGHUP", "SIGTERM"), ("SIGTERM", "SIGTERM"), ("SIGINT", "SIGINT")])
def test_a_signal_is_passed_on(folder, number, passed):
    """A closed terminal's too: the command, in a group of its own, would be left running on its own."""
    script = folder / "slow.py"
    script.write_text(
        "import os, signal, sys, time\n"
        f"signal.signal(signal.{passed}, lambda *_: sys.exit(print('saved')))\n"
        f"os.kill(os.getppid(), signal.{number})\n"
        "time.sleep(30)\n"
    )
    before = signal.signal(signal.Signals[number], lambda *_: None)  # whatever these tests run under, such as nohup
    try:
        with pytest.raises(SystemExit) as ended:
            stages.python(str(script), log=folder / "slow.log")
    finally:
        signal.signal(signal.Signals[number], before)
    assert ended.value.code == 128 + signal.Signals[number]
    assert (folder / "slow.log").read_text().endswith("saved\n")


def test_the_deployed_vehicle_and_the_worst_are_learned_from_most():
    """Where the Crazyflie has a teacher its rows weigh more; a teacher alone has nothing to be chosen from."""
    names = [f"quad_{i:04}" for i in range(15)]
    emphasis = ["--num_active_teachers", "1", "--teacher_selection", "worst", "distill.teacher.emphasis=8"]
    assert raptor_pipeline.emphasis_tokens(names) == emphasis
    deployed = raptor_pipeline.emphasis_tokens([*names, "crazyflie"])
    assert deployed == ["--num_active_teachers", "2", *emphasis[2:], "distill.teacher.weights.crazyflie=16"]
    assert raptor_pipeline.emphasis_tokens(["crazyflie"]) == []
    weights = [
        raptor_pipeline.emphasis_tokens(["crazyflie", *map(str, range(others))])[-1].rpartition("=")[2]
        for others in (71, 262, 1007, 2000)
    ]
    assert weights == ["16", "58", "224", "255"], "its share stays, up to the largest weight that there is"


@pytest.mark.parametrize("script", [raptor_pipeline, raptor_ablation])
def test_teachers_that_cannot_be_flown_are_refused_at_once(folder, script, capsys):
    """Without vehicles, or with none that has not failed: one line, before anything is distilled."""
    manifest = write_set(folder / "set", 2)
    flag = ["--teachers" if script is raptor_pipeline else "--manifest", str(manifest)]
    assert script.main(flag) == 2
    assert "no vehicles to fly" in capsys.readouterr().err
    manifest.write_text(manifest.read_text().replace("status: ok", "status: failed"))
    assert script.main(flag) == 2
    assert "every teacher has failed" in capsys.readouterr().err
    assert not (folder / "logs" / "distillation").exists()


def test_held_out_vehicles_are_those_that_were_sampled_now(folder):
    """A file from an earlier, stopped ablation of another size is not flown in their place."""
    raptor_ablation._write_vehicles(folder / "held_out", [{"mass": 1.0}])
    files = raptor_ablation._write_vehicles(folder / "held_out", [{"mass": 2.0}, {"mass": 3.0}])
    assert [json.loads(Path(file).read_text())["mass"] for file in files] == [2.0, 3.0]


def test_every_axis_varies_one_thing_around_the_same_setting():
    """Each axis has its own values and the others' defaults; no more teachers than there are."""
    base = raptor_ablation.Setting()
    for axis, values in raptor_ablation.AXES.items():
        settings = raptor_ablation.settings_of(axis, 0, 16)
        assert [getattr(setting, axis) for setting in settings] == values
        assert base in settings
        assert len({setting.name for setting in settings}) == len(values)
    assert [s.num_teachers for s in raptor_ablation.settings_of("num_teachers", 0, 4)] == [1, 4]


def test_settings_become_arguments():
    """Selection makes a quarter of the teachers active; noise is the environment's; nothing is said of defaults."""
    setting = raptor_ablation.Setting(teacher_selection="worst", offset_correction=True, observation_noise=True)
    tokens = setting.tokens(100)
    assert tokens[tokens.index("--num_active_teachers") + 1] == "4"
    assert tokens[tokens.index("--teacher_selection") + 1] == "worst"
    assert "--position_offset_correction" in tokens
    assert "env.observation_noise.deployable.position=0.005" in tokens
    plain = raptor_ablation.Setting(teacher_forcing=50).tokens(20)
    assert "--num_active_teachers" not in plain
    assert plain[plain.index("--epoch_teacher_forcing") + 1] == "20"
    assert not any(token.startswith("env.") for token in plain)


def _figures(mean: float, error: float | None) -> dict:
    flight = Flight(mean, 1.0, 0.25, error or float("nan"), 0.1, 4, [mean], [0.25], [error])
    return {"return_ratio": 0.5, "cpu_seconds": 3.0, "training": flight.plain(), "held_out": flight.plain()}


def test_a_finished_run_is_kept_and_drawn(folder, monkeypatch):
    """Settings are measured once, whatever axes share them; other sizes are refused; pictures and table are written."""
    manifest = write_set(folder / "set", 2, vehicles=True)
    measured: list[str] = []

    def measure(self, setting):
        measured.append(setting.name)
        return _figures(100.0 + setting.hidden_size, None) | {"sizes": raptor_ablation.sizes_of(self.args)}

    monkeypatch.setattr(raptor_ablation.Ablation, "measure", measure)
    argv = ["--manifest", str(manifest), "--axes", "hidden_size", "observation_noise", "--out", "docs/results/raptor"]
    assert raptor_ablation.main([*argv, "--list"]) == 0
    assert measured == []
    assert raptor_ablation.main(argv) == 0
    assert len(measured) == len(set(measured)) == 5
    assert raptor_ablation.main(argv) == 0
    assert len(measured) == 5
    axes = json.loads((folder / "docs" / "results" / "raptor_ablation.json").read_text())["axes"]
    assert list(axes) == ["hidden_size", "observation_noise"]
    assert [axes["hidden_size"][size]["held_out"]["mean_return"] for size in ("8", "64")] == [108.0, 164.0]
    assert (folder / "docs" / "results" / "raptor_hidden_size.png").stat().st_size > 3000
    assert raptor_ablation.main([*argv, "--n_epochs", "7"]) == 2
    argv[3:5] = ["offset_correction"]
    assert raptor_ablation.main(argv) == 0
    axes = json.loads((folder / "docs" / "results" / "raptor_ablation.json").read_text())["axes"]
    assert list(axes) == ["offset_correction", "hidden_size", "observation_noise"], "what was run before is kept"


def test_quick_pictures_do_not_replace_the_published_ones():
    """Unless they are asked to."""
    argv = ["--manifest", "teachers.yaml"]
    assert raptor_ablation.parse(argv).out == Path("docs/results/raptor")
    assert raptor_ablation.parse([*argv, "--quick"]).out == Path("logs/raptor_ablation/quick/raptor")


def test_means_over_seeds_leave_out_what_is_missing():
    """Runs without a survivor have no steady-state error; the mean is over the others."""
    row = raptor_ablation.mean_of([_figures(10.0, None) | {"held_out": {**_figures(10.0, 0.2)["held_out"]}}])
    assert row["held_out"]["error"] == pytest.approx(0.2)
    two = [_figures(10.0, 0.2), _figures(20.0, 0.4)]
    two[1]["training"]["error"] = None
    row = raptor_ablation.mean_of(two)
    assert row["held_out"]["mean_return"] == 15.0
    assert row["training"]["error"] == pytest.approx(0.2)
    assert (
        raptor_ablation.table_row("hidden_size", "8", row)
        == "| hidden size | 8 | 50.0 % | 25.0 % | 15.0 | 25.0 % | 30.0 | 3 |"
    )


def test_the_table_leaves_blank_what_is_not_known():
    """No survivor: no error; no teachers: no share of their return."""
    flight = {**_figures(100.0, None)["held_out"], "error": None, "error_median": None, "return_interval_95": None}
    flights = {"held_out": {"torch": {"student": flight}}}
    spent = {"flights": {"wall_seconds": 2.0, "cpu_seconds": 1.0}}
    text = report.markdown(4, spent, flights, {"parameters": {"student": 2084}})
    assert "| torch | student | 100.0 |  | 25.00 % | – | – |" in text
    assert "| **together** | 2.0 | 1.0 |" in text
    flights["held_out"]["torch"]["teachers"] = flight | {"mean_return": -50.0}
    assert "| torch | student | 100.0 |  |" in report.markdown(4, spent, flights, {}), "no share of a loss"
