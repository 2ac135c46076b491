"""RSL-RL's releases behind one set of handles."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from rsl_rl_versions import VERSIONS, run_with

from foundation.config.agent_cfg import DistillationRunnerCfg, OnPolicyRunnerCfg
from foundation.core.errors import UserError
from foundation.ppo.train_run import check_agent_cfg
from foundation.ppo.versions import translate

PROBE = Path(__file__).with_name("version_probe.py")


@pytest.fixture(scope="module", params=VERSIONS)
def seen(request, tmp_path_factory):
    """What the probe saw with one release."""
    folder = tmp_path_factory.mktemp(request.param)
    done = run_with(request.param, PROBE, folder / "runs", cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    return {"asked": request.param, **json.loads(done.stdout)}


def test_release_is_recognised(seen):
    """The process runs the release that was asked for, and its layout is told from its modules."""
    layouts = {"3": "policy", "4": "stochastic", "5": "distribution"}
    assert (seen["version"], seen["layout"]) == (seen["asked"], layouts[seen["asked"][0]])


def test_ppo_saves_and_resumes(seen):
    """Two iterations, save, resume: counter, Adam's step count and actions continue where they were."""
    ppo = seen["ppo"]
    assert ppo["iterations"] == [0, 1, 2]
    assert ppo["resumed"] and ppo["start"] == 2 and ppo["iter"] == 1
    before, loaded, after = ppo["steps"]
    assert before == loaded == [40] and after == [60]  # 5 epochs x 4 minibatches x iterations
    assert ppo["same"] == 0.0
    assert ppo["infos"] == {"note": "kept"}
    assert {"model_0.pt", "model_1.pt"} <= set(ppo["files"])


def test_inference_policy_is_the_checkpoint_with_its_normaliser(seen):
    """The policy callable equals the network computed by hand from the checkpoint's tensors."""
    assert seen["ppo"]["hand"] < 1e-5


def test_config_is_left_alone(seen):
    """Building and running a runner does not change the caller's config."""
    assert seen["ppo"]["unchanged"]


def test_stock_distillation_runs_and_resumes(seen):
    """A distillation config runs RSL-RL's DistillationRunner on a PPO checkpoint, whose policy stays as it was."""
    distillation = seen["distillation"]
    assert distillation["runner"] == "DistillationRunner"
    assert distillation["resumes"] == [False, True]
    assert distillation["teacher_off"] < 1e-5
    assert distillation["start"] == 2 and distillation["same"] == 0.0


def test_recurrent_policy(seen):
    """A recurrent policy remembers, forgets on reset, and is evaluated without disturbing training."""
    assert seen["recurrent"] == {"remembers": True, "forgets": True}


def test_isaaclab_configs(seen):
    """Isaac Lab's configs of either layout give the networks that they ask for."""
    assert seen["isaaclab_configs"]["old"] == [0.7, [16, 5], True]
    assert seen["isaaclab_configs"]["new"] == [0.7, [16, 3], False]


def test_init_output(seen):
    """An actor whose last layer starts at a given action takes it before any training."""
    assert seen["init_output"] < 1e-6


def test_min_std(seen):
    """The standard deviation is lifted to its floor, in either parameterisation, and left alone without one."""
    scalar, logarithm, free = seen["min_std"]
    assert abs(scalar - 0.7) < 1e-6 and abs(logarithm - 0.7) < 1e-5 and free < 0.6


def test_nan_stops_training(seen):
    """NaN rewards end the run with one line, and the files of good iterations are all that is there."""
    message, files = seen["nan"]
    assert "NaN" in message and "\n" not in message
    assert files == ["model_0.pt"]


def test_errors_are_one_line(seen):
    """A misspelt key, group or runner, and checkpoints that are missing or of other sizes, are told in one line."""
    errors = seen["errors"]
    assert all(message and "\n" not in message for message in errors.values()), errors
    assert "learnign_rate" in errors["key"] and "learning_rate" in errors["key"].replace("learnign_rate", "")
    assert "polcy" in errors["group"] and "'policy'" in errors["group"]
    assert "'OnPolicyRunner'" in errors["runner"]
    assert "ok.pt" in errors["sizes"] and "no.pt" in errors["missing"]


def test_translation_between_layouts_keeps_what_matters():
    """Writing a config for 3.x and reading that as Isaac Lab's old layout for 5.x gives the same networks."""
    for cfg in (OnPolicyRunnerCfg(), DistillationRunnerCfg()):
        before = copy.deepcopy(cfg)
        direct = translate(cfg, "distribution")
        detour = translate(translate(cfg, "policy"), "distribution")
        names = ("actor", "critic") if "actor" in direct else ("student",)
        assert [detour[n] for n in names] == [direct[n] for n in names]
        assert detour["obs_groups"] == direct["obs_groups"]
        assert cfg == before


def test_a_models_settings_that_are_null_are_left_out():
    """What mjlab's configs state of every model, memory of size 256 and an encoder of null, is not for an MLP."""
    layers = {"class_name": "MLPModel", "hidden_dims": (64, 64), "activation": "elu", "obs_normalization": False}
    idle = {"cnn_cfg": None, "rnn_type": None, "rnn_hidden_dim": 256, "rnn_num_layers": 1}
    critic = {**layers, **idle, "distribution_cfg": None}
    actor = {**critic, "class_name": "RNNModel", "rnn_type": "gru", "distribution_cfg": {"class_name": "Own"}}
    cfg = {"class_name": "OnPolicyRunner", "algorithm": {}, "obs_groups": {}, "actor": actor, "critic": critic}
    models = translate(cfg, "distribution")
    assert models["critic"] == {**layers, "distribution_cfg": None}
    assert (models["actor"]["rnn_hidden_dim"], models["actor"]["rnn_num_layers"]) == (256, 1)
    assert "cnn_cfg" not in models["actor"]


def test_config_without_networks_is_refused():
    """A config that has neither models nor a policy says what it lacks."""
    with pytest.raises(UserError, match="'actor' and 'critic'"):
        translate({"class_name": "OnPolicyRunner", "algorithm": {}}, "distribution")


@pytest.mark.parametrize("layout", ["stochastic", "distribution"])
def test_a_deterministic_student_is_refused_where_rsl_rls_runner_needs_noise(layout):
    """agent.student.distribution_cfg=null is one line: RSL-RL's DistillationRunner reads the student's deviation."""
    cfg = DistillationRunnerCfg()
    assert translate(cfg, layout)
    cfg.student.distribution_cfg = None
    with pytest.raises(UserError, match="DistillationRunner needs a student with a distribution"):
        translate(cfg, layout)


def test_an_agent_without_algorithm_is_named() -> None:
    """``agent.algorithm=null``: the key, and what to set instead."""
    cfg = OnPolicyRunnerCfg()
    cfg.algorithm = None  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(UserError, match=r"agent.algorithm=null: training needs it; set .*agent.algorithm.<name>=VALUE"):
        check_agent_cfg(cfg)  # pyright: ignore[reportArgumentType]
