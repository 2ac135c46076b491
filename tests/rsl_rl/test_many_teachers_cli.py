"""``distillation.py`` with many teachers: their vehicles and environments, figures, resuming, and bad sets."""

from __future__ import annotations

import json
from pathlib import Path

import many_teachers
import pytest
import torch
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_runs import arguments, differing, run_folder

from foundation.core.errors import UserError
from foundation.rsl_rl.distillation import main

QUICK = ["distill.teacher.check=false"]


def run(monkeypatch, folder: Path, *more, **flags) -> Path:
    """Run the command in a folder of its own and return its run."""
    folder.mkdir(exist_ok=True)
    monkeypatch.chdir(folder)
    assert main([*arguments(flags.pop("teacher_checkpoint"), *QUICK, *more, **flags)]) == 0
    return run_folder(folder)


@pytest.fixture(scope="module")
def fleet(tmp_path_factory) -> Path:
    return many_teachers.write_set(tmp_path_factory.mktemp("fleet"), 5, vehicles=True)


def test_each_teacher_flies_its_own_vehicle_and_has_its_own_figures(monkeypatch, tmp_path, fleet, capsys):
    """A manifest of 5: 16 environments become 20, vehicles in the teachers' order, figures of each by name."""
    chosen = ["--num_active_teachers", "2", "--teacher_selection", "worst", "--position_offset_correction"]
    path = run(monkeypatch, tmp_path, *chosen, teacher_checkpoint=fleet, n_epochs=3, epoch_teacher_forcing=1)
    assert "--num_envs 16 is rounded up to 20, a multiple of the 5 teachers" in capsys.readouterr().err
    env = yaml.unsafe_load((path / "params" / "env.yaml").read_text())
    assert [Path(vehicle).stem for vehicle in env["vehicles"]] == [f"quad_{i:04d}" for i in range(5)]
    summary = json.loads((path / "summary.json").read_text())["teachers"]
    assert list(summary["each"]) == [f"quad_{i:04d}" for i in range(5)]
    returns = [each["student_return"] for each in summary["each"].values()]
    assert summary["student"]["worst"] == min(returns) and summary["student"]["best"] == max(returns)
    events = EventAccumulator(str(path)).Reload()
    tags = set(events.Tags()["scalars"])
    wanted = {"evaluation_by_teacher/quad_0003", "baseline_by_teacher/quad_0000", "evaluation/worst_teacher_return"}
    assert wanted <= tags
    active = {scalar.step: scalar.value for scalar in events.Scalars("data_collection/active_teachers")}
    assert active == {1: 5.0, 2: 2.0, 3: 2.0}


def test_a_resumed_run_of_many_teachers_is_bit_identical(monkeypatch, tmp_path, fleet):
    """Stopped after 2 of 4 epochs and resumed: the same final student, bit for bit, with selection and correction."""
    options = ["--num_active_teachers", "2", "--teacher_selection", "random", "--position_offset_correction"]
    argv = arguments(fleet, *QUICK, *options, n_epochs=4, epoch_teacher_forcing=1, num_envs=10)
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    assert main(argv) == 0
    whole = run_folder(tmp_path / "whole")
    (tmp_path / "parts").mkdir()
    monkeypatch.chdir(tmp_path / "parts")
    from foundation.runs.run_dir import RunDir
    from foundation.runs.runner import DistillationRunner

    epoch = DistillationRunner.run_epoch

    def stop_after_two(self, number):
        epoch(self, number)
        if number == 1:
            self.context.interrupted = lambda: "the test"

    monkeypatch.setattr(DistillationRunner, "run_epoch", stop_after_two)
    main(argv)
    monkeypatch.setattr(DistillationRunner, "run_epoch", epoch)
    parts = run_folder(tmp_path / "parts")
    assert not (parts / "final_student.pt").exists()
    monkeypatch.setattr(RunDir, "lock", lambda run: None)  # the interrupted run was this process too
    assert main(["--resume"]) == 0
    assert differing(whole / "final_student.pt", parts / "final_student.pt") == []
    one, other = (json.loads((path / "summary.json").read_text())["teachers"] for path in (whole, parts))
    assert one == other


@pytest.mark.parametrize("combine", ["per_env", "mean"])
def test_a_run_goes_on_with_its_own_teachers_alone(monkeypatch, tmp_path, combine):
    """Reordered, or one fewer, they are refused by name: rows and figures are kept by the teachers' numbers."""
    from foundation.runs.run_dir import RunDir

    manifest = many_teachers.write_set(tmp_path, 3)
    monkeypatch.setattr(RunDir, "lock", lambda run: None)  # the run to go on with was this process too
    run(monkeypatch, tmp_path, f"distill.teacher.combine={combine}", teacher_checkpoint=manifest, n_epochs=1)
    teachers = yaml.safe_load(manifest.read_text())
    for names in (list(reversed(teachers["teachers"])), teachers["teachers"][:2]):
        manifest.write_text(yaml.safe_dump(teachers | {"teachers": names}))
        with pytest.raises(UserError, match=rf"had other teachers.*: 3 \(quad_0000.* now {len(names)} \(quad"):
            main(["--resume", "--n_epochs", "2"])


def test_weak_teachers_are_dropped_by_name(monkeypatch, tmp_path, fleet, capsys):
    """``--teacher_below_min drop`` leaves out those below the floor and goes on with the others' vehicles."""
    first = run(monkeypatch, tmp_path / "all", teacher_checkpoint=fleet, n_epochs=1, num_eval_episodes=20)
    events = EventAccumulator(str(first)).Reload()
    scores = {f"quad_{i:04d}": events.Scalars(f"baseline_by_teacher/quad_{i:04d}")[0].value for i in range(5)}
    low = sorted(scores, key=lambda name: scores[name])[:2]
    floor = (sorted(scores.values())[1] + sorted(scores.values())[2]) / 2
    options = ["--teacher_min_return", str(floor), "--teacher_below_min", "drop"]
    path = run(monkeypatch, tmp_path / "few", *options, teacher_checkpoint=fleet, n_epochs=1, num_eval_episodes=20)
    assert f"2 of 5 teachers are dropped, below {floor:g}: {low[0]}, {low[1]}" in capsys.readouterr().err
    summary = json.loads((path / "summary.json").read_text())["teachers"]
    assert summary["number"] == 3 and summary["dropped"] == low
    env = yaml.unsafe_load((path / "params" / "env.yaml").read_text())
    assert [Path(vehicle).stem for vehicle in env["vehicles"]] == [name for name in sorted(scores) if name not in low]
    with pytest.raises(UserError, match=f"2 of 5 teachers are below --teacher_min_return {floor:g}: {low[0]}"):
        run(monkeypatch, tmp_path / "no", *options[:2], teacher_checkpoint=fleet, n_epochs=1, num_eval_episodes=20)


@pytest.mark.parametrize("combine", ["mean", "uncertainty", "value"])
def test_several_teachers_for_one_environment_teach_together(monkeypatch, tmp_path, combine, capsys):
    """Files given one after the other, with an override behind them, are an ensemble whose baseline is one policy."""
    files = [many_teachers.write_mlp(tmp_path / f"{name}.pt", seed) for seed, name in enumerate("ab")]
    path = run(
        monkeypatch,
        tmp_path / "run",
        "--teacher_checkpoint",
        files[1],
        f"distill.teacher.combine={combine}",
        teacher_checkpoint=files[0],
        n_epochs=1,
    )
    assert f"2 teachers, combined by {combine}" in capsys.readouterr().out
    assert "teachers" not in json.loads((path / "summary.json").read_text())


def test_experts_are_chosen_by_a_function(monkeypatch, tmp_path, capsys):
    """``distill.teacher.expert`` takes a function of the groups; each expert has its figures."""
    (tmp_path / "terrain.py").write_text(
        "def level(obs):\n    return (obs['policy'][:, 2] > 0).long()  # above or below the target\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for seed, name in enumerate("ab"):
        many_teachers.write_mlp(tmp_path / "set" / f"{name}.pt", seed)
    more = ["distill.teacher.expert=terrain:level"]
    path = run(monkeypatch, tmp_path / "run", *more, teacher_checkpoint=tmp_path / "set", n_epochs=2)
    assert "2 teachers, chosen per environment" in capsys.readouterr().out
    assert set(json.loads((path / "summary.json").read_text())["teachers"]["each"]) == {"a", "b"}


def test_one_file_is_one_teacher(monkeypatch, tmp_path):
    """The path of one checkpoint gives no ensemble: no figures by teacher, any number of environments."""
    file = many_teachers.write_mlp(tmp_path / "model_1.pt", 1)
    path = run(monkeypatch, tmp_path / "run", teacher_checkpoint=file, n_epochs=1, num_envs=7)
    assert "teachers" not in json.loads((path / "summary.json").read_text())
    assert yaml.unsafe_load((path / "params" / "distillation.yaml").read_text())["num_envs"] == 7


def test_a_student_with_noise_learns_from_teachers_without(monkeypatch, tmp_path, fleet):
    """Noise of ``deployable`` is in the student's stored observations; its teachers read ``policy``, which is exact."""
    from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
    from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs, cfg.observation_noise.deployable.position = 2000, 0.1
    obs = QuadcopterPointCtrlEnv(cfg).reset(1)
    difference = obs["deployable"] - obs["policy"][:, :22]
    assert abs(float(difference[:, :3].std()) - 0.1) < 0.005 and float(difference[:, 3:].abs().max()) == 0.0
    more = ["distill.student.obs_groups=[deployable]", "env.observation_noise.deployable.position=0.1"]
    path = run(monkeypatch, tmp_path, *more, teacher_checkpoint=fleet, n_epochs=2, epoch_teacher_forcing=1)
    checkpoint = torch.load(path / "best_student.pt", weights_only=True)
    assert checkpoint["obs_groups"] == ["deployable"]


# -- what cannot be a set -----------------------------------------------------------------------------------------


def broken_sets(folder: Path) -> dict[str, tuple[list, str]]:
    """Return arguments of bad sets, by name, and what the one line must say."""

    def manifest(of: str, **change) -> Path:
        path = many_teachers.write_set(folder / of, 2, vehicles=True)
        data = yaml.safe_load(path.read_text())
        data["teachers"][1] |= change
        path.write_text(yaml.safe_dump(data))
        return path

    heavy = manifest("heavy")
    vehicle = folder / "heavy" / "vehicles" / "quad_0001.json"
    parameters = json.loads(vehicle.read_text())
    parameters["dynamics"]["mass"] = -1.0
    vehicle.write_text(json.dumps(parameters))
    other = manifest("other")
    many_teachers.write_mlp(folder / "other" / "teachers" / "quad_0001.pt", 1, hidden=(8,))
    (folder / "empty").mkdir()
    (folder / "list.yaml").write_text("- a\n")
    plain = manifest("plain")
    single = folder / "plain" / "teachers" / "quad_0000.pt"
    (folder / "a_run").mkdir()
    many_teachers.write_mlp(folder / "a_run" / "model_50.pt", 1)
    return {
        "missing checkpoint": ([manifest("gone", checkpoint="no.pt")], "teacher 'quad_0001' names the checkpoint"),
        "missing vehicle": ([manifest("lost", vehicle="no.json")], "teacher 'quad_0001' names the vehicle"),
        "negative mass": ([heavy], "mass' must be positive"),
        "different sizes": ([other], "'quad_0000' and 'quad_0001' differ in their hidden layers"),
        "same name": ([manifest("twins", name="quad_0000")], "two teachers named 'quad_0000'"),
        "unknown key": ([manifest("odd", vehicles="x")], "teacher 1 has 'vehicles'"),
        "bad status": ([manifest("bad", status="fine")], "status 'fine'"),
        "bad number": ([manifest("nan", mean_return="high")], "'mean_return' must be a number"),
        "no vehicle": ([manifest("bare", vehicle=None)], "teacher 'quad_0001' has no vehicle"),
        "not a manifest": ([folder / "list.yaml"], "is not a manifest of teachers"),
        "empty folder": ([folder / "empty"], "has no teachers.yaml and no *.pt"),
        "no match": ([folder / "*.none"], "nothing matches"),
        "a run": ([folder / "a_run"], "is the folder of one training run"),
        "below minimum": ([plain, "--teacher_min_return", "1e6"], "2 of 2 teachers are below --teacher_min_return"),
        "all dropped": (
            [plain, "--teacher_min_return", "1e6", "--teacher_below_min", "drop"],
            "all 2 teachers are below --teacher_min_return",
        ),
        "drop below what": ([plain, "--teacher_below_min", "drop"], "below --teacher_min_return: give both"),
        "no such policy": ([plain, "--teacher_below_min", "ignore"], "--teacher_below_min is 'ignore'"),
        "selection alone": ([plain, "--teacher_selection", "best"], "go together: give both"),
        "emphasis alone": ([plain, "distill.teacher.emphasis=4"], "give --num_active_teachers"),
        "weight of a stranger": ([plain, "distill.teacher.weights.quad_0010=4"], "Did you mean 'quad_0001'"),
        "weight of nothing": ([plain, "distill.teacher.weights.quad_0001=0"], "1 to 255"),
        "weight in parts": ([plain, "distill.teacher.weights.quad_0001=1.5"], "weights"),
        "weight of one": ([single, "distill.teacher.weights.quad_0001=2"], "needs several teachers"),
        "weight of an expert": (
            [plain, "distill.teacher.expert=many_teachers:ninth", "distill.teacher.weights.quad_0001=2"],
            "combine=per_env",
        ),
        "active of one": (
            [single, "--num_active_teachers", "1", "--teacher_selection", "best"],
            "need several teachers",
        ),
        "more active than there are": (
            [plain, "--num_active_teachers", "3", "--teacher_selection", "best"],
            "there are 2 teachers",
        ),
        "dropped of one": ([single, "distill.teacher.dropped=[quad_0001]"], "need several teachers"),
        "unknown dropped": ([plain, "distill.teacher.dropped=[quad_0007]"], "there is no teacher 'quad_0007'"),
        "expert out of range": (
            [plain, "distill.teacher.expert=many_teachers:ninth"],
            "chose teacher 9",
        ),
        "expert that fails": ([plain, "distill.teacher.expert=math:floor"], "floor failed: TypeError: must be real"),
        "expert of no module": ([plain, "distill.teacher.expert=:ninth"], "':ninth' cannot be imported"),
        "expert of a relative module": ([plain, "distill.teacher.expert=.a:ninth"], "'.a:ninth' cannot be imported"),
        "unknown expert": ([plain, "distill.teacher.expert=skill"], "no observation group 'skill'"),
        "mix and beta": ([plain, "--teacher_student_mix", "1", "collection.beta.kind=linear"], "both set who acts"),
    }


def test_a_bad_set_is_one_clear_line(monkeypatch, tmp_path):
    """Every bad set or flag is one line that names what is wrong, and leaves no run behind."""
    monkeypatch.chdir(tmp_path)
    wrong = {}
    for name, (more, words) in broken_sets(tmp_path).items():
        argv = [*arguments(more[0], *QUICK, *more[1:], n_epochs=1, num_envs=4, num_eval_episodes=4)]
        try:
            main(argv)
            wrong[name] = "no error"
        except UserError as error:
            line = str(error)
            if words not in line or "\n" in line:
                wrong[name] = line
    assert wrong == {}
    assert not list(tmp_path.glob("logs/distillation/*/*"))
