"""Layouts of RSL-RL 1.x and 2.x that no installable release writes any more, by hand, against plain torch."""

from __future__ import annotations

import pytest
import torch
import yaml
from torch import nn
from torch.nn import functional

from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.teachers import TeacherPolicyWrapper

OBS, ACTIONS, UNITS = 9, 3, 6


def dense(prefix, *sizes):
    """Return a perceptron's tensors."""
    out = {}
    for layer in range(len(sizes) - 1):
        out[f"{prefix}.{2 * layer}.weight"] = torch.randn(sizes[layer + 1], sizes[layer]) * 0.4
        out[f"{prefix}.{2 * layer}.bias"] = torch.randn(sizes[layer + 1])
    return out


def normalizer():
    """Return the moments of a normaliser."""
    var = torch.rand(1, OBS) * 4 + 0.1
    return {"_mean": torch.randn(1, OBS) * 2, "_var": var, "_std": var.sqrt(), "count": torch.tensor(500)}


def normalised(x, moments):
    """Normalise as RSL-RL's documentation says."""
    return (x - moments["_mean"]) / (moments["_std"] + 1e-2)


def perceptron(x, tensors, prefix, activation):
    """Run two hidden layers and the last one."""
    for layer in (0, 2):
        x = activation(functional.linear(x, tensors[f"{prefix}.{layer}.weight"], tensors[f"{prefix}.{layer}.bias"]))
    return functional.linear(x, tensors[f"{prefix}.4.weight"], tensors[f"{prefix}.4.bias"])


def save(folder, config=None, **entries):
    """Write a checkpoint, with a config beside it if one is given."""
    atomic_torch_save({"optimizer_state_dict": {}, "iter": 3, "infos": None, **entries}, folder / "model_3.pt")
    if config is not None:
        (folder / "params").mkdir()
        (folder / "params" / "agent.yaml").write_text(yaml.safe_dump(config))
    return folder / "model_3.pt"


@pytest.mark.parametrize("privileged", ["critic_obs_norm_state_dict", "privileged_obs_norm_state_dict"])
def test_separate_normalisers(privileged, tmp_path):
    """``obs_norm_state_dict`` beside the model is applied to the actor, the other one to the critic."""
    model = {"std": torch.rand(ACTIONS), **dense("actor", OBS, 8, 7, ACTIONS), **dense("critic", OBS, 8, 7, 1)}
    norms = {"obs_norm_state_dict": normalizer(), privileged: normalizer()}
    config = {"policy": {"activation": "selu"}, "empirical_normalization": True, "clip_actions": 2.0}
    teacher = TeacherPolicyWrapper(save(tmp_path, config, model_state_dict=model, **norms))
    obs = torch.randn(5, OBS) * 3
    output = teacher.output(obs)
    mean = perceptron(normalised(obs, norms["obs_norm_state_dict"]), model, "actor", functional.selu)
    value = perceptron(normalised(obs, norms[privileged]), model, "critic", functional.selu)
    assert torch.allclose(output.mean, mean, atol=1e-5) and torch.allclose(output.value, value, atol=1e-5)
    assert torch.equal(output.std[0], model["std"]) and teacher.clip_actions == 2.0
    assert teacher.describe()["format"] == "RSL-RL 2.x" and teacher.describe()["obs_normalization"] is True


def test_a_lost_normaliser_is_refused(tmp_path):
    """A config that says the run was normalised and a file without the moments do not go together."""
    model = {"std": torch.rand(ACTIONS), **dense("actor", OBS, 8, 7, ACTIONS)}
    path = save(tmp_path, {"policy": {"activation": "elu"}, "empirical_normalization": True}, model_state_dict=model)
    with pytest.raises(UserError, match="no observation normaliser"):
        TeacherPolicyWrapper(path)
    obs = torch.randn(2, OBS)
    bare = TeacherPolicyWrapper(path, strict=False)
    assert torch.allclose(bare.act(obs), perceptron(obs, model, "actor", functional.elu), atol=1e-5)


@pytest.mark.parametrize("kind", ["gru", "lstm"])
def test_memory_of_release_1(kind, tmp_path):
    """``memory_a.rnn.*`` before the actor, as legged_gym's policies have it, with resets of part of the envs."""
    rnn = {"gru": nn.GRU, "lstm": nn.LSTM}[kind](OBS, UNITS, 2)
    model = {"std": torch.rand(ACTIONS), **dense("actor", UNITS, 8, 7, ACTIONS), **dense("critic", UNITS, 8, 7, 1)}
    for memory in ("memory_a", "memory_c"):
        model |= {f"{memory}.rnn.{key}": value.detach().clone() for key, value in rnn.state_dict().items()}
    teacher = TeacherPolicyWrapper(save(tmp_path, model_state_dict=model), activation="relu")
    memory = torch.zeros(2, 5, UNITS), torch.zeros(2, 5, UNITS)
    for _ in range(8):
        obs, dones = torch.randn(5, OBS), torch.rand(5) < 0.3
        with torch.no_grad():
            features, after = rnn(obs[None], memory if kind == "lstm" else memory[0])
        wanted = perceptron(features[0], model, "actor", functional.relu)
        assert torch.allclose(teacher.act(obs), wanted, atol=1e-5)
        after = after if kind == "lstm" else (after, after)
        memory = tuple(part * ~dones[None, :, None] for part in after)
        teacher.reset(dones)


def test_student_of_release_2(tmp_path):
    """A distilled student with its separate normaliser; the teacher beside it is not taken for it."""
    model = {"std": torch.rand(ACTIONS), **dense("student", OBS, 8, 7, ACTIONS), **dense("teacher", 12, 8, 7, ACTIONS)}
    norms = {"obs_norm_state_dict": normalizer(), "privileged_obs_norm_state_dict": normalizer()}
    config = {"policy": {"class_name": "StudentTeacher", "activation": "tanh"}, "empirical_normalization": True}
    teacher = TeacherPolicyWrapper(save(tmp_path, config, model_state_dict=model, **norms))
    obs = torch.randn(5, OBS)
    wanted = perceptron(normalised(obs, norms["obs_norm_state_dict"]), model, "student", torch.tanh)
    assert torch.allclose(teacher.act(obs), wanted, atol=1e-5)
    assert teacher.describe()["format"] == "RSL-RL 2.x distillation"


def test_a_student_beside_another_policy(tmp_path):
    """Weights of a student and other ones of an actor in one file: none is chosen in silence."""
    actor = {"std": torch.rand(ACTIONS), **dense("actor", OBS, 8, 7, ACTIONS), **dense("critic", OBS, 8, 7, 1)}
    student = {"distribution.std_param": torch.rand(ACTIONS), **dense("mlp", OBS, 8, 7, ACTIONS)}
    with pytest.raises(UserError, match="two policies: the student in 'student_state_dict'"):
        TeacherPolicyWrapper(save(tmp_path, None, model_state_dict=actor, student_state_dict=student), strict=False)


def test_which_half_is_read_is_said(tmp_path, caplog):
    """A file with a student and its teacher gives the student's actions, and one line says so."""
    student, teacher = (
        {"distribution.std_param": torch.rand(ACTIONS), **dense("mlp", OBS, 8, 7, ACTIONS)} for _ in range(2)
    )
    path = save(tmp_path, None, student_state_dict=student, teacher_state_dict=teacher)
    with caplog.at_level("INFO", logger="foundation"):
        policy = TeacherPolicyWrapper(path, activation="tanh")
    obs = torch.randn(5, OBS)
    assert torch.allclose(policy.act(obs), perceptron(obs, student, "mlp", torch.tanh), atol=1e-5)
    assert "the student is read" in caplog.text


@pytest.mark.parametrize("prefix", ["", "actor_mean.", "module.0.module.0.", "net."])
def test_plain_weights_get_advice_that_helps(prefix, tmp_path):
    """Weights whose layers nothing describes are refused; exported as the line says, they are run as they are."""
    network = nn.Sequential(nn.Linear(OBS, 8), nn.Tanh(), nn.Linear(8, ACTIONS))
    torch.save({f"{prefix}{name}": value for name, value in network.state_dict().items()}, tmp_path / "plain.pt")
    with pytest.raises(UserError, match=r"Export the policy as TorchScript .* distill\.teacher\.run_as_is=true"):
        TeacherPolicyWrapper(tmp_path / "plain.pt")
    torch.jit.script(network).save(str(tmp_path / "policy.pt"))
    obs = torch.randn(5, OBS)
    policy = TeacherPolicyWrapper(tmp_path / "policy.pt", run_as_is=True)
    assert torch.allclose(policy.act(obs), network(obs), atol=1e-5)
