"""MuJoCo's batched engine on a task of a user's own, ``examples/own_mujoco_task.py``."""

from __future__ import annotations

import importlib.util
import io
import sys
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch

from foundation.core.errors import UserError
from foundation.engines import engine_class, engine_names, select_engine
from foundation.engines.base import EnvCapabilities, LaunchRequest, MissingPackage, is_perturbable
from foundation.engines.checked_env import CheckedEnv
from foundation.tasks.mujoco import package

EXAMPLE = Path(__file__).resolve().parents[2] / "examples"
NUM_ENVS = 6
installed = pytest.mark.skipif(not package.mujoco_is_installed(), reason="needs mujoco")


@pytest.fixture
def hopper(monkeypatch) -> Any:
    """The example's module, whose id is taken out of gymnasium's registry again."""
    before = dict(gymnasium.registry)
    monkeypatch.syspath_prepend(str(EXAMPLE))
    sys.modules.pop("own_mujoco_task", None)
    yield importlib.import_module("own_mujoco_task")
    gymnasium.registry.clear()
    gymnasium.registry.update(before)
    sys.modules.pop("own_mujoco_task", None)


def make(hopper: Any, **options: Any) -> Any:
    cfg = hopper.HopperEnvCfg()
    cfg.scene.num_envs = NUM_ENVS
    for name, value in options.items():
        setattr(cfg.sim, name, value)
    return hopper.HopperEnv(cfg)


def roll(env: Any, count: int, seed: int = 0) -> list[tuple[torch.Tensor, ...]]:
    generator = torch.Generator().manual_seed(seed)
    flown = []
    for _ in range(count):
        obs, reward, dones, extras = env.step(2.0 * torch.rand(NUM_ENVS, 1, generator=generator) - 1.0)
        flown.append((obs["policy"], reward, dones, extras["time_outs"]))
    return flown


def equal(one: list[tuple[torch.Tensor, ...]], other: list[tuple[torch.Tensor, ...]]) -> bool:
    return all(torch.equal(a, b) for x, y in zip(one, other, strict=True) for a, b in zip(x, y, strict=True))


@installed
def test_every_transition_is_that_of_mujoco_s_own_step(hopper):
    """Each environment alone, by ``mj_step`` on its own model from its own state, gives the same bits and sensors."""
    import mujoco

    env = make(hopper)
    env.reset(3)
    assert set(env.sim.variant.tolist()) == {0, 1}
    spec = mujoco.mjtState.mjSTATE_FULLPHYSICS
    generator = torch.Generator().manual_seed(1)
    after = np.empty_like(env.sim.state[0])
    for _ in range(25):
        before = env.sim.state.copy()
        action = 2.0 * torch.rand(NUM_ENVS, 1, generator=generator) - 1.0
        env.step(action)
        for index in range(NUM_ENVS):
            model = env.sim.models[env.sim.variant[index]]
            data = mujoco.MjData(model)
            mujoco.mj_setState(model, data, before[index], spec)
            data.ctrl[:] = env.control(action)[index].double().numpy()
            for substep in range(env.cfg.decimation):
                mujoco.mj_step(model, data)
                assert np.array_equal(env.sim.sensors[index, substep], data.sensordata)
            mujoco.mj_getState(model, data, after, spec)
            assert np.array_equal(env.sim.state[index], after)
    masses = [model.body("box").mass[0] for model in env.sim.models]
    assert masses == [1.0, 1.5]
    env.close()


@installed
def test_results_do_not_depend_on_threads_and_repeat_with_the_seed(hopper):
    """Two threads give the bits of one; the same seed repeats them, another does not; time-outs come on time."""
    runs = []
    for threads, seed in ((1, 5), (2, 5), (1, 6)):
        env = make(hopper, num_threads=threads)
        env.reset(seed)
        runs.append(roll(env, 110))
        env.close()
        env.close()
    assert equal(runs[0], runs[1])
    assert not torch.equal(runs[0][0][0], runs[2][0][0])
    ended = torch.stack([step[2] for step in runs[0]])
    assert ended[99].bool().any() and not ended[:99].bool().all(1).any()  # 2 s of 0.02 s


@installed
def test_a_restored_environment_goes_on_bit_for_bit(hopper):
    """What a resumed run loads from a file, safely, continues as the environment that was saved did."""
    env = make(hopper)
    env.reset(4)
    roll(env, 90)
    file = io.BytesIO()
    torch.save(env.state_dict(), file)
    expected = roll(env, 40, seed=2)
    other = make(hopper)
    file.seek(0)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert equal(expected, roll(other, 40, seed=2))
    smaller = hopper.HopperEnvCfg()
    smaller.scene.num_envs = 2
    with pytest.raises(UserError, match="use --num_envs 6"):
        hopper.HopperEnv(smaller).load_state_dict(env.state_dict())


@installed
def test_perturbations_scale_every_variant_and_go_away_again(hopper):
    """With half of gravity a box falls slower; nominal again it steps as one that was never varied."""
    env = make(hopper)
    untouched = make(hopper)
    assert is_perturbable(env)
    falls = []
    for values in ({}, {"gravity": -50.0, "mass": 20.0}, {}):
        env.perturb(values)
        env.reset(1)
        env.step(torch.zeros(NUM_ENVS, 1))
        falls.append(env.qvel[:, 0].clone())
    untouched.reset(1)
    untouched.step(torch.zeros(NUM_ENVS, 1))
    # The leg pushes within the first step too, the same in both: what differs is the weight, g / 2 for 0.02 s.
    env.perturb({"gravity": -50.0, "mass": 20.0})
    assert [model.body("box").mass[0] for model in env.sim.models] == pytest.approx([1.2, 1.8])
    assert [model.opt.gravity[2] for model in env.sim.models] == pytest.approx([-4.905] * 2)
    assert (falls[1] > falls[0] + 0.05).all()
    assert torch.equal(falls[2], untouched.qvel[:, 0])
    with pytest.raises(UserError, match=r"mass=-100: a change of more than -100 %"):
        env.perturb({"mass": -100.0})


@installed
def test_an_action_that_is_not_a_number_stays_in_its_environment(hopper, tmp_path, monkeypatch):
    """It is seen in that environment's next observation; no other changes, and MuJoCo writes no file of warnings."""
    monkeypatch.chdir(tmp_path)
    spoiled, clean = make(hopper), make(hopper)
    for env, action in ((spoiled, float("nan")), (clean, 0.2)):
        env.reset(1)
        actions = torch.full((NUM_ENVS, 1), 0.2)
        actions[2] = action
        env.step(actions)
    rows = spoiled.get_observations()["policy"], clean.get_observations()["policy"]
    others = [0, 1, 3, 4, 5]
    assert rows[0][2].isnan().any()
    assert torch.equal(rows[0][others], rows[1][others])
    assert not list(tmp_path.iterdir())


@installed
def test_models_of_other_sizes_are_no_variants(hopper):
    """The number of the model and both sizes are named."""
    import mujoco

    from foundation.tasks.mujoco.simulation import BatchedSimulation

    models = [mujoco.MjModel.from_xml_string(text) for text in (hopper.MODEL, "<mujoco/>")]
    with pytest.raises(UserError, match=r"equal sizes: model 1 has \{'nq': 0.* model 0 \{'nq': 2"):
        BatchedSimulation(models, 2)
    with pytest.raises(UserError, match="at least one model"):
        BatchedSimulation([], 2)


@installed
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"scene": {"num_envs": 0}}, "env.scene.num_envs must be at least 1, it is 0"),
        ({"sim": {"dt": -1.0}}, "env.sim.dt must be positive"),
        ({"sim": {"num_threads": 0}}, "env.sim.num_threads must be at least 1"),
        ({"decimation": 0}, "env.decimation must be at least 1"),
        ({"viewer": None}, "env.viewer=null"),
    ],
)
def test_settings_that_no_simulation_has_are_one_line(hopper, values, message):
    """The key and its value are named."""
    cfg = hopper.HopperEnvCfg()
    for name, value in values.items():
        if isinstance(value, dict):
            for key, inner in value.items():
                setattr(getattr(cfg, name), key, inner)
        else:
            setattr(cfg, name, value)
    with pytest.raises(UserError, match=message):
        hopper.HopperEnv(cfg)


@installed
def test_pictures_show_environments_beside_one_another(hopper):
    """Two boxes are two: half a metre apart, in the colours asked for; what is shown moves with the state."""
    from foundation.tasks.mujoco.env import ViewerCfg
    from foundation.tasks.mujoco.picture import Picture

    env = make(hopper)
    viewer = ViewerCfg(resolution=(64, 48), azimuth=0.0, elevation=-10.0, distance=1.5, spacing=0.5)
    try:
        picture = Picture(env.model_to_draw(), viewer)
    except UserError as error:
        pytest.skip(str(error))
    red, blue = (1.0, 0.0, 0.0), (0.0, 0.0, 1.0)
    image = picture.draw(np.zeros((2, 2)), [red, blue]).astype(int)
    assert image.shape == (48, 64, 3)
    reds = np.argwhere(image[..., 0] > image[..., 2] + 60)
    blues = np.argwhere(image[..., 2] > image[..., 0] + 60)
    assert min(len(reds), len(blues)) > 20
    assert reds[:, 1].min() > blues[:, 1].max()  # seen along x, the world's left is the picture's left
    assert not np.array_equal(picture.draw(np.full((2, 2), 0.1), [red, blue]), image)
    picture.close()
    with pytest.raises(UserError, match=r"env.viewer.resolution must be at least 16 x 16"):
        Picture(env.model_to_draw(), ViewerCfg(resolution=(4, 4)))


@installed
def test_it_is_an_engine_that_auto_finds(hopper):
    """Its tasks are those with its entry point; the environment is one that the runners take as it is."""
    assert "mujoco" in engine_names()
    assert engine_class("mujoco").why_not("CartPole-v1") is not None
    chosen, _ = select_engine("Hopper-v0")
    assert chosen.name == "mujoco"
    engine = chosen()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        engine.set_common(env_cfg, num_envs=NUM_ENVS, seed=3, device="cpu")

    with engine.launch(LaunchRequest("Hopper-v0"), configure) as (env_cfg, agent_cfg):
        env = engine.make_env(env_cfg, agent_cfg)
        assert isinstance(env, CheckedEnv)
        assert EnvCapabilities.of(env).can_save_state and EnvCapabilities.of(env).step_dt == 0.02
        env.close()


def test_a_missing_package_is_one_line(monkeypatch):
    """Its tasks say what to install; another engine's task does not hear of it."""
    monkeypatch.setattr(package.importlib.util, "find_spec", lambda name: None)
    engine = engine_class("mujoco")
    assert isinstance(engine.why_not("Foundation-Velocity-Flat-Go1-v0"), MissingPackage)
    with pytest.raises(UserError, match=r"'mujoco' is not installed: pip install"):
        package.import_mujoco()
    assert engine.why_not("CartPole-v1") == "'CartPole-v1' has no 'mujoco_env_entry_point'"


def test_a_way_of_drawing_that_is_not_there_is_one_line(monkeypatch):
    """What MuJoCo's import fails at is said with the variable that chose it."""

    def fail(name: str) -> None:
        raise AttributeError("'NoneType' object has no attribute 'glGetError'")

    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    monkeypatch.setattr(package, "mujoco_is_installed", lambda: True)
    monkeypatch.setattr(package.importlib, "import_module", fail)
    with pytest.raises(UserError, match=r"^'mujoco' cannot be imported .*glGetError.*: unset MUJOCO_GL") as failure:
        package.import_mujoco()
    assert "\n" not in str(failure.value)
