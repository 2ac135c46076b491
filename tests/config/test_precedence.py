"""What is typed beats what a file says, in whichever order, and each choice says who made it."""

from __future__ import annotations

import logging
import shutil
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from foundation.config import resolve as resolve_module
from foundation.config.distillation_cfg import DistillationCfg, ScheduleCfg
from foundation.config.overrides import parse_overrides
from foundation.config.plain import to_plain
from foundation.config.resolve import Resolved, config_folder, resolve
from foundation.core.errors import UserError
from foundation.learning.losses import LOSSES
from foundation.students import student_cfg_class


def resolved(*tokens: str, base: dict[str, Any] | None = None, **flags: Any) -> Resolved:
    overrides = parse_overrides(tokens)
    return resolve(overrides, flags, student_cfg_class=student_cfg_class, loss_names=LOSSES, base=base)


def cfg_of(*tokens: str, **options: Any) -> DistillationCfg:
    return resolved(*tokens, **options).cfg


@pytest.fixture
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of ``configs/`` to which a test adds experiments of its own; returns their folder."""
    folder = shutil.copytree(config_folder(), tmp_path / "configs")
    monkeypatch.setattr(resolve_module, "config_folder", lambda: folder)
    return folder / "experiment"


def write(folder: Path, name: str, text: str) -> str:
    (folder / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    return f"experiment={name}"


BOTH_ORDERS = pytest.mark.parametrize("order", [1, -1], ids=["experiment first", "experiment last"])


@BOTH_ORDERS
def test_a_typed_loss_beats_the_experiments(order: int) -> None:
    """``experiment=fast loss=kl`` trains kl with the floor of loss/kl.yaml, not the experiment's huber."""
    cfg = cfg_of(*["experiment=fast", "loss=kl"][::order])
    assert (cfg.loss.name, cfg.loss.min_std, cfg.n_epochs) == ("kl", 0.01, 300)


@BOTH_ORDERS
def test_all_typed_groups_beat_an_experiment_that_says_otherwise(order: int, presets: Path) -> None:
    """Student, loss, schedule and dataset of the command line stand against a file that sets all of them."""
    mine = write(
        presets,
        "mine",
        "defaults:\n  - override /student: lstm\n"
        "n_epochs: 7\nepoch_teacher_forcing: 3\n"
        "loss: {name: huber, huber_delta: 0.25}\n"
        "student: {hidden_size: 99, encoder_dims: [5]}\n"
        "collection: {beta: {kind: cosine, start: 0.5, end: 0.25, epochs: 4}}\n"
        "dataset: {dtype: bfloat16, chunk_steps: 8}\n",
    )
    cfg = cfg_of(*[mine, "loss=kl", "student=gru", "schedule=linear", "dataset=half"][::order])
    assert (cfg.loss.name, cfg.dataset.dtype, cfg.collection.beta) == ("kl", "float16", ScheduleCfg("linear", 1.0))
    assert cfg.student == student_cfg_class("gru")(
        name="gru", encoder_dims=[16], hidden_size=16, hidden_dims=[], activation="relu"
    )
    assert (cfg.n_epochs, cfg.dataset.chunk_steps) == (7, 8), "what nobody typed is the file's"
    again = cfg_of(*[mine, "schedule=dagger", "loss=q_mse", "dataset=default"][::order])
    assert (again.collection.beta, again.epoch_teacher_forcing) == (None, 50)
    assert (again.loss.name, again.dataset.dtype, again.student.name) == ("q_mse", "float32", "lstm")


def test_an_experiment_chooses_its_student_unless_one_is_typed() -> None:
    """``fast_gru`` alone is a GRU with the sizes of student/gru.yaml; ``student=lstm`` beats it."""
    gru = cfg_of("experiment=fast_gru").student
    assert gru == cfg_of("student=gru").student and gru.name == "gru"
    for typed in ("student=lstm", "distill.student.name=lstm", "distill.student=lstm"):
        assert cfg_of("experiment=fast_gru", typed).student == cfg_of("student=lstm").student


def test_a_student_named_in_the_body_begins_with_its_own_file(presets: Path) -> None:
    """``student: {name: gru}`` in a user's file has a GRU's sizes for what it leaves out, not the default MLP's."""
    mine = write(presets, "mine", "student: {name: gru, hidden_size: 8}\nloss: {name: kl}\n")
    student: Any = cfg_of(mine).student
    assert (student.name, student.hidden_size, student.hidden_dims, student.activation) == ("gru", 8, [], "relu")
    assert resolved(mine).choices["loss"].chosen == "experiment=mine"


def test_what_a_file_says_of_another_student_is_left_out_with_a_word(caplog: pytest.LogCaptureFixture) -> None:
    """RAPTOR's ``learn_initial_state`` means nothing to an MLP: dropped and named; the groups it reads stay."""
    caplog.set_level(logging.INFO)
    cfg = cfg_of("experiment=raptor", "student=mlp")
    assert cfg.student.name == "mlp" and cfg.student.obs_groups == ["deployable"]
    assert "student.learn_initial_state of experiment=raptor is no setting of student=mlp: left out" in caplog.text


def test_a_key_of_a_file_that_no_student_has_is_still_refused(presets: Path) -> None:
    """A misspelt key is an error as long as no other student was typed; a typed one always is."""
    mine = write(presets, "mine", "student: {hidden_dimms: [3]}\n")
    with pytest.raises(UserError, match="'hidden_dims'"):
        cfg_of(mine)
    with pytest.raises(UserError, match="learn_initial_state"):
        cfg_of("student=mlp", "student.learn_initial_state=true")


def test_an_auxiliary_loss_of_a_file_gives_way_to_the_typed_main_loss(
    presets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """``loss=kl`` with a file that adds kl to something else is kl once; the other terms stay."""
    caplog.set_level(logging.INFO)
    mine = write(presets, "mine", "loss: {name: mse, auxiliary: {kl: 0.5, value: 0.25}}\n")
    cfg = cfg_of(mine, "loss=kl")
    assert (cfg.loss.name, cfg.loss.auxiliary) == ("kl", {"value": 0.25})
    assert "loss.auxiliary.kl of experiment=mine" in caplog.text


def test_what_was_typed_as_the_file_has_it_keeps_the_files_settings_of_it() -> None:
    """``experiment=raptor student=gru loss=huber`` is ``experiment=raptor``: the choice is the same."""
    plain, typed = resolved("experiment=raptor"), resolved("experiment=raptor", "student=gru", "loss=huber")
    assert plain.cfg == typed.cfg
    assert typed.choices["student"].chosen.startswith("typed, and in experiment=raptor")


def test_who_drives_is_said_once(presets: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A typed ``teacher_student_mix`` beats a file's ``beta`` and the other way round; two typed ones are refused."""
    caplog.set_level(logging.INFO)
    beta = write(presets, "mine", "collection: {beta: {kind: linear, start: 1.0}}\n")
    cfg = cfg_of(beta, **{"collection.teacher_student_mix": 3})
    assert (cfg.collection.beta, cfg.collection.teacher_student_mix) == (None, 3)
    assert "--teacher_student_mix beats the collection.beta of experiment=mine" in caplog.text
    mix = write(presets, "other", "collection: {teacher_student_mix: 3}\n")
    cfg = cfg_of(mix, "distill.collection.beta={kind: constant, start: 1.0}")
    assert (cfg.collection.beta, cfg.collection.teacher_student_mix) == (ScheduleCfg("constant", 1.0), 0)
    assert cfg_of(mix, "schedule=linear").collection.teacher_student_mix == 0
    with pytest.raises(UserError, match="both set who acts"):
        cfg_of("schedule=linear", "distill.collection.teacher_student_mix=3")


def test_epochs_of_teacher_forcing_beside_a_schedule_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """``collection.beta`` says who drives: a typed ``--epoch_teacher_forcing`` changes nothing, and that is said."""
    cfg_of("schedule=linear", epoch_teacher_forcing=5)
    assert "--epoch_teacher_forcing 5 has no effect" in caplog.text
    caplog.clear()
    cfg_of("schedule=dagger", epoch_teacher_forcing=5)
    cfg_of("schedule=linear")
    assert not caplog.text


@BOTH_ORDERS
def test_typed_groups_beat_a_typed_experiment_at_a_resume_too(order: int) -> None:
    """``--resume experiment=fast loss=kl`` of an MSE run goes on with kl, and with the student of the run."""
    base = to_plain(cfg_of("student=gru", "student.hidden_size=8", "dataset=reservoir"))
    cfg = cfg_of(*["experiment=fast", "loss=kl"][::order], base=base)
    assert (cfg.loss.name, cfg.n_epochs, cfg.dataset.eviction) == ("kl", 300, "reservoir")
    assert cfg.student == cfg_of("student=gru", "student.hidden_size=8").student
    assert cfg_of("experiment=fast_gru", base=to_plain(cfg_of())).student == cfg_of("student=gru").student


def test_an_experiment_typed_at_a_resume_counts_though_it_says_the_default(presets: Path) -> None:
    """``n_epochs: 100`` of a file is a value like any other, and beats the resumed run's 50."""
    mine = write(presets, "mine", "n_epochs: 100\n")
    assert cfg_of(mine, base=to_plain(cfg_of("n_epochs=50"))).n_epochs == 100


@pytest.mark.parametrize(
    ("tokens", "line"),
    [
        ([], "student mlp (default), loss mse (default), schedule dagger (default), dataset default (default)"),
        (
            ["experiment=fast", "loss=kl"],
            "student mlp (default), loss kl (typed, huber_delta by experiment=fast), schedule dagger (default, "
            "epoch_teacher_forcing by experiment=fast), dataset default (default, chunk_steps and newest_epochs "
            "by experiment=fast)",
        ),
        (["student=lstm", "student.hidden_size=3"], "student lstm (typed), loss mse (default)"),
        (["experiment=fast_gru"], "student gru (experiment=fast_gru), loss mse (default), schedule"),
        (["distill.loss.name=kl", "dataset=half"], "loss kl (typed), schedule dagger (default), dataset half (typed)"),
        (["collection.beta={kind: cosine, start: 1}"], "schedule cosine (typed)"),
    ],
)
def test_each_choice_is_named_with_who_made_it(tokens: list[str], line: str) -> None:
    """One line names student, loss, schedule and dataset: typed, by an experiment, or the default."""
    assert line in resolved(*tokens).choices_line()


def test_a_resumed_run_names_the_choices_it_was_begun_with() -> None:
    """What is not typed again was chosen by the resumed run, under the name that it was chosen by."""
    first = resolved("schedule=linear", "student=gru", "dataset=half")
    base = to_plain(first.cfg) | {"choices": to_plain(first.choices)}
    line = resolved("loss=kl", base=yaml.safe_load(yaml.safe_dump(base))).choices_line()
    assert line == (
        "student gru (the resumed run), loss kl (typed), schedule linear (the resumed run), dataset half (the resumed "
        "run)"
    )


def test_interpolation_is_hydras(presets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """``${now:}``, ``${oc.env:}`` and other keys, typed or in a file or behind a flag, have the run's final values."""
    monkeypatch.setenv("LAB", "north")
    year = datetime.now().strftime("%Y")
    cfg = cfg_of("run_name=${now:%Y}_${oc.env:LAB}_s${seed}", "distill.learning_rate=${loss.huber_delta}", seed=7)
    assert (cfg.run_name, cfg.learning_rate) == (f"{year}_north_s7", 1.0)
    mine = write(presets, "mine", "run_name: n${n_epochs}\nnum_eval_episodes: ${distill.num_episodes}\n")
    cfg = cfg_of(mine, "n_epochs=9", num_episodes=3)
    assert (cfg.run_name, cfg.num_eval_episodes) == ("n9", 3)
    assert cfg_of(run_name="${student.name}").run_name == "mlp"


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("run_name=${sed}", "'run_name=${sed}': no key 'sed' to refer to. Did you mean 'seed'?"),
        ("run_name=${now:%Y", "cannot be read"),
        ("run_name=${nowhere:3}", "nowhere"),
        ("run_name=${run_name}", "run_name=${run_name}"),
        ("distill.n_epochs=${now:%A}", "'distill.n_epochs'"),
    ],
)
def test_what_cannot_be_interpolated_is_one_line(token: str, says: str) -> None:
    """A key that is not there, a resolver that is not there, a circle, a wrong type."""
    with pytest.raises(UserError) as caught:
        cfg_of(token)
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "token",
    [
        "collection.label_bound=1e-45",
        "collection.label_bound=1e-7",
        "learning_rate=1e-45",
        "loss.huber_delta=1e-44",
        "loss.min_std=1e-45",
        "loss.temperature=1e-45",
    ],
)
def test_numbers_that_float32_makes_nothing_of_are_refused(token: str) -> None:
    """A bound, a step size, a temperature must be more than 0 in float32 too."""
    with pytest.raises(UserError, match=r"it must be (at least|a finite number)"):
        cfg_of(token)


@pytest.mark.parametrize("token", ["distill.n_epochs=null", "distill.loss=null", "distill.student.hidden_dims=null"])
def test_fields_of_ours_that_are_not_optional_refuse_null(token: str) -> None:
    """Null is for switching terms of an environment off, and for fields that have a None."""
    with pytest.raises(UserError):
        cfg_of(token)
