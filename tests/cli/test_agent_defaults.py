"""What a distillation run takes from the task's agent configs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import gymnasium
import pytest
import torch
from command_server import run_script
from small_teacher import SMALL, TASK, write_teacher

from foundation.cli.agent_defaults import (
    choose_groups,
    groups_line,
    name_experiment,
    size_student,
    warn_without_effect,
)
from foundation.config.agent_cfg import DistillationRunnerCfg, ModelCfg
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import parse_overrides
from foundation.config.resolve import resolve
from foundation.core.errors import UserError
from foundation.rsl_rl import distillation
from foundation.students import student_cfg_class, student_from_description

ROOT = Path(__file__).parents[2]
OBS = {"policy": torch.zeros(2, 5), "extra": torch.zeros(2, 3), "small": torch.zeros(2, 4)}


def chosen(agent: object, *, num_obs: int, trained_on: list[str] | None = None, task: str = "none", **given: object):
    cfg = DistillationCfg(task=task)
    for name, value in given.items():
        who, _, field = name.partition("_")
        setattr(getattr(cfg, who), field, value)
    choose_groups(cfg, agent, SimpleNamespace(num_obs=num_obs, obs_groups=trained_on), OBS)
    return cfg.teacher.obs_groups, cfg.student.obs_groups


@pytest.mark.parametrize(
    ("agent", "num_obs", "trained_on", "teacher", "student"),
    [
        ({}, 5, None, ["policy"], ["policy"]),
        ({"obs_groups": {"actor": ["small"]}}, 4, None, ["small"], ["small"]),
        ({"obs_groups": {"policy": ["small"]}}, 4, None, ["small"], ["small"]),
        (
            {"obs_groups": {"teacher": ["policy", "extra"], "student": ["small"]}},
            8,
            None,
            ["policy", "extra"],
            ["small"],
        ),
        (SimpleNamespace(obs_groups={"teacher": ["policy"], "student": ["small"]}), 5, None, ["policy"], ["small"]),
        ({"obs_groups": {"teacher": ["policy"]}}, 4, ["small"], ["small"], ["policy"]),
        ({"obs_groups": {"teacher": ["policy"]}}, 5, ["small"], ["policy"], ["policy"]),
        ({"obs_groups": {"teacher": ["gone"]}}, 4, ["small"], ["small"], ["policy"]),
        ({"obs_groups": {"teacher": ["extra"]}}, 99, ["small"], ["extra"], ["policy"]),
        ({"obs_groups": object()}, 5, None, ["policy"], ["policy"]),
    ],
)
def test_groups_left_out_are_the_agent_configs(agent, num_obs, trained_on, teacher, student) -> None:
    """The agent's config comes first, then what the teacher was trained on: the first whose size fits the teacher."""
    assert chosen(agent, num_obs=num_obs, trained_on=trained_on) == (teacher, student)


def test_groups_that_were_given_stay() -> None:
    """What the user set is never replaced, whatever its size; a slice counts towards the size of what was not."""
    assert chosen({}, num_obs=1, teacher_obs_groups=["extra"], student_obs_groups=["small"]) == (["extra"], ["small"])
    agent = {"obs_groups": {"teacher": ["small"], "actor": ["policy"]}}
    assert chosen(agent, num_obs=3, teacher_obs_slice=[2, 5])[0] == ["policy"]


@pytest.mark.parametrize(
    ("trained_on", "agent", "says"),
    [
        (["policy_v1", "privileged"], {}, "has no 'policy_v1, privileged'"),
        (["gone"], {"obs_groups": {"teacher": ["policy"]}}, "has no 'gone'"),
        (["gone"], {"obs_groups": {"actor": ["policy"]}}, "has no 'gone'"),
        (["policy", "gone"], {}, "has no 'gone'"),
        (["twin"], {"obs_groups": {"teacher": ["policy"]}}, "the task's config names others"),
        (["policy"], {}, None),
        (None, {"obs_groups": {"actor": ["policy"]}}, None),
    ],
)
def test_groups_of_the_teachers_own_config_are_not_replaced_in_silence(trained_on, agent, says, caplog) -> None:
    """Other groups of the same size are read only with a warning that names both."""
    OBS["twin"] = torch.zeros(2, 5)
    try:
        assert chosen(agent, num_obs=5, trained_on=trained_on)[0] == ["policy"]
        assert (says is None) == (not caplog.text)
        if says is not None:
            assert says in caplog.text
            assert str(trained_on) in caplog.text
            assert "['policy']" in caplog.text
            assert "distill.teacher.obs_groups" in caplog.text
        caplog.clear()
        chosen(agent, num_obs=5, trained_on=trained_on, teacher_obs_groups=["policy"])
        assert not caplog.text  # what the user says needs no warning
    finally:
        del OBS["twin"]


def test_the_console_names_the_groups_and_their_sizes() -> None:
    """The teacher's groups, their sizes and the columns taken of them are one line."""
    cfg = DistillationCfg()
    cfg.teacher.obs_groups = ["policy", "extra"]
    assert groups_line(cfg, OBS) == "Teacher observation groups: policy 5 + extra 3"
    cfg.teacher.obs_slice = [2, 6]
    assert groups_line(cfg, OBS) == "Teacher observation groups: policy 5 + extra 3, columns 2 to 5"


def test_the_tasks_own_distillation_config_is_heard() -> None:
    """``rsl_rl_distillation_cfg_entry_point`` gives the groups that the PPO config does not name."""
    assert chosen({"obs_groups": {"actor": ["small"]}}, num_obs=5, task=TASK) == (["policy"], ["policy"])


def test_an_experiment_without_a_name_has_the_agents_or_the_tasks() -> None:
    """A name that was given stays; else the agent config's; else the task's id."""
    for given, agent, name in (
        ("a", {"experiment_name": "b"}, "a"),
        (None, {"experiment_name": "b"}, "b"),
        (None, {}, "Id"),
    ):
        cfg = DistillationCfg(task="package:Id", experiment_name=given)
        name_experiment(cfg, agent)
        assert cfg.experiment_name == name


@pytest.fixture
def sized_task() -> Iterator[dict[str, object]]:
    """Register the built-in task under another name; the test says what its distillation config is."""
    kwargs: dict[str, object] = dict(gymnasium.spec(TASK).kwargs)
    gymnasium.register(id="Sized-v0", entry_point="foundation.tasks.quadrotor:make_env", kwargs=kwargs)
    yield gymnasium.registry["Sized-v0"].kwargs
    del gymnasium.registry["Sized-v0"]


NEW = DistillationRunnerCfg(student=ModelCfg(hidden_dims=[48, 24], activation="tanh"))
OLD = SimpleNamespace(
    obs_groups={"policy": ["deployable"], "teacher": ["policy"]},
    policy=SimpleNamespace(student_hidden_dims=[48, 24], teacher_hidden_dims=[8], activation="tanh"),
)
MEMORY = DistillationRunnerCfg(student=ModelCfg(class_name="RNNModel", rnn_type="lstm", hidden_dims=[48, 24]))


def sizes(*typed: str, task: str = "Sized-v0") -> tuple[list[int], str]:
    """Return layers and activation of the student that a command line gives."""
    overrides = parse_overrides(list(typed))
    cfg = resolve(overrides, {"task": task}, student_cfg_class=student_cfg_class).cfg
    size_student(cfg, overrides)
    return cfg.student.hidden_dims, cfg.student.activation  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize(
    ("agent", "typed", "expected"),
    [
        (NEW, [], ([48, 24], "tanh")),
        (OLD, [], ([48, 24], "tanh")),
        ({"student": {"hidden_dims": (48, 24)}}, [], ([48, 24], "elu")),
        (MEMORY, [], ([64, 64], "elu")),
        (SimpleNamespace(student=object(), policy=object()), [], ([64, 64], "elu")),
        (NEW, ["distill.student.hidden_dims=[64,64]"], ([64, 64], "tanh")),
        (NEW, ["student.activation=relu"], ([48, 24], "relu")),
        (NEW, ["student=mlp"], ([64, 64], "elu")),
        (NEW, ["distill.student.name=mlp"], ([64, 64], "elu")),
        (NEW, ["student=history"], ([64, 64], "elu")),
    ],
    ids=["new", "old", "mapping", "memory", "missing", "dims typed", "activation typed", "mlp", "mlp by name", "other"],
)
def test_sizes_left_out_are_those_of_the_tasks_distillation_config(agent, typed, expected, sized_task) -> None:
    """Both layouts of RSL-RL are read; what was typed stays, and so does a student that was chosen."""
    sized_task["rsl_rl_distillation_cfg_entry_point"] = lambda: agent
    assert sizes(*typed) == expected


def test_the_built_in_task_and_tasks_that_say_nothing_keep_the_documented_student(sized_task) -> None:
    """[64, 64] ELU is the default of the built-in task, and of a task without a distillation config."""
    assert sizes(task=TASK) == ([64, 64], "elu")
    del sized_task["rsl_rl_distillation_cfg_entry_point"]
    assert sizes() == ([64, 64], "elu")


def test_a_size_of_the_wrong_type_is_named(sized_task) -> None:
    """Layers that are no numbers are refused, with the name of the key."""
    sized_task["rsl_rl_distillation_cfg_entry_point"] = lambda: {"student": {"hidden_dims": ["wide"]}}
    with pytest.raises(UserError, match="hidden_dims"):
        sizes()


def test_a_run_has_the_groups_and_sizes_of_the_tasks_distillation_config(sized_task, tmp_path, monkeypatch) -> None:
    """The whole command on a task with a config of RSL-RL's old layout: the student of best_student.pt is that one."""
    sized_task["rsl_rl_distillation_cfg_entry_point"] = lambda: OLD
    sized_task["rsl_rl_cfg_entry_point"] = lambda: {"experiment_name": "sized", "clip_actions": 1.0}
    monkeypatch.chdir(tmp_path)
    teacher = write_teacher(tmp_path / "model_1.pt")
    assert distillation.main(["--task", "Sized-v0", "--teacher_checkpoint", str(teacher), *SMALL]) == 0
    (run,) = (tmp_path / "logs" / "distillation" / "sized").iterdir()
    saved = torch.load(run / "best_student.pt", weights_only=True)
    student = student_from_description(saved["student"])
    assert (student.num_obs, student.hidden_dims) == (22, [48, 24])


SIZED_MODULE = f"""
import gymnasium
import foundation.tasks
kwargs = dict(gymnasium.spec("{TASK}").kwargs)
kwargs["rsl_rl_distillation_cfg_entry_point"] = lambda: {{"student": {{"hidden_dims": [48, 24]}}}}
gymnasium.register(id="Elsewhere-v0", entry_point="foundation.tasks.quadrotor:make_env", kwargs=kwargs)
"""


@pytest.mark.slow
def test_a_resumed_run_keeps_sizes_that_were_typed(tmp_path) -> None:
    """``--resume`` does not give a run the task's sizes in place of those that it was started with."""
    (tmp_path / "sized_module.py").write_text(SIZED_MODULE)
    teacher = write_teacher(tmp_path / "model_1.pt")
    first = ["--task", "sized_module:Elsewhere-v0", "--teacher_checkpoint", str(teacher), "--experiment_name", "kept"]
    typed = [*first, *SMALL, "distill.student.hidden_dims=[64,64]"]
    for argv in (typed, ["--resume", *first[:2], "--experiment_name", "kept", "--n_epochs", "3"]):
        run_script("distillation.py", *argv, folder=tmp_path).check_returncode()
    (run,) = (tmp_path / "logs" / "distillation" / "kept").iterdir()
    saved = torch.load(run / "final_student.pt", weights_only=True)
    assert student_from_description(saved["student"]).hidden_dims == [64, 64]
    assert saved["epoch"] == 3


def test_a_seed_typed_for_the_environment_is_told_which_seed_counts(caplog):
    """``env.seed=5`` does not seed the run's episodes, ``--seed`` does; the same number twice is no contradiction."""
    cfg = DistillationCfg(seed=42)
    warn_without_effect(parse_overrides(["env.seed=42"]), cfg, {"seed": 42})
    assert caplog.records == []
    warn_without_effect(parse_overrides(["env.seed=5"]), cfg, {"seed": 5})
    [record] = caplog.records
    assert record.getMessage() == "env.seed=5: the episodes of a run are drawn from --seed (now 42)"
