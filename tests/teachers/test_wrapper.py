"""TeacherPolicyWrapper: what it promises whatever the format."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import yaml
from command_server import run_script
from tensordict import TensorDict

import foundation
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.students import make_student, student_cfg_class
from foundation.teachers import TeacherPolicyWrapper

COMMAND = Path(foundation.__file__).parent / "rsl_rl" / "teacher_info.py"


def mlp(prefix, *sizes):
    """Return a perceptron's tensors."""
    out = {}
    for layer in range(len(sizes) - 1):
        out[f"{prefix}{2 * layer}.weight"] = torch.randn(sizes[layer + 1], sizes[layer]) * 0.3
        out[f"{prefix}{2 * layer}.bias"] = torch.randn(sizes[layer + 1])
    return out


@pytest.fixture
def stateless(tmp_path):
    """A documented teacher: 26 -> 256, 256, 256 -> 4 in RSL-RL 3's layout, with its config."""
    torch.manual_seed(0)
    model = {"std": torch.full((4,), 0.3), **mlp("actor.", 26, 256, 256, 256, 4), **mlp("critic.", 26, 8, 1)}
    atomic_torch_save({"model_state_dict": model, "iter": 1, "infos": None}, tmp_path / "model_1.pt")
    (tmp_path / "params").mkdir()
    config = {
        "policy": {"activation": "relu"},
        "obs_groups": {"policy": ["near", "far"], "critic": ["near", "far"]},
        "clip_actions": 1.5,
    }
    (tmp_path / "params" / "agent.yaml").write_text(yaml.safe_dump(config))
    return tmp_path / "model_1.pt"


@pytest.fixture
def recurrent(tmp_path):
    """A student of this project with memory, a deviation and a value, as a teacher."""
    student = make_student(student_cfg_class("lstm")(stochastic=True, value_head=True), 5, 2)
    saved = {
        "model_state_dict": student.state_dict(),
        "student": student.describe(),
        "obs_groups": ["deployable"],
        "obs_slice": [0, 5],
    }
    atomic_torch_save(saved, tmp_path / "best_student.pt")
    return tmp_path / "best_student.pt", student


def test_documented_line_and_attributes(stateless):
    """The console's line reads as documented, and the config beside the checkpoint is used."""
    teacher = TeacherPolicyWrapper(stateless)
    assert teacher.architecture_line() == "Teacher architecture: obs=26, actions=4, hidden=[256, 256, 256]"
    assert teacher.obs_groups == ["near", "far"] and teacher.clip_actions == 1.5
    assert (teacher.has_std, teacher.has_value, teacher.state_size) == (True, True, 0)
    assert teacher.num_parameters == 26 * 256 + 256 + 2 * (256 * 256 + 256) + 256 * 4 + 4
    assert teacher.describe()["activation_from"] == str(stateless.parent / "params" / "agent.yaml")


def test_frozen(stateless):
    """Nothing of a teacher can be trained, and its actions carry no graph."""
    teacher = TeacherPolicyWrapper(stateless)
    assert not any(parameter.requires_grad for parameter in teacher.parameters()) and not teacher.policy.training
    assert not teacher.act(torch.randn(3, 26, requires_grad=True)).requires_grad


def test_groups_are_concatenated_in_order(stateless):
    """A TensorDict gives what the concatenated groups give; another order gives something else."""
    teacher = TeacherPolicyWrapper(stateless)
    near, far = torch.randn(6, 20), torch.randn(6, 6)
    obs = TensorDict({"far": far, "near": near, "other": near}, batch_size=[6])
    assert torch.equal(teacher.act(obs), teacher.act(torch.cat([near, far], dim=-1)))
    assert not torch.allclose(teacher.act(obs), teacher.act(torch.cat([far, near], dim=-1)))


def test_mismatches_name_groups_and_sizes(stateless):
    """Wrong sizes and missing groups are refused with the groups, their sizes and the size that is wanted."""
    teacher = TeacherPolicyWrapper(stateless)
    with pytest.raises(UserError, match=r"26 observations.*21 \(near 20 \+ far 1\)"):
        teacher.act(TensorDict({"near": torch.zeros(2, 20), "far": torch.zeros(2, 1)}, batch_size=[2]))
    with pytest.raises(UserError, match=r"group 'far'.*it has near, policy"):
        teacher.act(TensorDict({"near": torch.zeros(2, 20), "policy": torch.zeros(2, 1)}, batch_size=[2]))
    with pytest.raises(UserError, match="26 observations and was given 25"):
        teacher.output(torch.zeros(2, 25))
    with pytest.raises(UserError, match=r"26.*22 \(policy 22\); the environment has policy 22, critic 26"):
        teacher.check({"policy": 22, "critic": 26}, ["policy"], 4)
    with pytest.raises(UserError, match="4 actions and the environment takes 6"):
        teacher.check({"policy": 26}, ["policy"], 6)
    teacher.check({"policy": 26}, ["policy"], 4)


def test_sampling(stateless):
    """Draws follow the generator and have the checkpoint's deviation around the deterministic action."""
    teacher = TeacherPolicyWrapper(stateless)
    obs = torch.randn(1, 26).expand(40_000, 26)
    first, again, other = (
        teacher.act(obs, deterministic=False, generator=torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.allclose(first.std(0), torch.full((4,), 0.3), rtol=0.03)
    assert torch.allclose(first.mean(0), teacher.act(obs)[0], atol=0.01)


def test_value_needs_the_same_groups(stateless):
    """A critic that reads other groups gives no value, even when the sizes agree by chance."""
    config = yaml.safe_load((stateless.parent / "params" / "agent.yaml").read_text())
    config["obs_groups"]["critic"] = ["state"]
    (stateless.parent / "params" / "agent.yaml").write_text(yaml.safe_dump(config))
    teacher = TeacherPolicyWrapper(stateless)
    assert not teacher.has_value and teacher.output(torch.zeros(2, 26)).value is None


def test_value_can_be_left_out(stateless):
    """With ``with_value`` off the critic is not run: no value, the same actions."""
    teacher, obs = TeacherPolicyWrapper(stateless), torch.randn(2, 26)
    before = teacher.output(obs)
    assert teacher.with_value and before.value is not None
    teacher.with_value = False
    after = teacher.output(obs)
    assert after.value is None and torch.equal(after.mean, before.mean) and not teacher.with_value


def test_a_student_as_teacher(recurrent):
    """Our own recurrent student teaches: same outputs over steps with resets of part of the envs, per-env memory."""
    path, student = recurrent
    teacher = TeacherPolicyWrapper(path)
    assert (teacher.obs_groups, teacher.obs_slice, teacher.num_obs) == (["deployable"], [0, 5], 5)
    state = student.initial_state(8)
    for step in range(12):
        obs, dones = torch.randn(8, 5), torch.rand(8) < 0.3
        expected, state = student.step(obs, state)
        output = teacher.output(obs)
        assert torch.equal(output.mean, expected.mean), step
        assert torch.equal(output.std, expected.std) and torch.equal(output.value, expected.value)
        teacher.reset(dones)
        state = student.reset_state(state, dones)
    with pytest.raises(UserError, match="remembers 8 envs and was given 3"):
        teacher.act(torch.randn(3, 5))
    teacher.reset()
    teacher.act(torch.randn(3, 5))


def test_a_student_reads_its_columns_of_the_groups(recurrent):
    """``act`` on the environment's groups takes the columns that the student was trained on."""
    path, student = recurrent
    rows = torch.randn(4, 9)
    action = TeacherPolicyWrapper(path).act(TensorDict({"deployable": rows}, batch_size=[4]))
    assert torch.equal(action, student.step(rows[:, :5], student.initial_state(4))[0].mean)


def test_categorical_actions_are_not_taken_for_continuous_ones(stateless):
    """RSL-RL has none: said so of its checkpoint, it is refused, and not offered where a deviation is missing."""
    saved = torch.load(stateless)
    del saved["model_state_dict"]["std"]
    atomic_torch_save(saved, stateless)
    (stateless.parent / "params" / "agent.yaml").unlink()
    with pytest.raises(UserError, match="RSL-RL has no categorical actions"):
        TeacherPolicyWrapper(stateless, distribution="categorical")
    with pytest.raises(
        UserError, match=r"distribution to one of: heteroscedastic, heteroscedastic_log, beta, deterministic"
    ):
        TeacherPolicyWrapper(stateless)


def test_unknown_overrides_are_refused(stateless):
    """A misspelt or unfit override is answered with what is valid."""
    for override, answer in (
        ({"activatoin": "relu"}, "'activation'"),
        ({"activation": "reluu"}, "'relu'"),
        ({"distribution": "betta"}, "'beta'"),
        ({"action_range": [1.0]}, r"action_range must be \[low,high\]"),
        ({"action_range": [1.0, -1.0]}, "low < high"),
    ):
        with pytest.raises(UserError, match=answer):
            TeacherPolicyWrapper(stateless, **override)


def test_a_config_of_another_network_is_noticed(stateless, caplog):
    """Hidden sizes in the config that differ from the weights are a warning that names both."""
    config = {"policy": {"activation": "relu", "actor_hidden_dims": [128, 64]}}
    (stateless.parent / "params" / "agent.yaml").write_text(yaml.safe_dump(config))
    TeacherPolicyWrapper(stateless)
    assert "[128, 64]" in caplog.text and "[256, 256, 256]" in caplog.text


def test_a_given_activation_that_the_config_contradicts_is_noticed(stateless, caplog):
    """An activation that the user gives is taken; a warning names both where the config says another, only there."""
    assert TeacherPolicyWrapper(stateless, activation="relu").describe()["activation"] == "relu"
    assert not caplog.records
    assert TeacherPolicyWrapper(stateless, activation="tanh").describe()["activation"] == "tanh"
    assert caplog.text.count("'tanh' as given") == 1 and "says 'relu'" in caplog.text


def run(*args):
    """Run teacher_info.py as a user does."""
    return run_script("teacher_info.py", *args, folder=Path.cwd())


def test_command(stateless, tmp_path):
    """The command prints what was understood; bad input is one line on stderr and exit code 2."""
    shown = run(stateless)
    assert shown.returncode == 0 and "hidden=[256, 256, 256]" in shown.stdout and "relu" in shown.stdout
    unwrapped = "".join(line.strip("│ ").rpartition("│")[2].strip() for line in shown.stdout.splitlines())
    assert str(stateless) in unwrapped  # a path longer than a line is folded, not cut
    described = json.loads(run(stateless, "--json").stdout)
    assert described["num_obs"] == 26 and described["obs_groups"] == ["near", "far"]
    (tmp_path / "empty.pt").touch()
    bad = run(tmp_path / "empty.pt")
    assert bad.returncode == 2 and bad.stdout == "" and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("error: ") and "empty.pt" in bad.stderr
    assert "unknown flag '--actvation'. Did you mean '--activation'" in run(stateless, "--actvation", "elu").stderr
    assert "checkpoint '--x.pt' does not exist" in run("--", "--x.pt").stderr
