"""Students that start from a checkpoint."""

from __future__ import annotations

import pytest
import torch
import yaml
from rsl_rl.models import CNNModel
from tensordict import TensorDict

from foundation.checkpoints.initialise import initialise_encoders, initialise_student
from foundation.core.errors import UserError
from foundation.core.files import atomic_torch_save
from foundation.export.rsl_rl import write_rsl_rl
from foundation.students import StudentPolicy, make_student, student_cfg_class
from foundation.students.cnn import CNNStudent, CNNStudentCfg
from foundation.teachers import TeacherPolicyWrapper


def fitted(student):
    """Return the student with a fitted normaliser."""
    student.normalizer.update(torch.randn(300, student.num_obs) * 3 + 1)
    return student


def gru(**options):
    """Return a GRU student of RSL-RL's shape."""
    cfg = student_cfg_class("gru")(encoder_dims=[], hidden_dims=[8], hidden_size=6, activation="elu", **options)
    return make_student(cfg, 9, 3)


@pytest.mark.parametrize("layout", ["3", "5"])
@pytest.mark.parametrize("make", [lambda: StudentPolicy(9, 3, (16, 8), stochastic=True), lambda: gru(stochastic=True)])
def test_from_rsl_rl(layout, make, tmp_path):
    """Started from an RSL-RL checkpoint, a student acts as that policy does, deviation and normaliser included."""
    write_rsl_rl(fitted(make()), tmp_path / "model_0.pt", layout)
    student = make()
    initialise_student(student, tmp_path / "model_0.pt")
    teacher = TeacherPolicyWrapper(tmp_path / "model_0.pt")
    state = student.initial_state(5)
    for _ in range(4):
        obs = torch.randn(5, 9) * 2
        own, state = student.step(obs, state)
        output = teacher.output(obs)
        assert torch.allclose(own.mean, output.mean, atol=1e-6) and torch.allclose(own.std, output.std, atol=1e-6)
    assert student.normalizer.count == 300 and all(p.requires_grad for p in student.parameters())


def test_from_a_student_with_other_heads(tmp_path):
    """From a student of ours everything is copied; a head that the file lacks keeps its start values."""
    first = fitted(StudentPolicy(9, 3))
    saved = {"model_state_dict": first.state_dict(), "student": first.describe()}
    atomic_torch_save(saved, tmp_path / "s.pt")
    second = StudentPolicy(9, 3, stochastic=True, value_head=True, init_std=0.3)
    initialise_student(second, tmp_path / "s.pt")
    obs = torch.randn(4, 9)
    assert torch.equal(second(obs), first(obs))
    assert torch.allclose(second.step(obs)[0].std, torch.tensor(0.3))


@pytest.mark.parametrize("ours", [True, False])
def test_a_deeper_network_is_not_cut_off(ours, tmp_path):
    """Equal layers fit one by one, but a student with fewer of them would act otherwise than the file."""
    deep, path = StudentPolicy(9, 3, (8, 8, 8)), tmp_path / "model_0.pt"
    if ours:
        atomic_torch_save({"model_state_dict": deep.state_dict(), "student": deep.describe()}, path)
    else:
        write_rsl_rl(deep, path)
    with pytest.raises(UserError, match=r"'body.4.bias' must have shape nothing and the file has \[8\]"):
        initialise_student(StudentPolicy(9, 3, (8, 8)), path)


def test_what_does_not_fit_is_refused(tmp_path):
    """Other sizes, another activation and another kind of network are refused, and the student stays as it was."""
    write_rsl_rl(fitted(StudentPolicy(9, 3, (16, 8))), tmp_path / "model_0.pt")
    for student, words in (
        (StudentPolicy(8, 3, (16, 8)), "num_obs=9 and the student 8"),
        (StudentPolicy(9, 2, (16, 8)), "num_actions=3"),
        (StudentPolicy(9, 3, (16, 9)), r"\[9, 16\].*\[8, 16\]"),
        (StudentPolicy(9, 3, (16,)), "does not fit"),
        (StudentPolicy(9, 3, (16, 8, 8)), "does not fit"),
        (StudentPolicy(9, 3, (16, 8), "tanh"), "elu activations and the student tanh"),
        (gru(), "dense layers only"),
    ):
        before = {key: value.clone() for key, value in student.state_dict().items()}
        with pytest.raises(UserError, match=words):
            initialise_student(student, tmp_path / "model_0.pt")
        assert all(torch.equal(before[key], value) for key, value in student.state_dict().items())


SEEN = {"camera": [1, 16, 12]}


def seeing(**options) -> CNNStudent:
    """Return a student that reads bytes, with the convolutions of :func:`rsl_rl_that_sees` unless told otherwise."""
    chosen = {"channels": [4, 6, 5], "image_features": 8, "hidden_dims": [8], "images": SEEN, **options}
    made = make_student(CNNStudentCfg(**{"image_scales": {"camera": 1.0 / 255.0}, **chosen}), 3 + 192, 2)
    assert isinstance(made, CNNStudent)
    return made


def rsl_rl_that_sees(folder, **cnn) -> CNNModel:
    """Write a checkpoint of RSL-RL's ``CNNModel`` of two convolutions, and return the model."""
    options = {"output_channels": [4, 6], "kernel_size": 3, "stride": 2, "padding": "zeros", "activation": "elu", **cnn}
    model = {"class_name": "CNNModel", "hidden_dims": [8], "activation": "elu", "obs_normalization": False}
    model |= {"cnn_cfg": options, "distribution_cfg": {"class_name": "GaussianDistribution", "init_std": 0.5}}
    obs = TensorDict({"policy": torch.zeros(2, 3), "camera": torch.zeros(2, 1, 16, 12)}, batch_size=[2])
    groups = {"actor": ["policy", "camera"], "critic": ["policy", "camera"]}
    kept = {name: value for name, value in model.items() if name != "class_name"}
    made = CNNModel(obs, groups, "actor", 2, **kept)
    (folder / "params").mkdir(parents=True)
    torch.save({"actor_state_dict": made.state_dict(), "iter": 0, "infos": None}, folder / "model_0.pt")
    agent = {"class_name": "OnPolicyRunner", "actor": model, "critic": model, "obs_groups": groups}
    (folder / "params" / "agent.yaml").write_text(yaml.safe_dump(agent))
    return made


def test_an_encoder_begins_with_that_of_rsl_rl(tmp_path):
    """The two layers that match give of scaled bytes what RSL-RL's give of the bytes; the third is the student's."""
    theirs = rsl_rl_that_sees(tmp_path / "a")
    student = seeing()
    third = student.encoder.encoders[0][4].weight.clone()
    initialise_encoders(student, tmp_path / "a" / "model_0.pt")
    image = torch.randint(0, 256, (5, 1, 16, 12)).float()
    with torch.no_grad():
        expected = theirs.cnns["camera"](image)
        found = student.encoder.encoders[0][:4](image / 255.0).flatten(1)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)
    assert torch.equal(student.encoder.encoders[0][4].weight, third)
    assert all(p.requires_grad for p in student.parameters())


def test_an_encoder_begins_with_that_of_another_student(tmp_path):
    """Of a student of ours with another policy behind it everything is taken, its scale included."""
    first = seeing(image_scales={"camera": 1.0}, hidden_dims=[16])
    saved = {"model_state_dict": first.state_dict(), "student": first.describe()}
    atomic_torch_save(saved, tmp_path / "s.pt")
    second = seeing()
    initialise_encoders(second, tmp_path / "s.pt")
    image = torch.rand(5, 1, 16, 12) * 255.0
    expected, found = (s.encoder.encoders[0](image * s.image_scales["camera"]) for s in (first, second))
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_an_encoder_that_does_not_fit_is_refused(tmp_path):
    """Another kernel, stride or activation, no images at all: one line each, and the way out."""
    rsl_rl_that_sees(tmp_path / "kernel", kernel_size=5)
    rsl_rl_that_sees(tmp_path / "stride", stride=1)
    rsl_rl_that_sees(tmp_path / "relu", activation="relu")
    write_rsl_rl(fitted(StudentPolicy(9, 3)), tmp_path / "model_0.pt", "5")
    for name, words in {
        "kernel/model_0.pt": r"'camera' cannot begin .* is \[4, 1, 5, 5\], and the student's \[4, 1, 3, 3\]",
        "stride/model_0.pt": "strides differ",
        "relu/model_0.pt": "has ReLU activations. Set distill.student.activation",
        "model_0.pt": "reads no images, and the student's encoder is of 'camera'",
    }.items():
        with pytest.raises(UserError, match=words) as caught:
            initialise_encoders(seeing(), tmp_path / name)
        assert "\n" not in str(caught.value)
