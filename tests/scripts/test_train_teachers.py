"""``scripts/sample_vehicles.py`` and ``scripts/train_teachers.py``."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from command_server import run_script
from rich.console import Console
from rsl_rl.runners import OnPolicyRunner

from foundation.cli.command import Interrupt, run_command
from foundation.core.files import lock_folder
from foundation.ppo.versions import translate
from foundation.tasks.quadrotor.sim.vehicle_folder import write_vehicles
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles
from foundation.tasks.quadrotor.training.bptt import PolicyStack
from foundation.tasks.quadrotor.training.critic_fit import discounted_returns
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.manifest import find_teachers

SCRIPTS = Path(__file__).resolve().parents[2] / "scripts"
sys.path.insert(0, str(SCRIPTS))

import train_teachers  # noqa: E402
from raptor.stages import COUNTS  # noqa: E402
from teacher_training.checkpoints import STD, checkpoint, write_teachers  # noqa: E402
from teacher_training.critics import CriticCfg, fit_teachers_critics  # noqa: E402
from teacher_training.fleet import Fleet, Score, initial_policies, remove_offset, resting_offset  # noqa: E402
from teacher_training.job import JobCfg, TeacherJob  # noqa: E402

TINY = {"num_envs": 2, "horizon": 5, "shared_updates": 2, "updates": 3, "more_updates": 2, "num_episodes": 2}


def _run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return run_script(SCRIPTS / script, *arguments, folder=Path.cwd())


@pytest.fixture
def fleet(tmp_path) -> Fleet:
    return Fleet(write_vehicles(tmp_path / "vehicles", sample_vehicles(3, seed=2)))


def _finish(job: TeacherJob) -> TeacherJob:
    while not job.finished:
        job.update()
    return job


def test_the_two_commands_give_teachers_that_load(tmp_path):
    """Sampled and trained (tiny sizes), each teacher of the manifest loads and has its own vehicle and weights."""
    vehicles, output = tmp_path / "vehicles", tmp_path / "teachers"
    sampled = _run("sample_vehicles.py", "--num", 3, "--seed", 2, "--output", vehicles)
    assert sampled.returncode == 0, sampled.stderr
    assert (tmp_path / "vehicles_real" / "crazyflie.json").is_file()
    trained = _run("train_teachers.py", "--vehicles", vehicles, "--num_teachers", 2, "--output", output, "--quick")
    assert trained.returncode == 0, trained.stderr
    entries = find_teachers(str(output / "teachers.yaml"))
    assert [entry.name for entry in entries] == ["quad_0000", "quad_0001"]
    assert [entry.vehicle.resolve() for entry in entries] == sorted(vehicles.resolve().glob("*.json"))[:2]
    assert {entry.status for entry in entries} == {"failed"}
    assert "quad_0001" in trained.stdout
    teachers = [TeacherPolicyWrapper(str(entry.checkpoint)) for entry in entries]
    assert [(t.num_obs, t.num_actions, list(t.hidden_dims)) for t in teachers] == [(26, 4, [64, 64])] * 2
    obs = torch.randn(5, 26, generator=torch.Generator().manual_seed(0))
    assert not torch.allclose(teachers[0].act(obs), teachers[1].act(obs))
    agent = yaml.safe_load((output / "params" / "agent.yaml").read_text())
    assert agent["actor"]["hidden_dims"] == [64, 64]


def test_a_checkpoint_is_the_trained_policy(tmp_path, fleet):
    """What is written acts as the stack does on every third row."""
    job = _finish(TeacherJob(fleet, JobCfg(num_teachers=3, max_rounds=0, **TINY)))
    assert job.score is not None
    critics = PolicyStack(3, 26, [8], 1)
    manifest = write_teachers(tmp_path / "out", fleet.files, job.policies, critics, job.score, job.failed())
    obs = torch.randn(6, 26, generator=torch.Generator().manual_seed(0))
    expected = job.policies(obs).detach()
    for k, entry in enumerate(find_teachers(str(manifest))):
        teacher = TeacherPolicyWrapper(str(entry.checkpoint))
        torch.testing.assert_close(teacher.act(obs[k::3]), expected[k::3])
        torch.testing.assert_close(teacher.output(obs[k::3]).value, critics(obs)[k::3].detach())


def test_a_checkpoint_without_a_critic_is_still_read(tmp_path, fleet):
    """Older trainings wrote none: such a file is a teacher that has no value."""
    policies = PolicyStack(1, 26, [8], 4)
    saved = checkpoint(policies, PolicyStack(1, 26, [8], 1))
    torch.save({key: saved[key] for key in ("actor_state_dict", "iter", "infos")}, tmp_path / "old.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "old.pt", activation="elu")
    obs = torch.randn(3, 26, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(teacher.act(obs), policies(obs).detach())
    assert not teacher.has_value


@pytest.mark.parametrize("method", ["bptt", "ppo"])
def test_the_real_library_loads_a_checkpoint_and_goes_on_training(tmp_path, fleet, method):
    """RSL-RL's own OnPolicyRunner loads actor, critic and optimiser as they were written, and an iteration runs."""
    job = _finish(TeacherJob(fleet, JobCfg(num_teachers=2, max_rounds=0, method=method, **TINY)))
    assert job.score is not None
    cfg = CriticCfg(num_envs=2, num_steps=20, keep=10, updates=5, hidden_dims=[16])
    critics, explained = fit_teachers_critics(Fleet(fleet.files[:2]), job.policies, cfg, seed=4)
    assert explained.shape == (2,)
    manifest = write_teachers(tmp_path / "out", fleet.files, job.policies, critics, job.score, job.failed())
    agent = yaml.safe_load((tmp_path / "out" / "params" / "agent.yaml").read_text())
    for k, entry in enumerate(find_teachers(str(manifest))):
        assert entry.vehicle is not None
        env = Fleet([entry.vehicle]).make_env(4, seed=k)
        runner = OnPolicyRunner(env, translate(agent), log_dir=None, device="cpu")
        runner.load(str(entry.checkpoint))
        obs = env.get_observations()
        with torch.no_grad():
            for network, stack in ((runner.alg.get_policy(), job.policies), (runner.alg.critic, critics)):
                torch.testing.assert_close(network(obs), stack.select([k])(obs["policy"]))
        runner.learn(num_learning_iterations=1)


def test_a_critic_predicts_its_own_teachers_flights(fleet):
    """On fresh episodes each critic explains most of its own teacher's returns, though groups are fitted in turn."""
    env = fleet.make_env(1, 0)
    policies = initial_policies(env, 3, [16], seed=1)
    cfg = CriticCfg(num_envs=256, num_steps=100, keep=30, updates=400, at_once=2)
    critics, explained = fit_teachers_critics(fleet, policies, cfg, seed=5)
    std, fresh = torch.full((4,), STD), fleet.make_env(64, seed=99)
    with torch.no_grad():
        obs, returns = discounted_returns(fresh, policies, "policy", std, 0.98, 100, 30, seed=99)
        left = (returns - critics(obs)[:, 0]).view(-1, 3).var(0) / returns.view(-1, 3).var(0)
    assert bool((left < 0.5).all()) and bool((explained > 0.5).all())


@pytest.mark.parametrize("stop_after", [1, 6])
def test_a_resumed_training_ends_where_an_uninterrupted_one_does(fleet, stop_after):
    """Saved in any stage and restored, it ends with the same bits."""
    cfg = JobCfg(num_teachers=2, max_rounds=1, **TINY)
    whole = _finish(TeacherJob(fleet, cfg))
    job = TeacherJob(fleet, cfg)
    for _ in range(stop_after):
        job.update()
    resumed = _finish(TeacherJob.restore(fleet, job.state_dict()))
    assert whole.score is not None
    assert resumed.score is not None
    assert torch.equal(whole.score.mean_return, resumed.score.mean_return)
    for ours, theirs in zip(whole.policies.parameters(), resumed.policies.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_it_says_how_far_it_is_where_no_bar_can_be_drawn(fleet, tmp_path, monkeypatch):
    """Each update of every stage, in the form that the pipeline shows."""
    monkeypatch.setattr(train_teachers, "TELL_EVERY", 0.0)
    output = io.StringIO()
    job = TeacherJob(fleet, JobCfg(num_teachers=2, max_rounds=0, **TINY))
    assert train_teachers.run(job, tmp_path, Interrupt(), Console(file=output, soft_wrap=True))
    counted = [line for line in output.getvalue().splitlines() if COUNTS.search(line)]
    assert [line.partition(",")[0] for line in counted][:3] == [
        "shared start 1/2",
        "shared start 2/2",
        "2 teachers 1/3",
    ]
    assert "reward per step " in counted[0]


def test_rounds_train_only_those_that_miss_and_never_for_worse(fleet):
    """With one vehicle satisfied, the others' weights alone may change, and no return falls."""
    job = TeacherJob(fleet, JobCfg(num_teachers=3, max_rounds=1, min_return=-1e9, max_terminated=1.0, **TINY))
    while job.stage < 1 or job.trainer.updates_done != 2:
        job.update()
    job.cfg.min_return = 1e9
    job._unsatisfied = lambda: [0, 2]  # type: ignore[method-assign]
    while job.stage < 2:
        job.update()
    assert job.score is not None
    before, returns = job.policies.weights[0].detach().clone(), job.score.mean_return.clone()
    assert job.members == [0, 2]
    _finish(job)
    assert torch.equal(job.policies.weights[0][1], before[1])
    assert (job.score.mean_return >= returns).all()


def test_a_return_that_is_not_a_number_is_the_worst(fleet):
    """Such a teacher is trained on and has failed; any number replaces it, and it replaces none."""
    zeros = torch.zeros(3)
    nan, one = Score(torch.tensor([torch.nan] * 3), zeros, zeros), Score(torch.ones(3), zeros, zeros)
    assert one.better_than(nan).all() and not nan.better_than(one).any() and not nan.better_than(nan).any()
    job = TeacherJob(fleet, JobCfg(num_teachers=3, min_return=-1e9, **TINY))
    job.score = Score(torch.tensor([1.0, torch.nan, 1.0]), zeros, zeros)
    assert job._unsatisfied() == [1] and job.failed() == [1]


def test_a_known_offset_is_removed(fleet):
    """A first layer that sees the position shifted by 7 cm is shifted back by what the flights show of it."""
    import teacher_training.fleet as module

    job = TeacherJob(fleet, JobCfg(num_teachers=3, **TINY))
    before = job.policies.biases[0].detach().clone()
    original = module.resting_offset
    module.resting_offset = lambda *_: torch.tensor([[0.07, 0.0, 0.0]] * 3)
    try:
        remove_offset(fleet, job.policies, 2, 0, rounds=1)
    finally:
        module.resting_offset = original
    obs = torch.zeros(3, 26)
    hidden = (obs.view(3, 1, 26) @ job.policies.weights[0] + job.policies.biases[0]).detach()
    obs[:, 0] = 0.07
    assert torch.allclose(hidden, (obs.view(3, 1, 26) @ job.policies.weights[0] + before).detach())
    assert resting_offset(fleet, job.policies, 2, 0).shape == (3, 3)


def test_sigterm_saves_and_resume_ends(tmp_path, fleet):
    """Killed gently in the middle it says so, leaves its state and no manifest; resumed it writes the manifest."""
    output = tmp_path / "out"
    sizes = ["--num_envs", 2, "--horizon", 5, "--updates", 60, "--max_rounds", 0, "--num_episodes", 2, "--no-compile"]
    arguments = ["--vehicles", fleet.files[0].parent, "--output", output, *sizes]
    command = [sys.executable, str(SCRIPTS / "train_teachers.py"), *map(str, arguments)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    while not output.is_dir():
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGTERM)
    text, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + signal.SIGTERM
    assert "--resume" in text
    assert not (output / "teachers.yaml").exists()
    resumed = _run("train_teachers.py", *arguments, "--resume")
    assert resumed.returncode == 0, resumed.stderr
    assert len(find_teachers(str(output))) == 3


def test_a_training_that_is_there_is_not_written_over(tmp_path, fleet, capsys):
    """Without --resume it is left as it is, and while another process holds the folder, with it too."""
    arguments = ["--vehicles", str(fleet.files[0].parent), "--output", str(tmp_path / "out"), "--quick"]
    (tmp_path / "out").mkdir()
    state = tmp_path / "out" / "training_state.pt"
    state.write_bytes(b"days of work")
    assert run_command(train_teachers.main, arguments) == 2
    assert "has a training in it: go on with --resume" in capsys.readouterr().err
    held = lock_folder(tmp_path / "out", "")
    assert held is not None
    assert run_command(train_teachers.main, [*arguments, "--resume"]) == 2
    os.close(held)
    error = capsys.readouterr().err
    assert "another process trains teachers in" in error and len(error.splitlines()) == 1
    assert state.read_bytes() == b"days of work"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (["--num_teachers", 9], "has 3 vehicles"),
        (["--num_envs", 0], "--num_envs"),
        (["--resume"], "training_state.pt"),
        (["--hidden_dims", 0], "--hidden_dims must be at least 1"),
        (["--device", "foo"], "--device"),
        (["--min_return", "nan"], "--min_return must be a number"),
        (["--motor_noise", -1], "--motor_noise must not be negative"),
        (["--max_terminated", "nan"], "--max_terminated must not be negative"),
        (["--seed", -1], "--seed must be between"),
        (["foreign state", "--resume"], "is not the state of a training"),
        (["vehicle of that name"], "would overwrite the training's state"),
        (["negative mass"], "'dynamics.mass' must be positive"),
    ],
)
def test_bad_input_is_one_line(tmp_path, fleet, change, words):
    """Each wrong input ends with status 2 and one line that says what is wrong."""
    if change == ["negative mass"]:
        data = json.loads(fleet.files[1].read_text())
        data["dynamics"]["mass"] = -0.1
        fleet.files[1].write_text(json.dumps(data))
        change = []
    if change[:1] == ["foreign state"]:
        (tmp_path / "out").mkdir()
        torch.save({"iter": 3}, tmp_path / "out" / "training_state.pt")
        change = change[1:]
    if change == ["vehicle of that name"]:
        fleet.files[1].rename(fleet.files[1].with_name("training_state.json"))
        change = []
    done = _run("train_teachers.py", "--vehicles", fleet.files[0].parent, "--output", tmp_path / "out", *change)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_ppo_trains_and_resumes_exactly(fleet):
    """By PPO the weights change, and a training that was saved in the middle ends with the same bits."""
    cfg = JobCfg(num_teachers=2, max_rounds=0, method="ppo", **{**TINY, "num_envs": 8, "shared_updates": 0})
    job = TeacherJob(fleet, cfg)
    before = job.policies.weights[0].detach().clone()
    job.update()
    saved = job.state_dict()
    _finish(job)
    resumed = _finish(TeacherJob.restore(fleet, saved))
    assert (job.policies.weights[0] - before).abs().amax((1, 2)).min() > 0
    for ours, theirs in zip(job.policies.parameters(), resumed.policies.parameters(), strict=True):
        assert torch.equal(ours, theirs)


if shutil.which("g++"):  # only a compiler can compile

    @pytest.mark.slow
    def test_compiled_stages_of_other_sizes(fleet):
        """Compiled stages of two sizes run to the end where the compiler forgives one size of a function."""
        torch._dynamo.config.recompile_limit = 1
        try:
            cfg = JobCfg(num_teachers=3, max_rounds=2, min_return=1e9, compile_from=0, **TINY)
            job = TeacherJob(fleet, cfg)
            left = iter([[0, 2], []])
            job._unsatisfied = lambda: next(left)  # type: ignore[method-assign]
            assert _finish(job).stage == 3
        finally:
            torch._dynamo.config.recompile_limit = 8
