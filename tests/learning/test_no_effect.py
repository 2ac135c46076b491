"""Settings that the chosen losses, student and mode do not read."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from foundation.config.distillation_cfg import (
    CollectionCfg,
    DatasetCfg,
    DistillationCfg,
    EarlyStoppingCfg,
    GateCfg,
    ScheduleCfg,
    TeacherCfg,
    TermCfg,
)
from foundation.learning.learner import Learner
from foundation.learning.losses import LOSSES, LossParams, LossSpec, loss_spec
from foundation.learning.no_effect import without_effect
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy
from foundation.students.cnn import CNNStudentCfg
from foundation.students.mlp import MLPStudentCfg


def found(cfg: DistillationCfg, discrete: bool = False, sequences: bool = False, memory: bool = False) -> list[str]:
    specs = [loss_spec(name) for name in (cfg.loss.name, *cfg.loss.auxiliary)]
    return without_effect(cfg, specs, discrete=discrete, sequences=sequences, memory=memory)


def changed(path: str, value: object, loss: str = "mse", **options: object) -> DistillationCfg:
    cfg = DistillationCfg(student=MLPStudentCfg(), **options)  # type: ignore[arg-type]
    cfg.loss.name = loss
    part: object = cfg
    *groups, name = path.split(".")
    for group in groups:
        part = getattr(part, group)
    assert getattr(part, name) != value
    setattr(part, name, value)
    return cfg


def test_defaults_have_nothing_to_say():
    """With every loss of its kind, nothing is said of what nobody has set."""
    for name, spec in LOSSES.items():
        if spec.trains_actions:
            assert found(DistillationCfg(loss=DistillationCfg().loss.__class__(name))) == []


@pytest.mark.parametrize(
    ("loss", "discrete", "path", "value", "read"),
    [
        ("mse", False, "loss.temperature", 2.0, False),
        ("mse", False, "loss.smoothing", 0.1, False),
        ("kl", False, "loss.smoothing", 0.1, False),
        ("kl", True, "loss.smoothing", 0.1, False),
        ("kl", False, "loss.temperature", 2.0, False),
        ("kl", False, "loss.temperature", ScheduleCfg("linear", 2.0, 1.0), False),
        ("kl", True, "loss.temperature", 2.0, True),
        ("soft_cross_entropy", True, "loss.temperature", 2.0, True),
        ("q_mse", True, "loss.temperature", 2.0, False),
        ("nll", True, "loss.temperature", 2.0, False),
        ("kl", True, "loss.student_temperature", "same", True),
        ("mse", False, "loss.student_temperature", "same", False),
        ("huber", False, "loss.huber_delta", 0.1, True),
        ("mse", False, "loss.huber_delta", 0.1, False),
        ("kl", False, "loss.min_std", 0.1, True),
        ("nll", False, "loss.min_std", 0.1, True),
        ("kl", True, "loss.min_std", 0.1, False),
        ("kl", False, "loss.direction", "reverse", True),
        ("mse", False, "loss.direction", "reverse", False),
        ("nll", True, "loss.labels", "sampled", True),
        ("kl", True, "loss.labels", "sampled", False),
        ("mse", False, "loss.feature_distance", "cosine", False),
    ],
)
def test_what_a_loss_does_not_read_is_named(loss, discrete, path, value, read):
    """And what it reads is not: the key, its value, and the losses that were chosen."""
    lines = found(changed(path, value, loss), discrete)
    if read:
        assert lines == []
    else:
        [line] = lines
        assert f"distill.{path}=" in line and loss in line


@pytest.mark.parametrize("discrete", [False, True])
@pytest.mark.parametrize("name", sorted(LOSSES))
def test_the_lists_of_what_losses_read_are_true(name, discrete):
    """A loss changes with a parameter if and only if its list names it."""
    spec = LOSSES[name]
    if not discrete and "logits" in spec.student:
        return
    generator = torch.Generator().manual_seed(0)

    def output() -> PolicyOutput:
        mean, logits = torch.randn(64, 3, generator=generator), torch.randn(64, 5, generator=generator)
        small = 0.05 + 0.05 * torch.rand(64, 3, generator=generator)
        chosen = logits if discrete else None
        return PolicyOutput(mean, small, mean[:, :1], chosen, mean, saliency=mean.abs(), estimate=mean)

    student, teacher = output(), output()
    base = LossParams(huber_delta=1.0, min_std=0.01, temperature=1.0, student_temperature=1.0)
    other = {"huber_delta": 0.1, "min_std": 0.2, "temperature": 3.0, "student_temperature": 3.0}
    other |= {"direction": "reverse", "labels": "sampled", "feature_distance": "cosine", "smoothing": 0.5}
    other |= {"feature_hints": "residual"}
    beside = {"smoothing": {"direction": "jensen_shannon"}, "feature_hints": {"layer_sizes": (1, 1, 1)}}
    reads = set()
    for field, value in other.items():
        own = replace(base, **beside.get(field, {}))
        changed_params = replace(own, **{field: value})
        if not torch.equal(spec.function(student, teacher, changed_params), spec.function(student, teacher, own)):
            reads.add(field)
    known = spec.discrete if discrete else spec.continuous
    # mse and huber are refused with discrete actions (check_choices): nothing is claimed of them there.
    if discrete and name in ("mse", "huber"):
        return
    assert known == reads


@pytest.mark.parametrize(
    ("cfg", "key"),
    [
        (changed("optimizer.update_ratio", 3.0, optimizer=DistillationCfg().optimizer.__class__(updates_per_epoch=4)),
         "optimizer.update_ratio=3"),
        (changed("dataset.burn_in", 4), "dataset.burn_in=4"),
        (changed("dataset.sequence_start", "zero"), "dataset.sequence_start=zero"),
        (changed("dataset.load_files", 3), "dataset.load_files=3"),
        (changed("dataset.held_out", 0.5), "dataset.held_out=0.5"),
        (changed("dataset.eviction", "reservoir", on_policy=True), "dataset.eviction=reservoir"),
        (changed("dataset.disk_gb", 0.5, on_policy=True), "dataset.disk_gb=0.5"),
        (changed("teacher.combine_temperature", 2.0), "teacher.combine_temperature=2"),
        (changed("teacher.gate.hidden_dims", [8]), "teacher.gate.hidden_dims=[8]"),
        (changed("collection.beta_per", "step"), "collection.beta_per=step"),
        (changed("collection.dart_alpha", 1.0, epoch_teacher_forcing=1), "collection.dart_alpha=1"),
        (changed("collection.teacher_student_mix", 2, epoch_teacher_forcing=100), "collection.teacher_student_mix=2"),
        (changed("collection.student_deterministic", False, epoch_teacher_forcing=200),
         "collection.student_deterministic=False"),
        (changed("collection.beta", ScheduleCfg("constant", 0.5, end=0.1)), "collection.beta.end=0.1"),
        (changed("optimizer.lr_schedule", ScheduleCfg("linear", 1.0, 0.1, points=[[0, 1]])),
         "optimizer.lr_schedule.points=[[0, 1]]"),
        (changed("optimizer.lr_schedule", ScheduleCfg("step", epochs=3, points=[[0, 1]])),
         "optimizer.lr_schedule.epochs=3"),
        (changed("loss.auxiliary", {"huber": TermCfg(temperature=2.0)}), "loss.auxiliary.huber.temperature=2"),
        (changed("loss.auxiliary", {"huber": TermCfg(direction="reverse")}), "loss.auxiliary.huber.direction=reverse"),
        (changed("loss.auxiliary", {"huber": TermCfg(weight=ScheduleCfg("constant", 0.5, end=0.1))}),
         "loss.auxiliary.huber.weight.end=0.1"),
        (changed("early_stopping.min_delta", 5.0), "early_stopping.min_delta=5"),
        (changed("log_project_name", "mine"), "log_project_name=mine"),
        (changed("student.stochastic", True), "student.stochastic=true"),
        (changed("student.value_head", True), "student.value_head=true"),
        (changed("student.init_std", 0.1), "student.init_std=0.1"),
        (changed("student.state_dependent_std", True), "student.state_dependent_std=True"),
        (changed("loss.auxiliary", {"huber": 0.0}), "loss.auxiliary.huber=0"),
        (changed("loss.gap_temperature", 2.0), "loss.gap_temperature=2"),
        (changed("dataset.newest_epochs", 3, on_policy=True), "dataset.newest_epochs=3"),
        (changed("dataset.newest_epochs", 3, dataset=DatasetCfg(eviction="reservoir")), "dataset.newest_epochs=3"),
        (changed("dataset.newest_epochs", 3, offline=True), "dataset.newest_epochs=3"),
    ],
)  # fmt: skip
def test_other_settings_without_effect_are_named(cfg, key):
    """Each alone, with its reason in parentheses."""
    [line] = found(cfg)
    assert line.startswith(f"distill.{key} (")


@pytest.mark.parametrize(
    "cfg",
    [
        changed("teacher.combine", "value", teacher=TeacherCfg(combine_temperature=2.0)),
        changed("teacher.combine", "gate", teacher=TeacherCfg(gate=GateCfg(updates=5))),
        changed("collection.beta_per", "step", collection=CollectionCfg(beta=ScheduleCfg("linear", 1.0, 0.0))),
        changed("collection.dart_alpha", 1.0, epoch_teacher_forcing=2),
        changed("collection.beta_per", "step", collection=CollectionCfg(teacher_student_mix=1)),
        changed("collection.beta", ScheduleCfg("linear", 1.0, 0.5, epochs=4)),
        changed("optimizer.lr_schedule", ScheduleCfg("piecewise", points=[[0, 1], [5, 0.1]])),
        changed("early_stopping.min_delta", 5.0, early_stopping=EarlyStoppingCfg(patience=3)),
        changed("log_project_name", "mine", logger="wandb"),
    ],
)
def test_the_same_settings_where_they_are_read_are_not_named(cfg):
    """Each beside what reads it."""
    assert found(cfg) == []


IMAGE = {"camera": [1, 8, 8]}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"num_layers": 3}, "distill.student.num_layers=3 (student.memory is none)"),
        ({"hidden_size": 8}, "distill.student.hidden_size=8 (student.memory is none)"),
        ({"share_encoder": True, "images": IMAGE}, "distill.student.share_encoder=true (the student reads one image"),
        ({"num_layers": 3, "memory": "gru"}, None),
        ({"share_encoder": True, "images": {**IMAGE, "wrist": [1, 8, 8]}}, None),
    ],
)
def test_settings_of_a_student_that_sees(options, says):
    """Recurrent layers that there are none of, and one encoder for one image, are named."""
    lines = found(DistillationCfg(student=CNNStudentCfg(**options)))
    assert [line[: len(says or "")] for line in lines] == ([] if says is None else [says])


def test_groups_of_images_that_nothing_changes():
    """A misspelt group is told only where something is done to it."""
    cfg = DistillationCfg()
    cfg.augment_images.groups = ["camera"]
    assert found(cfg) == ["distill.augment_images.groups (no change of the images is asked for)"]
    cfg.augment_images.shift = 2
    assert found(cfg) == []


def test_offline_names_what_was_typed_for_a_simulator_or_a_teacher_together():
    """An experiment's file sets several of them: one reason for all."""
    cfg = changed("num_envs", 64, offline=True, num_episodes=8, epoch_teacher_forcing=1, on_policy=True)
    cfg.teacher.checkpoint = "model.pt"
    cfg.collection.noise_std = 0.1
    cfg.dataset.load = "folder"
    [line] = found(cfg)
    assert line == (
        "distill.num_envs=64, distill.num_episodes=8, distill.epoch_teacher_forcing=1, distill.on_policy=True, "
        "distill.teacher.checkpoint=model.pt, distill.collection.noise_std=0.1 (--offline collects nothing)"
    )


@pytest.mark.parametrize("path", ["dataset.size", "dataset.eviction", "dataset.chunk_steps", "dataset.disk_gb"])
def test_offline_says_what_only_collecting_reads(path):
    """``--offline`` takes the dataset as it is."""
    cfg = changed(path, {"dataset.eviction": "reservoir"}.get(path, 7), offline=True)
    cfg.dataset.load = "folder"
    [line] = found(cfg)
    assert f"distill.{path}=" in line and "--offline" in line


def test_a_loss_of_the_users_own_may_read_everything():
    """Of ``pkg.module:function`` nothing is known, and nothing is claimed."""
    own = LossSpec("pkg:loss", lambda *_: torch.zeros(1), continuous=None, discrete=None)
    cfg = changed("loss.temperature", 2.0)
    assert without_effect(cfg, [own], discrete=False, sequences=False, memory=False) == []


def test_a_run_says_it_in_one_line(caplog):
    """The learner's check at the start of a run logs all of them at once."""
    cfg = changed("loss.temperature", 2.0)
    cfg.loss.huber_delta = 0.5
    with caplog.at_level(logging.WARNING):
        Learner(StudentPolicy(3, 2), cfg, 1).prepare(PolicyOutput(torch.zeros(1, 2)), PolicyOutput(torch.zeros(1, 2)))
    [record] = caplog.records
    text = record.getMessage()
    assert "loss.temperature=2 (mse reads none with continuous actions)" in text and "huber_delta=0.5" in text
    assert "\n" not in text
