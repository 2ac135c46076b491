"""A student that predicts what it does not see: a head for training alone, or an estimate that it reads."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from tensordict import TensorDict
from toy_env import LinearTeacher, RegulatorEnv

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.config.distillation_cfg import DistillationCfg, TermCfg
from foundation.config.validate import validate
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.deploy.description import Field
from foundation.export.bundle import make_bundle
from foundation.export.estimator import make_estimator_bundle
from foundation.export.formats import export
from foundation.learning.losses import LOSSES
from foundation.runs.offline import OfflineRunner
from foundation.runs.run_dir import RunDir
from foundation.runs.runner import DistillationRunner
from foundation.students import student_cfg_class

TERMS = (Field(name="speed", size=2, unit="m/s"), Field(name="mass", size=1, unit="kg"))


class HiddenEnv(RegulatorEnv):
    """The regulator, whose state is seen as a mixture; ``hidden`` is 100 times its state, and a number that is 5."""

    observation_terms: ClassVar = {"hidden": TERMS}

    def get_observations(self) -> TensorDict:
        mixed = self.state @ torch.tensor([[0.6, 0.8], [-0.8, 0.6]])
        hidden = torch.cat([100.0 * self.state, torch.full((self.num_envs, 1), 5.0)], dim=-1)
        groups = {"policy": self.state.clone(), "mixed": mixed, "hidden": hidden}
        groups["camera"] = torch.zeros(self.num_envs, 1, 4, 4)
        return TensorDict(groups, batch_size=[self.num_envs])


def config(student: str = "mlp", epochs: int = 6, **term) -> DistillationCfg:
    cfg = DistillationCfg(
        task="Toy", device="cpu", seed=1, n_epochs=epochs, epoch_teacher_forcing=1, num_episodes=32, learning_rate=1e-2,
        num_eval_episodes=16, final_eval_episodes=32, batch_size=32,
    )  # fmt: skip
    cfg.student = student_cfg_class(student)(name=student, obs_groups=["mixed"])
    cfg.teacher.obs_groups = ["policy"]
    cfg.loss.auxiliary = {"predict": TermCfg(**{"group": "hidden", "weight": 0.1, **term})}
    validate(cfg, LOSSES)
    return cfg


class Scalars:
    """Takes what a run logs."""

    def __init__(self):
        self.values: dict[str, list[float]] = {}

    def add_scalars(self, scalars: dict[str, float], step: int) -> None:
        for name, value in scalars.items():
            self.values.setdefault(name, []).append(value)

    def add_hparams(self, hparams: dict[str, object], metrics: dict[str, float]) -> None:
        """They are no scalars of a step."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Nothing is open."""


def make(path, cfg: DistillationCfg, writer=None) -> DistillationRunner:
    teacher = LinearTeacher(-0.8 * torch.eye(2))
    return DistillationRunner(HiddenEnv(8), teacher, cfg, RunDir(path), make_eval_env=HiddenEnv, writer=writer)


@pytest.mark.parametrize("feed", [False, True], ids=["head", "fed"])
@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_the_error_is_logged_by_name_and_unit_and_falls(tmp_path, student, feed):
    """Of each column in its own unit, on transitions not yet learned from; the actions do not suffer."""
    writer = Scalars()
    cfg = config(student, feed=feed)
    cfg.sequence_length = 4 if student == "gru" else None
    cfg.batch_size = 8 if student == "gru" else 32
    runner = make(tmp_path, cfg, writer)
    summary = runner.run()
    assert summary["normalized_score"] > 0.95
    errors = {name: values for name, values in writer.values.items() if name.startswith("held_out/predict_rmse/")}
    assert set(errors) == {f"held_out/predict_rmse/{name}" for name in ("speed_0 [m/s]", "speed_1 [m/s]", "mass [kg]")}
    first = -100.0 / 0.8 * runner.dataset.column("mean")[:2]  # the chunks of the first epoch
    for column, name in enumerate(("speed_0 [m/s]", "speed_1 [m/s]")):
        values = errors[f"held_out/predict_rmse/{name}"]
        # An untrained network agrees with the state by chance, and in part: the error is of the size of the spread.
        spread = float(first[..., column].std())
        assert values[0] > 0.5 * spread and values[-1] < 0.25 * spread
    assert errors["held_out/predict_rmse/mass [kg]"][-1] < 0.5
    stored = runner.dataset.column("estimate")[: runner.dataset.num_chunks]
    labels = runner.dataset.column("mean")[: runner.dataset.num_chunks]
    assert torch.allclose(stored[..., :2], labels / -0.8 * 100.0, rtol=1e-4, atol=1e-3)


def test_a_head_is_in_no_checkpoint_of_the_student_and_in_no_export(tmp_path):
    """Student and export of a run with a head have the layers of one without."""
    cfg = config(epochs=1)
    make(tmp_path / "head", cfg).run()
    plain = config(epochs=1)
    plain.loss.auxiliary = {}
    make(tmp_path / "plain", plain).run()
    read = [torch.load(tmp_path / name / "best_student.pt", weights_only=True) for name in ("head", "plain")]
    assert read[0]["model_state_dict"].keys() == read[1]["model_state_dict"].keys()
    bundles = [make_bundle(load_policy(tmp_path / n / "best_student.pt", Overrides())) for n in ("head", "plain")]
    kinds = [[operation.kind for operation in bundle.program.operations] for bundle in bundles]
    assert kinds[0] == kinds[1]


def test_a_fed_estimate_is_part_of_the_policy(tmp_path):
    """Its exports agree with it; the estimate that it gives is in the group's units; it can be rebuilt and resumed."""
    cfg = config("history", epochs=4, feed=True)
    cfg.sequence_length = 4
    cfg.batch_size = 8
    runner = make(tmp_path, cfg)
    runner.run()
    loaded = load_policy(tmp_path / "best_student.pt", Overrides())
    for written in export(make_bundle(loaded), tmp_path / "export", ["onnx", "torchscript", "npz"]):
        assert written.check is not None and written.check.difference is not None and written.check.difference < 1e-4
    env = HiddenEnv(256)
    obs = env.get_observations()
    output, _ = loaded.network.step(obs["mixed"], None)
    assert output.estimate is not None
    spread = obs["hidden"][:, :2].std()
    assert (output.estimate[:, :2] - obs["hidden"][:, :2]).square().mean().sqrt() < 0.3 * spread
    # The estimate is read: with another one the action is another.
    estimator = loaded.network.estimator
    before = output.mean
    with torch.no_grad():
        estimator.layers[-1].bias += 1.0
    assert (loaded.network.step(obs["mixed"], None)[0].mean - before).abs().max() > 1e-3


@pytest.mark.parametrize(("student", "feed"), [("gru", False), ("mlp", True)], ids=["head", "fed"])
def test_an_estimate_is_exported_by_choice(tmp_path, student, feed):
    """Every file gives the hidden state in its units; a student that predicts nothing has none to give."""
    cfg = config(student, epochs=4, feed=feed)
    cfg.sequence_length = 4 if student == "gru" else None
    cfg.batch_size = 8 if student == "gru" else 32
    runner = make(tmp_path, cfg)
    runner.run()
    loaded = load_policy(tmp_path / "final_student.pt", Overrides())
    bundle = make_estimator_bundle(loaded)
    assert [(field.name, field.size) for field in bundle.description.actions] == [("hidden", 3)]
    for written in export(bundle, tmp_path / "export", ["onnx", "torchscript", "npz"]):
        assert written.check is not None and written.check.difference is not None
    exported = Policy(tmp_path / "export" / "estimator.npz")
    env = HiddenEnv(64)
    obs = env.get_observations()
    estimate = torch.from_numpy(exported.step(obs["mixed"].numpy()))
    spread = obs["hidden"][:, :2].std()
    assert (estimate[:, :2] - obs["hidden"][:, :2]).square().mean().sqrt() < 0.3 * spread
    assert (estimate[:, 2] - 5.0).abs().max() < 2.0
    plain = config(epochs=1)
    plain.loss.auxiliary = {}
    make(tmp_path / "plain", plain).run()
    with pytest.raises(UserError, match=r"estimates nothing: --estimate is for students that were distilled with"):
        make_estimator_bundle(load_policy(tmp_path / "plain" / "final_student.pt", Overrides()))


@pytest.mark.parametrize("feed", [False, True], ids=["head", "fed"])
def test_resumed_and_offline(tmp_path, feed):
    """A resumed run is the whole one, bit for bit; a saved dataset holds the group, and is learned from."""
    whole = config(epochs=2, feed=feed)
    whole.dataset.save = str(tmp_path / "data")
    make(tmp_path / "whole", whole).run()
    first = make(tmp_path / "part", config(epochs=2, feed=feed))
    first.begin()
    first.run_epoch(0)
    second = make(tmp_path / "part", config(epochs=2, feed=feed))
    assert second.resume() == ""
    second.run()
    files = [torch.load(tmp_path / name / "final_student.pt", weights_only=True) for name in ("whole", "part")]
    weights = [file["model_state_dict"] for file in files]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    offline = config(epochs=10, feed=feed)
    offline.offline, offline.dataset.load, offline.student.obs_groups = True, str(tmp_path / "data"), None
    summary = OfflineRunner(offline, RunDir(tmp_path / "offline")).run()
    assert summary["action_rmse"] < 0.2
    assert [summary[f"predict_rmse/{column}"] < 20.0 for column in range(3)] == [True] * 3
    other = config(epochs=1, group="policy")
    other.offline, other.dataset.load, other.student.obs_groups = True, str(tmp_path / "data"), None
    with pytest.raises(UserError, match=r"group is 'policy' and the dataset .* holds 'hidden' to predict"):
        OfflineRunner(other, RunDir(tmp_path / "other"))


@pytest.mark.parametrize(
    ("term", "message"),
    [
        ({"group": "hiden"}, r"predict.group: the environment has no observation group 'hiden'. Did you mean 'hidden'"),
        ({"group": "camera"}, r"group 'camera' has shape \(1, 4, 4\): predict a flat one"),
        ({"group": None}, r"auxiliary.predict needs the observation group .*\{predict: \{group: NAME, weight: 0.1\}\}"),
    ],
)
def test_bad_input_is_one_line(tmp_path, term, message):
    """A group that is not there, is an image, or is not given."""
    with pytest.raises(UserError, match=message):
        make(tmp_path, config(epochs=1, **term))


def test_a_group_that_the_student_reads_is_refused(tmp_path):
    """There is nothing to predict; of a slice of its columns the others are, and offline the same holds."""
    with pytest.raises(UserError, match=r"predict.group: the student reads 'mixed' itself.*name a group that it does"):
        make(tmp_path / "a", config(epochs=1, group="mixed"))
    cfg = config(epochs=1, group="mixed")
    cfg.student.obs_slice = [0, 1]
    cfg.dataset.save = str(tmp_path / "data")
    make(tmp_path / "b", cfg).run()
    offline = config(epochs=1, group="mixed")
    offline.offline, offline.dataset.load, offline.student.obs_groups = True, str(tmp_path / "data"), None
    OfflineRunner(offline, RunDir(tmp_path / "c"))


class TermsEnv(HiddenEnv):
    """The same, where the numbers of ``mixed`` have the names of those of ``policy``."""

    observation_terms: ClassVar = {name: (Field(name="speed", size=2, unit="m/s"),) for name in ("mixed", "policy")}


def test_terms_that_the_student_reads_in_another_group_are_warned_of(tmp_path, caplog):
    """By their names: the group is another, what it says is not."""
    cfg = config(epochs=1, group="policy")
    teacher = LinearTeacher(-0.8 * torch.eye(2))
    DistillationRunner(TermsEnv(8), teacher, cfg, RunDir(tmp_path / "a"), make_eval_env=TermsEnv)
    assert "the student reads all terms of 'policy' in other groups" in caplog.text
    caplog.clear()
    make(tmp_path / "b", config(epochs=1))
    assert "reads all terms" not in caplog.text


def test_only_prediction_has_a_group():
    """Another term with a group is a slip."""
    cfg = config()
    cfg.loss.auxiliary = {"value": TermCfg(group="hidden")}
    with pytest.raises(UserError, match=r"auxiliary.value.group: only the term 'predict' has one"):
        validate(cfg, LOSSES)
