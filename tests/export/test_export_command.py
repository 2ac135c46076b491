"""``export.py`` from a student's checkpoint and its task: names, units and rates, and what it says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from command_server import run_script

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.export.bundle import make_bundle
from foundation.rsl_rl import export
from foundation.students import make_student, student_cfg_class
from foundation.tasks import load_entry_point, resolve_task

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import bundle_of_student, randomise, save_student  # noqa: E402

ROOT = HERE.parents[1]
TASK = "Isaac-Quadcopter-Point-Ctrl-v0"


def quadrotor_student(path: Path, num_obs: int = 22, **more) -> Path:
    """Write a GRU student of the built-in task."""
    path.parent.mkdir(exist_ok=True)
    torch.manual_seed(0)
    network = make_student(student_cfg_class("gru")(encoder_dims=[], hidden_dims=[12]), num_obs, 4)
    randomise(network)
    network.normalizer.update(torch.randn(100, num_obs))
    known = {"task": TASK, "obs_groups": ["deployable"], "clip_actions": 1.0}
    return save_student(network, path, **known | more)


def test_everything_from_a_checkpoint(tmp_path, capsys):
    """Every format is written beside the checkpoint, checked, and said in a line."""
    path = quadrotor_student(tmp_path / "best_student.pt")
    formats = "onnx,torchscript,npz,c,so,yaml,rsl_rl"
    assert export.main(["--checkpoint", str(path), "--formats", formats, "--name", "student"]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "exported"
    names = {str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()}
    assert names == {
        "student.onnx", "student_script.pt", "student.npz", "student.h", "student.c", "student_test.c", "student.so",
        "deploy.yaml", "rsl_rl/model_0.pt", "rsl_rl/params/agent.yaml", "student_golden.npz",
    }  # fmt: skip
    assert said.count("agrees to") == 6
    assert "NOT CHECKED" not in said
    for file in ("student.npz", "student.onnx", "student.so"):
        description = Policy(folder / file).description
        assert description == Policy(folder / "student.npz").description


def test_names_units_and_rates_are_the_tasks(tmp_path):
    """The layout, the bound of the actions and the control interval come from task, checkpoint and run."""
    path = quadrotor_student(tmp_path / "best_student.pt")
    policy = load_policy(path, Overrides())
    description = make_bundle(policy).description
    fields = [(field.name, field.size, field.unit) for field in description.observations]
    assert fields == [
        ("position_error", 3, "m"), ("orientation", 9, ""), ("velocity_error", 3, "m/s"), ("body_rates", 3, "rad/s"),
        ("previous_action", 4, ""),
    ]  # fmt: skip
    assert description.action_clip == 1.0
    assert description.control_interval == 0.01
    assert description.normalized
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "env.yaml").write_text("sim: {dt: 0.005}\ndecimation: 4\n")
    assert make_bundle(policy).description.control_interval == 0.02


def test_columns_that_are_cut(tmp_path):
    """A slice of the columns keeps the names of what is left of each field."""
    path = quadrotor_student(tmp_path / "best_student.pt", 12, obs_slice=[10, 22])
    description = make_bundle(load_policy(path, Overrides())).description
    names = [(field.name, field.size) for field in description.observations]
    assert names == [("orientation[7:9]", 2), ("velocity_error", 3), ("body_rates", 3), ("previous_action", 4)]
    assert description.obs_slice == (10, 22)


def test_the_layout_is_that_of_the_environment():
    """Where the task says that a group has position and rotation, the environment has them there too."""
    from foundation.tasks.quadrotor import mdp

    layout = load_entry_point(resolve_task(TASK), "layout_entry_point")
    for group, (column, frame) in mdp.POSITION_FIELDS.items():
        starts, start = {}, 0
        for field in layout[group]:
            starts[field.name] = (start, field)
            start += field.size
        assert starts["position_error"][0] == column
        assert starts["position_error"][1].frame.startswith(frame)
        assert starts["orientation"][0] == mdp.ROTATION_FIELDS[group]


def test_deploy_yaml_has_isaac_labs_terms(tmp_path):
    """The settings of Isaac Lab's managers that change numbers are taken over from the run's env.yaml."""
    path = quadrotor_student(tmp_path / "best_student.pt", task=None)
    (tmp_path / "params").mkdir()
    (tmp_path / "params" / "env.yaml").write_text(
        "sim: {dt: 0.005}\ndecimation: 4\n"
        "observations:\n  deployable:\n    concatenate_terms: true\n"
        "    base_ang_vel: {func: 'isaaclab.envs.mdp:base_ang_vel', scale: 0.2, clip: null, history_length: 0}\n"
        "actions:\n  joint_pos: {class_type: x, joint_names: ['.*'], scale: 0.25, use_default_offset: true}\n"
    )
    assert export.main(["--checkpoint", str(path), "--formats", "yaml"]) == 0
    read = yaml.safe_load((tmp_path / "exported" / "deploy.yaml").read_text())
    assert read["step_dt"] == 0.02
    assert read["observation_terms"] == {"deployable.base_ang_vel": {"scale": 0.2, "clip": None, "history_length": 0}}
    assert read["action_terms"] == {
        "actions.joint_pos": {"joint_names": [".*"], "scale": 0.25, "use_default_offset": True}
    }
    assert read["observations"] == {"deployable": {"size": 22, "unit": None, "frame": None, "history_length": 1}}


LEGS = """
sim: {dt: 0.005}
decimation: 4
scene:
  robot:
    init_state: {joint_pos: {'.*_hip': 0.1, 'FL_calf': -1.5}}
    actuators:
      hips: {joint_names_expr: ['.*_hip'], stiffness: 20.0, damping: {'F.*': 0.5}}
      rest: {joint_names_expr: ['F._calf'], stiffness: {'.*': 25.0}, damping: 0.7}
actions:
  hips: {class_type: 'mdp:JointPositionAction', asset_name: robot, joint_names: [FR_hip, FL_hip], preserve_order: true,
         scale: {'FR_.*': 0.25, 'FL_.*': 0.5}, use_default_offset: true, offset: 0.0, clip: null}
  calves: {class_type: 'mdp:JointPositionAction', asset_name: robot, joint_names: [FR_calf, FL_calf],
           preserve_order: true, scale: 0.3, use_default_offset: false, offset: {'FR_calf': -1.2}}
"""


def test_deploy_yaml_has_the_joints(tmp_path):
    """Order, scale, offset, default positions, gains and interval of a run with joints, under unitree's names."""
    path = quadrotor_student(tmp_path / "best_student.pt", task=None)
    (tmp_path / "params").mkdir()
    config = tmp_path / "params" / "env.yaml"
    config.write_text(LEGS)
    assert export.main(["--checkpoint", str(path), "--formats", "yaml,npz"]) == 0
    read = yaml.safe_load((tmp_path / "exported" / "deploy.yaml").read_text())
    assert read["step_dt"] == 0.02
    assert read["joint_names"] == ["FR_hip", "FL_hip", "FR_calf", "FL_calf"]
    assert read["default_joint_pos"] == [0.1, 0.1, 0.0, -1.5]
    assert read["stiffness"] == [20.0, 20.0, 25.0, 25.0]
    assert read["damping"] == [0.5, 0.5, 0.7, 0.7]
    terms = read["actions"]
    assert list(terms) == read["joint_names"]
    assert [terms[name]["scale"] for name in terms] == [[0.25], [0.5], [0.3], [0.3]]
    assert [terms[name]["offset"] for name in terms] == [[0.1], [0.1], [-1.2], [0.0]]
    description = Policy(tmp_path / "exported" / "policy.npz").description
    assert description.action_scale == (0.25, 0.5, 0.3, 0.3)
    assert description.action_offset == (0.1, 0.1, -1.2, 0.0)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("[FR_hip, FL_hip], preserve_order: true", "[FR_hip, FL_hip], preserve_order: false"),
        ("[FR_calf, FL_calf]", "['F._calf']"),
        ("[FR_calf, FL_calf]", "[FR_calf, FR_hip]"),
        ("joint_pos: {'.*_hip': 0.1, 'FL_calf': -1.5}", "pos: [0, 0, 1]"),
        ("scale: 0.3", "scale: fast"),
    ],
)
def test_joints_whose_order_is_not_stated_are_not_guessed(before, after, tmp_path):
    """Patterns, the simulator's own order, defaults of the robot's file: no order is written, the terms are."""
    path = quadrotor_student(tmp_path / "best_student.pt", task=None)
    (tmp_path / "params").mkdir()
    assert before in LEGS
    (tmp_path / "params" / "env.yaml").write_text(LEGS.replace(before, after))
    assert export.main(["--checkpoint", str(path), "--formats", "yaml"]) == 0
    read = yaml.safe_load((tmp_path / "exported" / "deploy.yaml").read_text())
    assert "joint_names" not in read
    assert list(read["actions"]) == ["action"]
    assert list(read["action_terms"]) == ["actions.hips", "actions.calves"]


def test_a_full_disk_is_one_line(tmp_path):
    """Where a file cannot be written to its end, the command says so in a line, and leaves no half of it."""
    path = quadrotor_student(tmp_path / "best_student.pt")
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "from foundation.cli.command import run_command; from foundation.rsl_rl import export;"
        f"sys.exit(run_command(export.main, ['--checkpoint', {str(path)!r}, '--formats', 'npz']))"
    )
    done = subprocess.run([sys.executable, "-c", limited], capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert (
        lines[0]
        == f"error: '{tmp_path / 'exported'}' cannot be written: File too large. Name another folder (--output)"
    )
    assert not (tmp_path / "exported").exists()


def test_a_task_of_another_package_is_not_imported(tmp_path, caplog):
    """A task that a file alone names is not imported: the names are then not known, and the export goes on."""
    path = quadrotor_student(tmp_path / "best_student.pt", task="some_package.tasks:Walk-v0")
    description = make_bundle(load_policy(path, Overrides())).description
    assert [(field.name, field.size) for field in description.observations] == [("deployable", 22)]
    assert "some_package" not in sys.modules


def test_the_wrong_task_is_refused(tmp_path):
    """A task whose groups have another size is one line that names the flag."""
    path = quadrotor_student(tmp_path / "best_student.pt", 21)
    with pytest.raises(UserError, match=r"reads 21 observations, and its groups \['deployable'\] have 22"):
        make_bundle(load_policy(path, Overrides()))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--formats", "onnx"], "--checkpoint is missing"),
        (["--checkpoint", "nowhere.pt"], "nowhere.pt"),
        (["--checkpoint", "{path}", "--formats", "torch_script"], "Did you mean 'torchscript' or 'torch_export'?"),
        (["--checkpoint", "{path}", "--output", "{path}"], "is a file: name a folder"),
        (["--checkpoint", "{path}", "--name", "a b"], "--name 'a b'"),
        (["--checkpoint", "{path}", "--name", "9x"], "--name '9x': a name begins with a letter or '_'"),
        (["--checkpoint", "{path}", "--name=-x"], "--name '-x': a name begins with a letter"),
        (["--checkpoint", "{path}", "--name", ".x"], "--name '.x': a name begins with a letter"),
        (["--checkpoint", "{path}", "--formats", "c", "distill.teacher.nonsense=1"], "unknown teacher override"),
        (["--checkpoint", "{path}", "--task", "Isaac-Quadcopter-Point-Ctrl-v1"], "Did you mean"),
    ],
)
def test_bad_input_is_one_line(arguments, said, tmp_path):
    """The command ends with code 2, one line that says what to do, and no traceback."""
    path = quadrotor_student(tmp_path / "best_student.pt")
    given = [part.format(path=path) for part in arguments]
    done = run_script("export.py", *given, folder=tmp_path)
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert said in lines[0]


def test_a_damaged_checkpoint_is_one_line(tmp_path):
    """A checkpoint that ends early is one line that names it."""
    path = quadrotor_student(tmp_path / "best_student.pt")
    path.write_bytes(path.read_bytes()[:900])
    with pytest.raises(UserError, match=r"best_student\.pt"):
        export.main(["--checkpoint", str(path)])


def test_the_golden_sequence_resets_part_of_the_environments(tmp_path):
    """The recorded sequence is long, begins episodes in the middle, and is the same each time."""
    first, second = (bundle_of_student("gru", tmp_path).golden for _ in range(2))
    assert (first.obs == second.obs).all()
    assert (first.actions == second.actions).all()
    assert len(first.obs) >= 100
    assert first.resets[0].all()
    partly = first.resets[1:].any(axis=1) & ~first.resets[1:].all(axis=1)
    assert partly.sum() > 5


def test_a_bound_that_float32_cannot_hold_is_refused(tmp_path):
    """It would be found by torch, at the first action."""
    path = quadrotor_student(tmp_path / "best_student.pt", clip_actions=1e39)
    with pytest.raises(UserError, match=r"'clip_actions' is 1e\+39"):
        load_policy(path, Overrides())
