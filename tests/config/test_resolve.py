"""From files, overrides and flags to one distillation config."""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundation.config import resolve as resolve_module
from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg, StudentCfg
from foundation.config.overrides import parse_overrides
from foundation.config.plain import to_plain
from foundation.config.resolve import Resolved, choices, compose, config_folder, resolve, resolve_distillation_cfg
from foundation.core.errors import UserError


@dataclass
class MlpCfg(StudentCfg):
    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    activation: str = "elu"


@dataclass
class MemoryCfg(StudentCfg):
    hidden_size: int = 16


def student_cfg_class(name: str) -> type[StudentCfg]:
    known = {"mlp": MlpCfg, "memory": MemoryCfg, "my.package:Mine": MemoryCfg}
    if name not in known:
        raise UserError(f"unknown student '{name}'.")
    return known[name]


def cfg_of(*tokens: str, **flags: Any) -> DistillationCfg:
    return resolve_distillation_cfg(
        parse_overrides(tokens), flags, student_cfg_class=student_cfg_class, loss_names=["mse", "huber", "kl", "value"]
    )


@dataclass
class SceneCfg:
    num_envs: int = 4096


@dataclass
class EnvCfg:
    scene: SceneCfg = field(default_factory=SceneCfg)
    seed: int | None = None
    episode_length_s: float = 5.0
    note: str = ""


@dataclass
class AgentCfg:
    seed: int = 1
    max_iterations: int = 10
    note: str = ""


def test_the_documented_defaults_are_the_defaults() -> None:
    """With nothing typed, the values are those that the users' documentation promises."""
    cfg = cfg_of()
    assert (cfg.n_epochs, cfg.num_episodes, cfg.batch_size, cfg.epoch_teacher_forcing) == (100, 100, None, 50)
    assert (cfg.learning_rate, cfg.shuffle, cfg.on_policy, cfg.teacher_deterministic) == (1e-4, True, False, True)
    assert cfg.student == MlpCfg()
    assert cfg.loss.name == "mse"


def test_flags_beat_overrides_beat_experiments_beat_defaults() -> None:
    """Each layer wins over the one before it."""
    assert cfg_of("experiment=fast").learning_rate != cfg_of().learning_rate
    assert cfg_of("experiment=fast", "distill.learning_rate=0.5").learning_rate == 0.5
    assert cfg_of("experiment=fast", "distill.batch_size=77").batch_size == 77
    assert cfg_of("distill.batch_size=77", "experiment=fast").batch_size == 77
    assert cfg_of("experiment=fast", "distill.batch_size=77", batch_size=78).batch_size == 78


@pytest.mark.parametrize(
    ("tokens", "path", "expected"),
    [
        (["loss=kl"], "loss.name", "kl"),
        (["distill.loss=kl"], "loss.name", "kl"),
        (["distill.loss.name=kl"], "loss.name", "kl"),
        (["loss.name=kl"], "loss.name", "kl"),
        (["loss=my.package:my_loss"], "loss.name", "my.package:my_loss"),
        (["student=memory"], "student", MemoryCfg(name="memory")),
        (["distill.student=memory"], "student", MemoryCfg(name="memory")),
        (["distill.student.name=memory", "student.hidden_size=4"], "student", MemoryCfg(name="memory", hidden_size=4)),
        (["distill.student.name=my.package:Mine"], "student", MemoryCfg(name="my.package:Mine")),
        (["distill.student.hidden_dims=[32,16]"], "student", MlpCfg(hidden_dims=[32, 16])),
        (["student.hidden_dims=[32]", "student.stochastic=true"], "student", MlpCfg(hidden_dims=[32], stochastic=True)),
        (["dataset=reservoir"], "dataset.eviction", "reservoir"),
        (["schedule=linear"], "collection.beta", ScheduleCfg("linear", 1.0, 0.0)),
        (["distill.teacher.obs_groups=[policy,extra]"], "teacher.obs_groups", ["policy", "extra"]),
        (["distill.loss.temperature=2"], "loss.temperature", 2.0),
        (
            ["distill.loss.temperature={kind: linear, start: 2, end: 1}"],
            "loss.temperature",
            ScheduleCfg("linear", 2.0, 1.0),
        ),
        (["distill.loss.auxiliary={value: 0.5}"], "loss.auxiliary", {"value": 0.5}),
        (["task=point_ctrl"], "task", "Isaac-Quadcopter-Point-Ctrl-v0"),
        (["task=Isaac-Other-v0"], "task", "Isaac-Other-v0"),
        (["distill.task=Isaac-Other-v0"], "task", "Isaac-Other-v0"),
        (["run_name=7"], "run_name", "7"),
        (["distill.num_envs=null"], "num_envs", None),
    ],
)
def test_every_way_of_writing_an_override_takes_effect(tokens: list[str], path: str, expected: Any) -> None:
    """Groups, dotted keys with and without ``distill.``, lists, mappings and ``pkg.module:Attr`` reach their field."""
    found: Any = cfg_of(*tokens)
    for name in path.split("."):
        found = getattr(found, name)
    assert found == expected


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("+env.scene.num_envs=8", "(+)"),
        ("~loss", "(~)"),
        ("++a=1", "(+)"),
        ("hello", "neither a flag"),
        ("=3", "neither a flag"),
        ("a=1,2", "sweep"),
        ("a=b=c", "quote"),
        ("env/scene=3", "dotted"),
        ("distill=3", "distill.<key>"),
        ("student=", "by name"),
        ("student=3", "by name"),
        ("student=mpl", "unknown student 'mpl'"),
        ("loss=kll", "Did you mean 'kl'"),
        ("distill.loss.auxiliary={klx: 1}", "Did you mean 'kl'"),
        ("experiment=fats", "Did you mean 'fast'"),
        ("distill.batchsize=3", "Did you mean 'batch_size'"),
        ("distill.student.hidden_dim=3", "Did you mean 'hidden_dims'"),
        ("distill.student.hidden_dims=3", "must be a list"),
        ("distill.n_epochs=1.5", "an integer"),
        ("distill.n_epochs=0", "--n_epochs is 0"),
        ("distill.n_epochs=1000001", "--n_epochs is 1000001: it must be at most 1000000"),
        ("distill.epoch_teacher_forcing=9999999999", "it must be at most 1000000"),
        ("distill.n_epochs=99999999999999999999", "an integer of at most 9007199254740992"),
        ("distill.num_envs=99999999999999999999", "an integer of at most 9007199254740992"),
        ("distill.dataset.save=''", "--save_dataset is '': it must be a path; leave it out where there is none"),
        ("distill.num_envs=0", "--num_envs is 0"),
        ("distill.batch_size=-1", "--batch_size is -1"),
        ("distill.learning_rate=nan", "learning_rate"),
        ("distill.learning_rate=inf", "--learning_rate is inf"),
        ("distill.learning_rate=0", "--learning_rate is 0"),
        ("distill.epoch_teacher_forcing=-1", "--epoch_teacher_forcing is -1"),
        ("distill.sequence_length=0", "--sequence_length is 0"),
        ("distill.seed=-1", "--seed is -1"),
        ("distill.device=gpu", "--device is 'gpu'"),
        ("distill.logger=tensorbord", "Did you mean 'tensorboard'"),
        ("distill.dataset.dtype=float31", "Did you mean 'float32'"),
        ("distill.dataset.eviction=newest", "oldest, reservoir"),
        ("distill.dataset.size=0", "dataset.size is 0"),
        ("distill.dataset.memory_gb=0", "dataset.memory_gb is 0"),
        ("distill.collection.epsilon=1.5", "from 0 to 1"),
        ("distill.collection.beta={kind: linear, start: 2}", "collection.beta.start is 2"),
        ("distill.collection.beta={kind: sinus}", "collection.beta.kind"),
        ("distill.collection.beta={kind: piecewise}", "collection.beta.points"),
        ("distill.collection.beta={kind: piecewise, points: [[2, 1], [1, 0]]}", "order"),
        ("distill.optimizer.lr_schedule={kind: exponential, start: 1, end: 0}", "exponential"),
        ("distill.loss.temperature=0", "loss.temperature is 0"),
        ("distill.loss.temperature={kind: linear, start: 1, end: 0}", "loss.temperature.end is 0: it must be above 0"),
        ("distill.loss.temperature.kind=constant", "loss.temperature.start is 0: it must be above 0"),
        ("distill.loss.auxiliary={kl: -1}", "loss.auxiliary.kl is -1"),
        ("distill.loss.auxiliary={mse: 3}", "'mse' is the main loss already"),
        ("distill.student.obs_slice=[3,1]", "obs_slice"),
        ("distill.student.obs_groups=[]", "obs_groups"),
        ("distill.optimizer.ema_decay=1", "ema_decay is 1"),
    ],
)
def test_bad_overrides_are_one_clear_line(token: str, says: str) -> None:
    """Every mistake is a UserError of one line that says what is wrong and what is valid."""
    with pytest.raises(UserError) as caught:
        cfg_of(token)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_group_is_chosen_once() -> None:
    """Two students typed are a mistake, in Hydra as here; the same one twice is none."""
    with pytest.raises(UserError, match=r"override 'student=memory': student=mlp is typed too; choose one"):
        cfg_of("student=mlp", "student=memory")
    assert cfg_of("student=memory", "distill.student=memory").student.name == "memory"


def test_teacher_forcing_beyond_the_run_warns(caplog: pytest.LogCaptureFixture) -> None:
    """``epoch_teacher_forcing`` beyond ``n_epochs`` is allowed, and said; within it nothing is said."""
    with caplog.at_level(logging.WARNING):
        cfg_of(n_epochs=10, epoch_teacher_forcing=10)
        assert not caplog.records
        cfg_of(n_epochs=10, epoch_teacher_forcing=11)
    assert "--epoch_teacher_forcing 11" in caplog.text


def test_prefixed_and_bare_keys_reach_the_simulators_configs() -> None:
    """``env.scene.num_envs=8`` and ``scene.num_envs=8`` do the same; ``agent.`` and bare agent keys as well."""
    for tokens in (["env.scene.num_envs=8", "agent.max_iterations=3"], ["scene.num_envs=8", "max_iterations=3"]):
        env, agent = EnvCfg(), AgentCfg()
        overrides = parse_overrides(tokens)
        resolve(overrides, {}, student_cfg_class=student_cfg_class).configure(env, agent, overrides)
        assert (env.scene.num_envs, agent.max_iterations) == (8, 3)


def test_a_bare_key_with_the_name_of_a_flag_means_what_the_flag_does() -> None:
    """``seed=3`` is ``--seed 3``, though all three configs have a seed; ``run_name=a`` is ``--run_name a``."""
    env, agent = EnvCfg(), AgentCfg()
    overrides = parse_overrides(["seed=3", "run_name=a"])
    resolved = resolve(overrides, {}, student_cfg_class=student_cfg_class)
    resolved.configure(env, agent, overrides)
    assert (resolved.cfg.seed, resolved.cfg.run_name, env.seed, agent.seed) == (3, "a", None, 1)
    parse_overrides(["seed=4"], scopes=("env", "agent")).configure(env, agent)
    assert (env.seed, agent.seed) == (None, 4), "train.py seeds the environment from the agent's"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("note=3", "env.note, agent.note"),
        ("scen.num_envs=3", "'scene'"),
        ("scene.num_env=3", "env.scene.num_env"),
        ("env.foo=1", "env.foo"),
        ("env.scene.num_envs=abc", "env.scene.num_envs"),
        ("agent.max_iteration=1", "agent.max_iteration"),
        ("batch_sizes=1", "'batch_size'"),
    ],
)
def test_bad_bare_and_prefixed_keys_are_refused(token: str, says: str) -> None:
    """A bare key that fits two configs lists them; one that fits none names the nearest; types are checked."""
    overrides = parse_overrides([token])
    resolved = resolve(overrides, {}, student_cfg_class=student_cfg_class)
    with pytest.raises(UserError) as caught:
        resolved.configure(EnvCfg(), AgentCfg(), overrides)
    assert says in str(caught.value)


def test_commands_without_a_distillation_config_have_two_scopes() -> None:
    """``train.py`` and ``play.py`` know ``env`` and ``agent`` alone; ``student=x`` is then no group."""
    overrides = parse_overrides(["scene.num_envs=8", "student=x"], scopes=("env", "agent"))
    assert not overrides.groups
    env, agent = EnvCfg(), AgentCfg()
    with pytest.raises(UserError, match="student"):
        overrides.configure(env, agent)
    assert env.scene.num_envs == 8


def test_files_may_set_env_and_agent_values_which_the_command_line_beats() -> None:
    """``env:`` and ``agent:`` of a task or experiment file are applied, checked, and beaten by what is typed."""
    overrides = parse_overrides(["env.scene.num_envs=3"])
    resolved = Resolved(cfg_of(), env={"scene": {"num_envs": 5}, "episode_length_s": 1}, agent={"max_iterations": 2})
    env, agent = EnvCfg(), AgentCfg()
    resolved.configure(env, agent, overrides)
    assert (env.scene.num_envs, env.episode_length_s, agent.max_iterations) == (3, 1.0, 2)
    with pytest.raises(UserError, match=r"env\.scen'"):
        Resolved(cfg_of(), env={"scen": {}}).configure(env, agent, overrides)


def test_a_resumed_run_keeps_its_settings_but_for_what_is_typed_again() -> None:
    """The saved values replace the files; groups, overrides and flags typed again still win."""
    saved = yaml.safe_load(yaml.safe_dump(to_plain(cfg_of("student=memory", "batch_size=9", learning_rate=0.5))))

    def resumed(*tokens: str, **flags: Any) -> DistillationCfg:
        overrides = parse_overrides(tokens)
        return resolve_distillation_cfg(overrides, flags, student_cfg_class=student_cfg_class, base=saved)

    assert resumed() == cfg_of("student=memory", "batch_size=9", learning_rate=0.5)
    assert resumed(n_epochs=200).n_epochs == 200
    again = resumed("experiment=fast")
    assert (again.n_epochs, again.learning_rate) == (
        cfg_of("experiment=fast").n_epochs,
        cfg_of("experiment=fast").learning_rate,
    )
    assert again.student == MemoryCfg(name="memory")


def test_a_group_typed_at_a_resume_counts_though_it_is_the_default() -> None:
    """``loss=mse`` and ``student=mlp`` are what no group says, but not what a run of others was begun with."""
    saved = to_plain(cfg_of("loss=huber", "student=memory", "student.hidden_size=8", "schedule=linear"))

    def resumed(*tokens: str) -> DistillationCfg:
        return resolve_distillation_cfg(parse_overrides(tokens), {}, student_cfg_class=student_cfg_class, base=saved)

    assert resumed("loss=mse").loss.name == "mse"
    assert resumed("student=mlp").student == MlpCfg(name="mlp")
    assert resumed("student=my.package:Mine").student == MemoryCfg(name="my.package:Mine")
    again = resumed("schedule=dagger")
    assert (again.loss.name, again.student, again.epoch_teacher_forcing) == ("huber", resumed().student, 50)
    assert resumed().student == MemoryCfg(name="memory", hidden_size=8)


def test_no_output_folder_is_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Composing configs leaves the working folder as it was: Hydra's ``outputs/`` does not appear."""
    monkeypatch.chdir(tmp_path)
    cfg_of("experiment=fast", "loss=huber")
    assert not list(tmp_path.iterdir())


def test_every_shipped_choice_resolves() -> None:
    """Each file of each group gives a valid config (students with the real registry)."""
    from foundation.students import student_cfg_class as registry

    assert choices("experiment") and choices("student") and config_folder().is_dir()
    for group in ("student", "loss", "schedule", "dataset", "task", "experiment"):
        for name in choices(group):
            resolve(parse_overrides([f"{group}={name}"]), {}, student_cfg_class=registry)


def test_files_are_read_again_once_they_have_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same choices give the same values, whatever was done to them; a file that changes gives its new ones."""
    folder = shutil.copytree(config_folder(), tmp_path / "configs")
    monkeypatch.setattr(resolve_module, "config_folder", lambda: folder)
    file = folder / "student" / "gru.yaml"
    read = yaml.safe_load(file.read_text())
    first, in_force = compose({"student": "gru"}, defaults=False)
    assert first["student"]["hidden_size"] == read["hidden_size"] and in_force == {"student": "gru"}
    first["student"]["hidden_size"] = in_force["student"] = None
    again, in_force = compose({"student": "gru"}, defaults=False)
    assert again["student"]["hidden_size"] == read["hidden_size"] and in_force == {"student": "gru"}
    file.write_text(yaml.safe_dump(read | {"hidden_size": 1234}))
    changed, _ = compose({"student": "gru"}, defaults=False)
    assert changed["student"]["hidden_size"] == 1234
