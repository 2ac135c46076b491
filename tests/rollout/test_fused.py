"""Steps of one compiled function: what is stored, counted and left behind is what step by step gives."""

from __future__ import annotations

import functools
import shutil

import pytest
import torch
from toy_env import LinearTeacher

from foundation.config.distillation_cfg import CollectionCfg
from foundation.dataset.dataset import DistillationDataset
from foundation.dataset.spec import BufferSpec
from foundation.engines.checked_env import CheckedEnv
from foundation.engines.video import ActionClip, EnvWrapper
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.collector import Collector
from foundation.rollout.fused import FusedSteps
from foundation.students.gru import GRUStudent, GRUStudentCfg
from foundation.students.mlp import MLPStudentCfg, StudentPolicy
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.teachers.assignment import TeacherAssignment

CHUNK = 20
NUM_ENVS = 6


class Teacher(LinearTeacher):
    """A teacher that labels many steps at once; its labels show where it was told that an episode begins."""

    def sequence(self, obs: torch.Tensor, state: torch.Tensor | None, resets: torch.Tensor):
        output, state = self.step(obs)
        return output._replace(mean=output.mean + resets.unsqueeze(-1)), state


def quadrotors(**changes):
    """Six vehicles whose episodes are 35 steps long and often shorter."""
    cfg = QuadcopterPointCtrlEnvCfg(seed=3, episode_length_s=0.35, compile=True)
    cfg.scene.num_envs = NUM_ENVS
    for name, value in changes.items():
        setattr(cfg, name, value)
    return QuadcopterPointCtrlEnv(cfg)


def student(kind: str):
    """A student whose actions are large enough that vehicles tumble."""
    torch.manual_seed(5)
    made = (
        GRUStudent.from_cfg(GRUStudentCfg(learn_initial_state=True), 22, 4)
        if kind == "gru"
        else StudentPolicy.from_cfg(MLPStudentCfg(hidden_dims=[16]), 22, 4)
    )
    made.mean.weight.data *= 20.0
    if kind == "gru":
        next(own for name, own in made.named_parameters() if name.endswith("initial")).data.uniform_(-1.0, 1.0)
    return made


def make(kind: str, mode: str, env=None, cfg: CollectionCfg | None = None) -> Collector:
    """Build a collector of two teachers."""
    acting = student(kind)
    stored = acting.state_size if mode == "steps" else 0
    spec = BufferSpec(22, NUM_ENVS, 4000, {"mean": 4}, CHUNK, 10, num_teachers=2, state_size=stored)
    teacher = Teacher(torch.linspace(-1, 1, 26 * 4).view(26, 4), 0.1, None)
    groups = ObsSelector(["policy"]), ObsSelector(["deployable"])
    names = TeacherAssignment(["a", "b"])
    return Collector(
        env or quadrotors(),
        teacher,
        acting,
        DistillationDataset(spec),
        *groups,
        cfg,
        mode=mode,
        num_episodes=12,
        seed=4,
        assignment=names,
    )


def compare(kind: str, mode: str, monkeypatch, wrap=lambda env: env):
    """Collect twice with both, and compare everything that is left behind."""
    fused, plain = (make(kind, mode, wrap(quadrotors())) for _ in range(2))
    used = []
    run = FusedSteps.run
    monkeypatch.setattr(FusedSteps, "run", lambda self, *args: used.append(self) or run(self, *args))
    for epoch in range(3):
        ours = fused.collect(epoch, 0.0)
        assert used and used[-1] is fused.fused
        with monkeypatch.context() as without:
            without.setattr(FusedSteps, "fits", lambda self, obs: False)
            theirs = plain.collect(epoch, 0.0)
        if epoch == 1:  # each goes on from what the other has left behind
            fused.load_state_dict(plain.state_dict())
    assert plain.fused not in used
    assert ours.slots == theirs.slots and ours.env_steps == theirs.env_steps and len(ours.lengths) >= 12
    if kind == "mlp":  # its flights end both by limits and by time
        assert 0 < int(ours.success.sum()) < len(ours.success)
    for name in ("returns", "lengths", "success", "teacher", "settled", "metrics"):
        close(getattr(ours, name), getattr(theirs, name))
    assert list(ours.metrics) == list(theirs.metrics)
    assert ours.log == pytest.approx(theirs.log, rel=1e-3, abs=1e-3)
    count = fused.dataset.num_chunks
    assert count == plain.dataset.num_chunks > 0
    for name in ("rows", "resets", "teacher_index", "states"):
        kept = [getattr(collector.dataset, name) for collector in (fused, plain)]
        close(*(None if part is None else part[:count] for part in kept))
    for name in ("env", "tracker", "resets", "student_state") if mode == "steps" else ():
        mine, other = fused.state_dict()[name], plain.state_dict()[name]
        close(*((part["tensors"] if name == "env" else part) for part in (mine, other)))
    obs = fused.stepper.obs
    assert obs is not None and obs is fused.stepper.env.get_observations()
    close(dict(obs.items()), dict(plain.stepper.obs.items()))


def close(ours, theirs) -> None:
    """Compare tensors, dictionaries of them, or two that are None."""
    assert (ours is None) == (theirs is None)
    if ours is not None:
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("mode", ["steps", "episodes"])
@pytest.mark.parametrize("kind", ["gru", "mlp"])
def test_the_traced_step_is_the_stepper(monkeypatch, kind, mode):
    """Transitions, labels, memory, statistics and the state to resume from agree, by torch's own operations."""
    monkeypatch.setattr("foundation.accel.compiled.generate_code", lambda graph, tensors, options: graph)
    compare(kind, mode, monkeypatch)


def test_bounds_of_actions_hold(monkeypatch):
    """An environment that is checked, and whose actions are clipped twice, more narrowly outside, is fused as well."""
    monkeypatch.setattr("foundation.accel.compiled.generate_code", lambda graph, tensors, options: graph)
    compare("mlp", "steps", monkeypatch, lambda env: ActionClip(CheckedEnv(ActionClip(env, 0.8)), 0.5))


@pytest.mark.slow
@pytest.mark.skipif(not any(shutil.which(name) for name in ("g++", "clang++", "c++")), reason="no C++ compiler")
@pytest.mark.parametrize(("kind", "mode"), [("gru", "steps"), ("mlp", "episodes")])
def test_the_compiled_step_is_the_stepper(monkeypatch, kind, mode):
    """The same of the code that the compiler generates, which writes in place."""
    compare(kind, mode, monkeypatch)


class Counted(StudentPolicy):
    """A student of a user's own, which looks at numbers in Python."""

    def step(self, obs, state=None):
        if float(obs.abs().max()) > 1e6:
            obs = obs.clamp(-1e6, 1e6)
        return super().step(obs, state)


def test_a_student_that_cannot_be_traced_acts_step_by_step(monkeypatch, caplog):
    """It is said once, and the numbers are those of a collector that never tried."""
    monkeypatch.setattr("foundation.accel.compiled.generate_code", lambda graph, tensors, options: graph)
    torch.manual_seed(5)
    acting = Counted.from_cfg(MLPStudentCfg(hidden_dims=[16]), 22, 4)
    monkeypatch.setattr("test_fused.student", lambda kind: acting)
    tried, plain = make("mlp", "steps"), make("mlp", "steps")
    monkeypatch.setattr(plain.fused, "fits", lambda obs: False)
    for epoch in range(2):
        ours, theirs = tried.collect(epoch, 0.0), plain.collect(epoch, 0.0)
        assert torch.equal(ours.returns, theirs.returns) and torch.equal(ours.lengths, theirs.lengths)
    count = tried.dataset.num_chunks
    for name in ("rows", "resets", "teacher_index"):
        assert torch.equal(getattr(tried.dataset, name)[:count], getattr(plain.dataset, name)[:count])
    said = [record for record in caplog.records if record.name == "foundation.rollout.fused"]
    assert [record.levelname for record in said] == ["WARNING"]
    assert "Counted cannot be traced (" in said[0].getMessage()


def test_what_changes_a_step_is_not_fused(monkeypatch, caplog):
    """Noise, another wrapper, an environment that is not compiled or has a step of its own, a teacher that acts.

    Where the environment is compiled and the student acts, the reason is logged once.
    """
    monkeypatch.setattr("foundation.accel.compiled.generate_code", lambda graph, tensors, options: graph)
    caplog.set_level("INFO")

    def fits(collector: Collector, said: str = "", beta: float = 0.0) -> bool:
        caplog.clear()
        collector.actor.begin_chunk(beta)
        found = [collector.fused.fits(collector.env.get_observations()) for _ in range(2)]
        lines = [record.getMessage() for record in caplog.records if record.name == "foundation.rollout.fused"]
        assert found[0] == found[1] and len(lines) == bool(said) and all(said in line for line in lines)
        return found[0]

    own = type("Own", (QuadcopterPointCtrlEnv,), {"step": lambda self, actions: super(type(self), self).step(actions)})
    cfg = quadrotors().cfg
    assert fits(make("mlp", "steps"))
    assert not fits(make("mlp", "steps"), beta=0.5)
    assert not fits(make("mlp", "steps", cfg=CollectionCfg(noise_std=0.1)), "get noise")
    assert not fits(make("mlp", "steps", cfg=CollectionCfg(epsilon=0.1)), "get noise")
    assert not fits(make("mlp", "steps", EnvWrapper(quadrotors())), "another wrapper")
    assert not fits(make("mlp", "steps", own(cfg)), "a step of its own")
    assert not fits(make("mlp", "steps", quadrotors(compile=False)))
    assert not fits(make("mlp", "steps", cfg=CollectionCfg(student_deterministic=False)), "actions are drawn")
    for said, path, value in (
        ("the teacher labels each step at once", "actor.teacher.policy", LinearTeacher(torch.zeros(26, 4))),
        ("distill.teacher.expert is asked at every step", "actor.assignment.choose", lambda obs: obs["policy"][:, 0]),
        ("positions are corrected", "actor.correction", object()),
        ("the student predicts an observation group", "actor.predicted", "l2f"),
        ("not the module that it was", "actor.student.policy", student("mlp")),
        ("images, or computed from others", "dataset.typed", {"camera": torch.zeros(1)}),
        ("images, or computed from others", "actor.student.selector", type("Own", (ObsSelector,), {})(["deployable"])),
        ("images, or computed from others", "actor.teacher.selector", type("Own", (ObsSelector,), {})(["policy"])),
        ("it is for the CPU", "env.device", torch.device("cuda")),
        ("it is for the CPU", "dataset.device", torch.device("cuda")),
    ):
        collector = make("mlp", "steps")
        *names, last = path.split(".")
        setattr(functools.reduce(getattr, names, collector), last, value)
        assert not fits(collector, said)


@pytest.mark.parametrize("of", ["camera", "noise"])
def test_an_environment_with_more_than_its_step_is_not_traced(of):
    """A camera renders, and noise is drawn, outside the step."""
    env = quadrotors()
    assert env.is_traced
    if of == "camera":
        env.camera = object()
    else:
        env._noise = {"policy": torch.ones(26)}
    assert not env.is_traced
