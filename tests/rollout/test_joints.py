"""A teacher in an environment whose joints are in another order: permuted, it acts as in its own."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from joint_env import FEET, JOINTS, THEIRS, JointEnv
from many_teachers import write_mlp
from onnx import TensorProto, helper

from foundation.config.distillation_cfg import TeacherCfg
from foundation.core.errors import UserError
from foundation.engines.derived_groups import DerivedGroups, DerivedObsCfg
from foundation.engines.joint_terms import joint_columns
from foundation.evaluation.teacher_check import check_teacher
from foundation.policies.output import PolicyOutput
from foundation.rollout.episodes import EvaluationResult
from foundation.rollout.joints import fit_joints
from foundation.teachers import TeacherPolicyWrapper
from foundation.teachers.ensemble import TeacherEnsemble, load_ensemble
from foundation.teachers.joint_order import JointOrder
from foundation.teachers.manifest import TeacherEntry

ORDER = [*JOINTS, *FEET]
OTHER = {"order": THEIRS, "feet": FEET[::-1]}


def teacher(path: Path, seed: int = 0, order: list[str] | None = ORDER, **options) -> TeacherPolicyWrapper:
    """Write and read a teacher of random weights that reads the environment's 19 columns."""
    write_mlp(path / f"teacher_{seed}" / "model.pt", seed, num_obs=19, num_actions=4, scale=1.0, **options)
    return TeacherPolicyWrapper(path / f"teacher_{seed}" / "model.pt", joint_order=order)


def run(policy, env: JointEnv, steps: int = 6) -> torch.Tensor:
    """Return the joints' positions over some steps, in the teacher's order. Shape: (steps, num_envs, 4)."""
    env.reset(3)
    state = policy.initial_state(env.num_envs)
    positions = []
    for _ in range(steps):
        output, state = policy.step(env.get_observations()["policy"], state)
        env.step(output.mean)
        positions.append(env.q)
    return torch.stack(positions)


@pytest.mark.parametrize("options", [{}, {"normalizer": True}, {"rnn": "gru"}])
def test_a_permuted_teacher_acts_as_in_its_own_environment(tmp_path: Path, options: dict) -> None:
    """Every joint moves bit for bit as where the teacher comes from, its memory included; unpermuted it does not."""
    policy = teacher(tmp_path, **options)
    own = run(policy, JointEnv())
    env = JointEnv(**OTHER)
    unpermuted = run(policy, env)
    (line,) = fit_joints(policy, env, "", ["policy"])
    assert "2 of 4 joints" in line and "knee_left 2 -> 1, hip_right 1 -> 2" in line
    torch.testing.assert_close(run(policy, env), own, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(unpermuted, own, atol=1e-2)
    assert fit_joints(policy, JointEnv(), "", ["policy"]) == []  # in its own environment nothing moves
    assert policy.joints is None


def test_steps_and_sequences_agree(tmp_path: Path) -> None:
    """``step`` repeated, ``sequence``, ``forward`` and ``act`` give the same permuted actions."""
    policy = teacher(tmp_path)
    env = JointEnv(**OTHER)
    fit_joints(policy, env, "", ["policy"])
    obs = torch.randn(5, 3, 19)
    stepped = torch.stack([policy.step(each)[0].mean for each in obs])
    torch.testing.assert_close(policy.sequence(obs)[0].mean, stepped)
    torch.testing.assert_close(policy(obs[0]), stepped[0])
    torch.testing.assert_close(policy.act(obs[0]), stepped[0])


def test_standard_deviations_and_samples_go_with_their_joints() -> None:
    """A closed form: action i of the environment has mean and deviation of the teacher's action ``actions[i]``."""
    joints = JointOrder(torch.tensor([2, 0, 1]), torch.tensor([1, 2, 0]))
    mean = torch.tensor([[10.0, 20.0, 30.0]])
    both = torch.tensor([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]])
    output = joints.act(PolicyOutput(mean, mean / 100.0, pre_tanh=both, concentration=both))
    assert joints.observe(torch.tensor([[1.0, 2.0, 3.0]])).tolist() == [[3.0, 1.0, 2.0]]
    assert output.mean.tolist() == [[20.0, 30.0, 10.0]]
    assert output.std is not None and output.pre_tanh is not None and output.concentration is not None
    assert torch.equal(output.std, output.mean / 100.0)
    assert output.pre_tanh.tolist() == output.concentration.tolist() == [[2.0, 3.0, 1.0, 5.0, 6.0, 4.0]]
    assert torch.equal(joints.undo(output).mean, mean)


@pytest.mark.parametrize("rnn", [None, "gru"])
@pytest.mark.parametrize("mode", ["per_env", "mean"])
def test_several_teachers_each_with_an_order_of_its_own(tmp_path: Path, mode: str, rnn: str | None) -> None:
    """Each teacher's output in an environment is its own, permuted by its own order; one has the environment's."""
    orders = [ORDER, [*THEIRS, *FEET[::-1]], None]
    paths = [tmp_path / f"t{i}" / "model.pt" for i in range(3)]
    for index, path in enumerate(paths):
        write_mlp(path, index, num_obs=19, num_actions=4, scale=1.0, rnn=rnn)
    single = [TeacherPolicyWrapper(path, joint_order=order) for path, order in zip(paths, orders, strict=True)]
    ensemble = TeacherEnsemble(single, ["a", "b", "c"], mode)
    env = JointEnv(num_envs=6, **OTHER)
    (line,) = fit_joints(ensemble, env, "", ["policy"])
    assert "teacher 'a'" in line
    for policy in single:
        fit_joints(policy, env, "", ["policy"])
    obs = env.get_observations()["policy"]
    outputs = torch.stack([policy.step(obs)[0].mean for policy in single])
    expected = outputs.mean(0)
    if mode == "per_env":
        expected = torch.stack([outputs[i % 3, i] for i in range(6)])
    torch.testing.assert_close(ensemble.step(obs)[0].mean, expected)


def test_looped_teachers_draw_in_their_own_order(tmp_path: Path) -> None:
    """Networks that cannot be stacked are permuted too, and with a deviation of nearly 0 a sample is the mean."""
    paths = [tmp_path / f"t{i}" / "model.pt" for i in range(2)]
    for index, path in enumerate(paths):
        write_mlp(path, index, num_obs=19, num_actions=4, scale=1.0, std=1e-9)
    (paths[1].parent / "params" / "agent.yaml").write_text("policy:\n  activation: relu\n")
    entries = [TeacherEntry(name=f"t{i}", checkpoint=path) for i, path in enumerate(paths)]
    with pytest.raises(UserError, match="differ in their activation"):
        load_ensemble(entries, joint_order=ORDER)
    single = [TeacherPolicyWrapper(path, joint_order=ORDER) for path in paths]
    single[1].info = single[0].info  # as if alike: the networks still cannot be stacked
    ensemble = TeacherEnsemble(single, ["a", "b"])
    env = JointEnv(num_envs=4, **OTHER)
    fit_joints(ensemble, env, "", ["policy"])
    output, _ = ensemble.step(env.get_observations()["policy"])
    torch.testing.assert_close(ensemble.sample(output), output.mean)


def test_history_and_slices_follow(tmp_path: Path) -> None:
    """Of a derived group each step is permuted; a slice that ends between terms is, one that cuts a term is refused."""
    env = DerivedGroups(
        JointEnv(**OTHER), {"student": DerivedObsCfg(from_="policy", keep=["joint_pos", "speed"], history=2)}, ""
    )
    columns = joint_columns(env, "", env.get_observations())
    assert columns is not None
    assert [(block.names, block.frames) for block in columns.groups["student"]] == [(THEIRS, 2), (("",), 2)]
    policy = teacher(tmp_path)
    policy.num_obs = 10
    fit_joints(policy, env, "", ["student"])
    assert policy.joints is not None
    assert policy.joints.obs.tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 9]
    policy.num_obs = 9
    fit_joints(policy, JointEnv(**OTHER), "", ["policy"], [0, 9])
    assert policy.joints.obs.tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8]
    policy.num_obs = 2
    with pytest.raises(UserError, match=r"obs_slice=\[0,2\] cuts a term"):
        fit_joints(policy, JointEnv(**OTHER), "", ["policy"], [0, 2])


def test_part_of_a_term_by_place_is_refused(tmp_path: Path) -> None:
    """``joint_pos[0:2]`` are other joints in another order: nothing can be permuted."""
    env = DerivedGroups(JointEnv(**OTHER), {"student": DerivedObsCfg(from_="policy", keep=["joint_pos[1:3]"])}, "")
    policy = teacher(tmp_path)
    policy.num_obs = 2
    with pytest.raises(UserError, match=r"'joint_pos\[1:3\]' names columns by their place"):
        fit_joints(policy, env, "", ["student"])


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (["hip_lefd", *ORDER[1:]], "the environment has no joint 'hip_lefd'. Did you mean 'hip_left'"),
        (ORDER[1:], "joint_order lacks hip_left: name every joint"),
        (["hip_left", *ORDER], "joint_order has 'hip_left' twice"),
        ([*JOINTS, "foot_left"], "joint_order lacks foot_right, which the observations have"),
    ],
)
def test_bad_orders(tmp_path: Path, order: list[str], message: str) -> None:
    """One line that names the joint."""
    policy = teacher(tmp_path, order=order)
    with pytest.raises(UserError, match=message):
        fit_joints(policy, JointEnv(**OTHER), "", ["policy"])


def test_environments_without_names(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A typed order is refused there; one of the teacher's file is warned of; an empty one takes all as it is."""
    env = JointEnv(order=THEIRS, named=False)
    with pytest.raises(UserError, match="this environment does not name its joints"):
        fit_joints(teacher(tmp_path), env, "", ["policy"])
    path = tmp_path / "teacher_0" / "model.pt"
    (path.parent / "deploy.yaml").write_text(f"joint_order: [{', '.join(JOINTS)}]")
    stated = TeacherPolicyWrapper(path)
    assert fit_joints(stated, env, "", ["policy"]) == []
    assert "they are taken to be the same" in caplog.text
    assert fit_joints(TeacherPolicyWrapper(path, joint_order=[]), JointEnv(**OTHER), "", ["policy"]) == []
    env = JointEnv(**OTHER)
    del env.observation_terms
    with pytest.raises(UserError, match="group 'policy' have no names to permute them by"):
        fit_joints(stated, env, "", ["policy"])


def test_where_an_order_is_read_from(tmp_path: Path) -> None:
    """The checkpoint's own, its infos, deploy.yaml, an export beside it; the user's beats all of them."""
    path = write_mlp(tmp_path / "run" / "model.pt", 0, num_obs=19, num_actions=4)
    assert TeacherPolicyWrapper(path).info.joint_order is None
    assert "joint_order" not in TeacherPolicyWrapper(path).describe()
    node = helper.make_node("Identity", ["obs"], ["actions"])
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("obs", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("actions", TensorProto.FLOAT, [1, 4])],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    entry = model.metadata_props.add()
    entry.key, entry.value = "joint_names", "a, b,c,d"
    onnx.save(model, path.parent / "run.onnx")
    beside = TeacherPolicyWrapper(path).info
    assert (beside.joint_order, beside.joint_order_from) == (["a", "b", "c", "d"], f"'{path.parent / 'run.onnx'}'")
    assert TeacherPolicyWrapper(path.parent / "run.onnx").info.joint_order == ["a", "b", "c", "d"]
    (path.parent / "params" / "deploy.yaml").write_text("joint_names: [d, c, b, a]")
    assert TeacherPolicyWrapper(path).info.joint_order == ["d", "c", "b", "a"]
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"infos": {"joint_order": ["b", "a", "c", "d"]}}, path)
    assert TeacherPolicyWrapper(path).describe()["joint_order"] == ["b", "a", "c", "d"]
    torch.save(saved | {"joint_order": ["c", "a", "b", "d"]}, path)
    assert TeacherPolicyWrapper(path).info.joint_order == ["c", "a", "b", "d"]
    assert TeacherPolicyWrapper(path, joint_order=["a"]).info.joint_order == ["a"]
    torch.save(saved | {"joint_order": 3}, path)
    with pytest.raises(UserError, match="states an order of joints that is no list of names: 3"):
        TeacherPolicyWrapper(path)
    with pytest.raises(UserError, match=r"joint_order must be \[joint,...\]"):
        TeacherPolicyWrapper(path, joint_order="a")


def test_joints_of_another_robot(tmp_path: Path) -> None:
    """A file's names that are not the environment's are an error that shows the environment's, and the way out."""
    path = write_mlp(tmp_path / "run" / "model.pt", 0, num_obs=19, num_actions=4)
    (path.parent / "deploy.yaml").write_text("joint_order: [a, b, c, d]")
    with pytest.raises(UserError, match=r"it has no hip_left, knee_left.*joint_order=\[\] to take the columns as they"):
        fit_joints(TeacherPolicyWrapper(path), JointEnv(**OTHER), "", ["policy"])


def test_a_suspected_order_is_named_where_the_teacher_fails() -> None:
    """A teacher that is not above random actions, of a robot with named joints: the message names the possibility."""
    same = {name: _episodes([1.0, 2.0, 3.0]) for name in ("teacher", "zero", "random")}
    with pytest.raises(
        UserError, match=r"order of its joints \(distill.teacher.joint_order=\[...\]; here it is hip_left"
    ):
        check_teacher(same, TeacherCfg(), joints=JOINTS)
    with pytest.raises(UserError) as without:
        check_teacher(same, TeacherCfg())
    assert "joint" not in str(without.value)


def _episodes(returns: list[float]) -> EvaluationResult:
    values = torch.tensor(returns)
    return EvaluationResult(returns=values, lengths=torch.ones(3), success=None, metrics={}, env_steps=3)
