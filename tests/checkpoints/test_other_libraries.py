"""Checkpoints that the real skrl, rl_games and Stable-Baselines3 write, through TeacherPolicyWrapper."""

from __future__ import annotations

import io
import json
import shutil
import sys
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

from foundation.checkpoints.initialise import initialise_student
from foundation.core.errors import UserError
from foundation.policies.distribution import Gaussian, ShapedActions, SquashedGaussian
from foundation.students import StudentPolicy
from foundation.teachers import TeacherPolicyWrapper

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from library_versions import LIBRARIES  # noqa: E402
from numpy_policy import check_layers  # noqa: E402
from written_once import of_library  # noqa: E402

SHIPPED = HERE / "data"
SKRL = ("plain", "normalized", "shared", "options", "squashed", "categorical")
CASES = {
    "skrl-1.4.3": (*SKRL, "before_1.3"),
    "skrl-2.1.1": (*SKRL, "states", "states_only"),
    "rl_games-1.6.5": (
        "normalized", "separate", "learned_sigma", "clipped", "wrapped", "deviation", "lstm", "gru_first", "gru_skips",
        "discrete",
    ),
    "stable-baselines3-2.9.2": (
        "ppo", "default", "a2c", "categorical", "dqn", "sac", "td3", "explores", "squashed", "normalized",
    ),
    "sb3-contrib-2.9.2": (
        "qrdqn", "qrdqn_default", "tqc", "tqc_sde", "sac_sde", "sac_sde_free", "sac_sde_tight", "sac_empty",
        "tqc_empty", "sac_sde_empty", "trpo", "ars",
        "ars_mlp", "ars_squashed", "ars_free", "ars_discrete", "recurrent_ppo", "recurrent_deep", "maskable_ppo",
        "crossq", "crossq_deep", "crossq_eps", "crossq_sde", "crossq_plain", "crossq_empty",
    ),
}  # fmt: skip
ALL = [(library, case) for library in LIBRARIES for case in CASES[library]]
KEPT = [(place.parent.name, place.name) for place in sorted(SHIPPED.glob("*/*"))]


def checkpoint_in(place: Path) -> Path:
    """Return the one checkpoint of a case's folder."""
    (found,) = [
        path for path in place.rglob("*") if path.suffix in (".pt", ".pth", ".zip") and "expected" not in path.name
    ]
    return found


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """Return a function of the folder of a library's checkpoints."""
    return partial(of_library, tmp_path_factory)


def compare(place: Path) -> TeacherPolicyWrapper:
    """Assert that a teacher answers as its library did, and its typed layers as it, and return it."""
    expected = torch.load(place / "expected.pt")
    teacher = TeacherPolicyWrapper(checkpoint_in(place))
    clip = teacher.clip_actions
    for step, obs in enumerate(expected["obs"]):
        output = teacher.output(obs)
        mean = output.mean if clip is None else output.mean.clamp(-clip, clip)
        assert (mean - expected["actions"][step]).abs().max() <= 1e-5
        for name in ("std", "value"):
            given = getattr(output, name)
            if name in expected and given is not None:
                assert torch.allclose(given, expected[name][step], rtol=1e-5, atol=1e-5), name
        if output.logits is not None:
            differ = output.logits - expected["logits"][step]
            assert (differ - differ[:, :1]).abs().max() <= 1e-5  # logits are known up to a number per row
        teacher.reset(expected["dones"][step])
    resets = torch.cat([torch.zeros_like(expected["dones"][:1]), expected["dones"][:-1]])
    whole = teacher.sequence(expected["obs"], None, resets)[0]
    mean = whole.mean if clip is None else whole.mean.clamp(-clip, clip)
    assert (mean - expected["actions"]).abs().max() <= 1e-5
    check_layers(teacher)
    return teacher


@pytest.mark.parametrize(("library", "case"), ALL, ids=lambda value: value)
def test_same_actions_as_the_library(written, library, case):
    """Over 20 steps with resets of part of 6 envs, what the library itself gives: actions, deviations and values."""
    expected = torch.load(written(library) / case / "expected.pt")
    assert len(expected["obs"]) == 20
    assert 0 < expected["dones"].float().mean() < 1
    compare(written(library) / case)


@pytest.mark.parametrize(("library", "case"), KEPT, ids=lambda value: value)
def test_same_actions_as_shipped(library, case):
    """Files that the libraries have written before give the actions that they gave then, with nothing installed."""
    compare(SHIPPED / library / case)


def alone(library: str, case: str, folder: Path) -> Path:
    """Copy a shipped checkpoint without the config beside it."""
    path = checkpoint_in(SHIPPED / library / case)
    shutil.copy(path, folder)
    return folder / path.name


@pytest.mark.parametrize(("library", "case"), KEPT, ids=lambda value: value)
def test_a_wrong_activation_would_be_seen(library, case):
    """The comparison can fail: with another activation, outputs differ by far more than the tolerance."""
    path = checkpoint_in(SHIPPED / library / case)
    obs = torch.load(SHIPPED / library / case / "expected.pt")["obs"][0]
    right, wrong = (TeacherPolicyWrapper(path, activation=name).output(obs) for name in (None, "softplus"))
    one, other = (right.mean, wrong.mean) if right.logits is None else (right.logits, wrong.logits)
    assert (one - other).abs().max() > 1e-2
    assert TeacherPolicyWrapper(path, activation="softplus").describe()["activation_from"] == "override"


@pytest.mark.parametrize(
    ("library", "case", "overrides"),
    [
        ("skrl-1.4.3", "normalized", {}),
        ("skrl-1.4.3", "shared", {"activation": "tanh"}),
        ("skrl-2.1.1", "states", {}),
        ("skrl-2.1.1", "categorical", {"activation": "selu", "distribution": "categorical"}),
        ("rl_games-1.6.5", "separate", {"activation": "tanh"}),
        ("rl_games-1.6.5", "gru_first", {"activation": "elu"}),
        ("rl_games-1.6.5", "discrete", {}),
    ],
)
def test_without_a_config(library, case, overrides, tmp_path, caplog):
    """Without a config, what the user says gives the same actions; an unknown activation is ELU, with a warning."""
    path = alone(library, case, tmp_path)
    expected = torch.load(SHIPPED / library / case / "expected.pt")
    teacher = TeacherPolicyWrapper(path, **overrides)
    for step, obs in enumerate(expected["obs"]):
        assert (teacher.act(obs) - expected["actions"][step]).abs().max() <= 1e-5
        teacher.reset(expected["dones"][step])
    assert ("taking 'elu'" in caplog.text) == ("activation" not in overrides)
    assert ("observations were clipped in its training is not known" in caplog.text) == library.startswith("rl_games")
    assert ("actions are not clipped" in caplog.text) == (library.startswith("rl_games") and case != "discrete")


def test_unknown_outputs_are_refused_without_a_config(tmp_path):
    """Logits cannot be told from means: without the config, or a word of the user, the file is refused."""
    with pytest.raises(UserError, match=r"params/agent\.yaml.*distribution"):
        TeacherPolicyWrapper(alone("skrl-2.1.1", "categorical", tmp_path))


@pytest.mark.parametrize(
    ("library", "case", "change", "message"),
    [
        ("skrl-2.1.1", "squashed", ("policy", {"output": "ACTIONS + 1"}), r"output 'ACTIONS \+ 1'"),
        ("skrl-2.1.1", "squashed", ("policy", {"class": "TabularMixin"}), r"model 'tabularmixin'"),
        ("skrl-1.4.3", "shared", ("network", {"activations": ["elu", "relu"]}), "several activations"),
        ("skrl-1.4.3", "shared", ("network", {"activations": "softsign"}), "softsign"),
        ("rl_games-1.6.5", "gru_first", ("rnn", {"before_mlp": False}), "fit together in 0 ways"),
        ("rl_games-1.6.5", "clipped", ("model", {"name": "continuous_a2c_tanh"}), "continuous_a2c_logstd"),
        ("rl_games-1.6.5", "clipped", ("continuous", {"mu_activation": "cosine"}), "cosine"),
    ],
)
def test_configs_that_are_not_understood(library, case, change, message, tmp_path):
    """What a config says and this project cannot do is refused, naming it."""
    shutil.copytree(SHIPPED / library / case, tmp_path, dirs_exist_ok=True)
    path = tmp_path / "params" / "agent.yaml"
    config = yaml.safe_load(path.read_text())
    params = config.get("params", {})
    places = {"policy": config.get("models", {}).get("policy"), "model": params.get("model")}
    places["network"] = (places["policy"] or {}).get("network", [None])[0]
    places["rnn"] = params.get("network", {}).get("rnn")
    places["continuous"] = params.get("network", {}).get("space", {}).get("continuous")
    places[change[0]].update(change[1])
    path.write_text(yaml.safe_dump(config))
    with pytest.raises(UserError, match=message):
        TeacherPolicyWrapper(checkpoint_in(tmp_path))


def test_draws_of_discrete_teachers():
    """Logits are drawn from by their softmax, repeatably; Q-values are not, because they do not say how to explore."""
    path = checkpoint_in(SHIPPED / "rl_games-1.6.5" / "discrete")
    teacher, obs = TeacherPolicyWrapper(path), torch.full((1, 7), 0.4)
    share = teacher.output(obs).logits.softmax(-1)[0]
    many = obs.expand(40_000, 7)
    first, again = (teacher.act(many, deterministic=False, generator=torch.Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(first, again) and first.shape == (40_000, 1) and teacher.num_actions == 1
    assert torch.allclose(torch.bincount(first.long().view(-1), minlength=3) / 40_000, share, atol=0.01)
    teacher = TeacherPolicyWrapper(checkpoint_in(SHIPPED / "stable-baselines3-2.9.2" / "dqn"))
    obs = torch.randn(50, 7)
    assert teacher.num_choices == 3 and torch.equal(teacher.act(obs, deterministic=False), teacher.act(obs))


def test_what_is_shown():
    """The description names the format, the version where the file says it, the normaliser and the recurrence."""
    shown = {
        (library, case): TeacherPolicyWrapper(checkpoint_in(SHIPPED / library / case)).describe()
        for library, case in KEPT
    }
    assert all(json.dumps(value) for value in shown.values())
    assert shown["skrl-1.4.3", "normalized"]["format"] == "skrl 1.x"
    assert shown["skrl-2.1.1", "states"]["format"] == "skrl 2.x"
    assert shown["skrl-2.1.1", "squashed"]["action_shape"].startswith("Sequential( (0): Tanh() (1): Factor(2.5)")
    assert shown["stable-baselines3-2.9.2", "ppo"]["format"] == "Stable-Baselines3 2.9.2"
    assert shown["stable-baselines3-2.9.2", "ppo"]["activation_from"] == "checkpoint"
    assert "0.333333" in shown["stable-baselines3-2.9.2", "ppo"]["action_shape"]
    assert shown["stable-baselines3-2.9.2", "dqn"]["distribution"] == "q-values"
    assert shown["rl_games-1.6.5", "gru_first"]["recurrence"] == "gru 9 x 1, before the dense layers"
    assert shown["rl_games-1.6.5", "clipped"]["normalizer"] == "(x - mean) / sqrt(var + 1e-05), clamped to ±5"
    assert shown["rl_games-1.6.5", "clipped"]["action_shape"].endswith("then from ±1 to [-2, 2]")


def test_a_student_cannot_start_from_them():
    """Their normalisers are of another kind, so that a student is not started from their weights; one line says so."""
    with pytest.raises(UserError, match="cannot start a student"):
        initialise_student(StudentPolicy(7, 2, (12, 10)), checkpoint_in(SHIPPED / "skrl-1.4.3" / "normalized"))


def test_draws_of_scaled_actions():
    """Draws of squashed and scaled actions are those of the same Gaussian, squashed and scaled by hand."""
    raw, low, high = torch.tensor([[0.3, -0.8, -1.0, -0.5]]), torch.tensor([-2.0, 0.0]), torch.tensor([1.0, 0.5])
    shaped = ShapedActions(SquashedGaussian(), None, None, (high - low) / 2, (high + low) / 2)
    mean, std = shaped(raw.expand(40_000, 4))
    drawn = shaped.sample(mean, std, torch.Generator().manual_seed(1))
    noise = torch.randn(40_000, 2, generator=torch.Generator().manual_seed(2))
    by_hand = low + (high - low) * ((raw[:, :2] + raw[:, 2:].exp() * noise).tanh() + 1) / 2
    for share in (0.05, 0.25, 0.5, 0.75, 0.95):
        assert torch.allclose(drawn.quantile(share, dim=0), by_hand.quantile(share, dim=0), atol=0.02)
    clipped = ShapedActions(Gaussian(torch.ones(2)), clip=(low, high))
    drawn = clipped.sample(*clipped(torch.zeros(1000, 2)), None)
    assert bool(((drawn >= low) & (drawn <= high)).all()) and (drawn == low).any() and (drawn == high).any()


@pytest.mark.parametrize(
    ("case", "named"),
    [("own_features", "features by 'Clamped'"), ("rows", r"actions of shape \[2, 2\]")],
)
def test_what_sb3_contrib_writes_and_is_not_read_is_named(written, case, named):
    """A step of one's own before the network and rows of actions are named; none is told to be corrupt."""
    with pytest.raises(UserError, match=named) as refusal:
        TeacherPolicyWrapper(checkpoint_in(written("sb3-contrib-2.9.2") / case), strict=False)
    assert "corrupt" not in str(refusal.value)


def _changed_crossq(path: Path, name: str, change) -> None:
    with zipfile.ZipFile(path) as archive:
        members = {member: archive.read(member) for member in archive.namelist()}
    weights = torch.load(io.BytesIO(members["policy.pth"]), weights_only=True)
    data = json.loads(members["data"])
    if name == "batch_norm_eps":
        data["policy_kwargs"][name] = change
    elif change is None:
        del weights[f"actor.{name}"]
    else:
        weights[f"actor.{name}"] = change
    stream = io.BytesIO()
    torch.save(weights, stream)
    members |= {"policy.pth": stream.getvalue(), "data": json.dumps(data).encode()}
    with zipfile.ZipFile(path, "w") as archive:
        for member, content in members.items():
            archive.writestr(member, content)


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("latent_pi.0.ra_var", None, r"lacks 'latent_pi\.0\.ra_var'"),
        ("latent_pi.1.bias", None, r"lacks 'latent_pi\.1\.bias'"),
        ("latent_pi.3.ra_var", torch.full((8,), -1.0), "does not fit"),
        ("latent_pi.3.scale", torch.ones(3), "does not fit"),
        ("latent_pi.1.bias", torch.ones(3), "does not fit"),
        ("latent_pi.9.weight", torch.ones(3, 3), "has layers beside"),
        ("batch_norm_eps", -1.0, "batch_norm_eps=-1"),
    ],
)
def test_a_normalised_layer_of_crossq_that_is_damaged(written, name, change, says, tmp_path):
    """What is missing, of another size or below zero is one line."""
    path = tmp_path / "model.zip"
    shutil.copy(checkpoint_in(written("sb3-contrib-2.9.2") / "crossq"), path)
    _changed_crossq(path, name, change)
    with pytest.raises(UserError, match=says):
        TeacherPolicyWrapper(path)


def test_a_value_on_the_actors_memory_is_left_out(written):
    """RecurrentPPO with one memory for both is read, without its value."""
    teacher = compare(written("sb3-contrib-2.9.2") / "recurrent_shared")
    assert not teacher.has_value


@pytest.mark.parametrize(
    ("without", "says"),
    [
        (("value_net.", "mlp_extractor.value_net."), "it lacks value_net.* and mlp_extractor.value_net.* of a critic"),
        (("value_net.",), "it lacks value_net.* of a critic"),
        (("mlp_extractor.value_net.",), "it lacks mlp_extractor.value_net.* of a critic"),
    ],
)
@pytest.mark.parametrize(
    ("library", "case"),
    [
        ("stable-baselines3-2.9.2", "ppo"),
        ("stable-baselines3-2.9.2", "normalized"),
        ("sb3-contrib-2.9.2", "recurrent_deep"),
    ],
)
def test_a_critic_that_was_left_out_is_named_and_the_policy_read(library, case, without, says, tmp_path, caplog):
    """The same actions as with it; the file is not called corrupt."""
    whole = checkpoint_in(SHIPPED / library / case)
    for name in SHIPPED.joinpath(library, case).glob("model_vecnormalize.*"):
        shutil.copy(name, tmp_path)
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / whole.name, "w") as stripped:
        for name in archive.namelist():
            content = archive.read(name)
            if name == "policy.pth":
                weights = torch.load(io.BytesIO(content), weights_only=True)
                file = io.BytesIO()
                torch.save({key: value for key, value in weights.items() if not key.startswith(without)}, file)
                content = file.getvalue()
            stripped.writestr(name, content)
    with caplog.at_level("INFO"):
        teacher = TeacherPolicyWrapper(tmp_path / whole.name)
    assert says in caplog.text and "corrupt" not in caplog.text
    assert not teacher.has_value
    obs = torch.randn(5, 3, 7)
    assert torch.equal(teacher.sequence(obs)[0].mean, TeacherPolicyWrapper(whole).sequence(obs)[0].mean)


@pytest.mark.parametrize("case", ["sac_sde", "tqc_sde"])
def test_gsde_gives_no_deviation(written, case):
    """With gSDE the mean alone is read, and the teacher says that it has no deviation."""
    assert not TeacherPolicyWrapper(checkpoint_in(written("sb3-contrib-2.9.2") / case)).has_std


def test_weights_of_an_old_torch_are_named(tmp_path):
    """Weights that torch < 1.6 wrote inside of the archive are told so, not that they are no checkpoint."""
    path = tmp_path / "old.zip"
    shutil.copy(checkpoint_in(SHIPPED / "stable-baselines3-2.9.2" / "ppo"), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    stream = io.BytesIO()
    weights = torch.load(io.BytesIO(members["policy.pth"]), weights_only=True)
    torch.save(weights, stream, _use_new_zipfile_serialization=False)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (members | {"policy.pth": stream.getvalue()}).items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"older than 1\.6"):
        TeacherPolicyWrapper(path)
