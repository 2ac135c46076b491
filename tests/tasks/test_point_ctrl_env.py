"""The environment's contract: episodes, seeds, exact resume, and no copy to the host."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from foundation.core.errors import UserError
from foundation.tasks.quadrotor.env_cfg import (
    QuadcopterPointCtrlEnvCfg,
    QuadcopterPointCtrlEnvCfg_PLAY,
    RewardsCfg,
    SceneCfg,
)
from foundation.tasks.quadrotor.quadrotor_env import QuadrotorEnv
from foundation.tasks.quadrotor.sim.quadrotor import ROTORS
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv


def _cfg(num_envs: int = 8, **changes) -> QuadcopterPointCtrlEnvCfg:
    return replace(QuadcopterPointCtrlEnvCfg(scene=SceneCfg(num_envs)), **changes)


def _hover(num_envs: int) -> torch.Tensor:
    return torch.full((num_envs, 4), 0.612)


def _roll(env: QuadcopterPointCtrlEnv, steps: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    out = []
    for _ in range(steps):
        obs, reward, dones, extras = env.step(torch.rand(env.num_envs, 4, generator=generator) * 2 - 1)
        out += [*obs.values(), reward, dones, extras["time_outs"], extras["episode_metrics"]["position_error"]]
        out += list(extras["log"].values())
    return [x.clone() for x in out]


@pytest.mark.parametrize(
    "change",
    [
        lambda saved: saved["tensors"].update(_action=torch.zeros(5056, dtype=torch.uint8)),
        lambda saved: saved["tensors"].update(_state=saved["tensors"]["_state"].double()),
        lambda saved: saved["observations"].update(policy=torch.zeros(4, 3)),
    ],
)
def test_a_state_of_other_shapes_is_refused(change):
    """It would be found at the first step, where nothing says whose it is."""
    env = QuadcopterPointCtrlEnv(_cfg(4))
    env.reset()
    saved = env.state_dict()
    change(saved)
    with pytest.raises(UserError, match="the saved environment state has another"):
        env.load_state_dict(saved)


def test_a_state_sets_nothing_but_the_state():
    """Whatever else a file lists, such as the name of another attribute, is left alone."""
    env = QuadcopterPointCtrlEnv(_cfg(4))
    env.reset()
    saved = env.state_dict()
    saved["tensors"] |= {"num_envs": torch.zeros(3), "step": torch.zeros(3)}
    saved["stats"]["row"] = 10**9
    env.load_state_dict(saved)
    assert env.num_envs == 4
    env.step(torch.zeros(4, 4))


def test_shapes_and_groups():
    """Three groups of the documented sizes, rewards and dones per environment."""
    env = QuadcopterPointCtrlEnv(_cfg())
    assert {k: tuple(v.shape) for k, v in env.get_observations().items()} == {
        "policy": (8, 26),
        "deployable": (8, 22),
        "l2f": (8, 22),
    }
    obs, reward, dones, extras = env.step(_hover(8))
    assert reward.shape == dones.shape == extras["time_outs"].shape == (8,)
    assert dones.dtype == torch.long
    assert env.max_episode_length == 500
    assert env.get_observations() is obs
    assert not reward.requires_grad


def test_the_same_seed_is_bit_identical_and_another_is_not():
    """120 random steps (with many resets) of two environments of one seed agree in every bit."""
    a, b = QuadcopterPointCtrlEnv(_cfg(seed=3)), QuadcopterPointCtrlEnv(_cfg(seed=3))
    assert all(torch.equal(x, y) for x, y in zip(_roll(a, 120), _roll(b, 120), strict=True))
    first = a.reset(11)["policy"].clone()
    assert torch.equal(first, b.reset(11)["policy"])
    assert not torch.equal(first, a.reset(12)["policy"])
    assert not torch.equal(first, QuadcopterPointCtrlEnv(_cfg(seed=4)).get_observations()["policy"])


def test_the_environment_neither_reads_nor_moves_the_global_generator():
    """Its numbers do not depend on torch's global seed, and drawing does not advance it."""
    torch.manual_seed(0)
    before = torch.get_rng_state()
    a = _roll(QuadcopterPointCtrlEnv(_cfg()), 40)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(99)
    assert all(torch.equal(x, y) for x, y in zip(a, _roll(QuadcopterPointCtrlEnv(_cfg()), 40), strict=True))


@pytest.mark.parametrize("vehicles", [None, "sampled:3"])
def test_a_saved_state_resumes_exactly(vehicles):
    """After loading into a fresh environment of another seed the next 90 steps are the same in every bit."""
    cfg = _cfg(vehicles=vehicles)
    cfg.observation_noise.deployable.position = 0.1
    env = QuadcopterPointCtrlEnv(cfg)
    _roll(env, 77)
    saved = env.state_dict()
    here = env.get_observations().clone()
    expected = _roll(env, 90, seed=1)
    other = QuadcopterPointCtrlEnv(replace(cfg, seed=1234))
    other.load_state_dict(saved)
    assert all(torch.equal(here[k], other.get_observations()[k]) for k in here.keys())  # noqa: SIM118
    assert all(torch.equal(x, y) for x, y in zip(expected, _roll(other, 90, seed=1), strict=True))


def test_a_saved_state_is_plain_and_of_its_size(tmp_path):
    """It goes through torch.save and weights_only loading; another number of environments is refused."""
    env = QuadcopterPointCtrlEnv(_cfg())
    torch.save(env.state_dict(), tmp_path / "env.pt")
    saved = torch.load(tmp_path / "env.pt", weights_only=True)
    env.load_state_dict(saved)
    with pytest.raises(UserError, match="--num_envs 8"):
        QuadcopterPointCtrlEnv(_cfg(4)).load_state_dict(saved)


def test_time_out_is_not_termination():
    """Holding still at the target from rest ends by time-out at step 500; falling ends by termination before."""
    cfg = _cfg()
    cfg.init.at_target = 1.0
    cfg.init.rotor_speed = (0.806, 0.806)
    env = QuadcopterPointCtrlEnv(cfg)
    hover = 2 * env.vehicles.hover_speed.view(-1, 1).expand(-1, 4) - 1
    actions = hover.clone()
    actions[0] = -1.0
    first_done = torch.zeros(8, dtype=torch.long)
    for step in range(1, 501):
        _, reward, dones, extras = env.step(actions)
        first_done = torch.where((first_done == 0) & dones.bool(), step, first_done)
        if step == first_done[0]:
            assert not extras["time_outs"][0]
            assert reward[0] < -98
            assert extras["log"]["Episode_Termination/velocity"] == 1.0
    assert 20 < first_done[0] < 100
    assert (first_done[1:] == 500).all()
    assert extras["time_outs"][1:].all()
    assert (reward[1:] > 1.4).all()
    assert extras["episode_metrics"]["position_error"][1:].max() < 0.01


def test_only_the_rows_that_ended_are_reset():
    """One environment thrown out of the box begins anew, with its buffers; the others fly on untouched."""
    env, twin = QuadcopterPointCtrlEnv(_cfg()), QuadcopterPointCtrlEnv(_cfg())
    for _ in range(3):
        env.step(_hover(8))
        twin.step(_hover(8))
    env.state[0, 2] = 1.5
    obs, _, dones, extras = env.step(_hover(8))
    expected, *_ = twin.step(_hover(8))
    assert dones.tolist() == [0, 0, 1, 0, 0, 0, 0, 0]
    assert not extras["time_outs"].any()
    assert env.episode_length_buf.tolist() == [4, 4, 0, 4, 4, 4, 4, 4]
    others = [0, 1, 3, 4, 5, 6, 7]
    assert torch.equal(obs["policy"][others], expected["policy"][others])
    assert env.state[:3, 2].abs().max() <= 0.5
    # The new episode's previous action is the command that holds its rotor speeds.
    torch.testing.assert_close(env.previous_action[:, 2], 2 * env.state[ROTORS][:, 2] - 1)


def test_fresh_starts_differ_between_rows_and_episodes():
    """Every episode starts elsewhere."""
    env = QuadcopterPointCtrlEnv(_cfg(64))
    starts = []
    for _ in range(40):
        env.state[0] = 2.0
        env.step(_hover(64))
        starts.append(env.state[:3].T.clone())
    positions = torch.cat(starts)
    away = positions[(positions != 0).any(1)]
    assert len(torch.unique(away, dim=0)) == len(away)


def test_the_last_seconds_error_is_the_mean_distance():
    """The metric is the mean of |p| over the last 100 steps of an episode, or all of a shorter one."""
    cfg = _cfg(6, episode_length_s=2.5)
    cfg.rewards = RewardsCfg(alive=0.0, position=-1.0, orientation=0.0, action_rate=0.0, termination=0.0)
    cfg.terminations.velocity = cfg.terminations.body_rate = 1e3
    cfg.terminations.position = 2.0
    cfg.init.rotor_speed = (0.8, 0.8)
    env = QuadcopterPointCtrlEnv(cfg)
    hover = 2 * env.vehicles.hover_speed.view(-1, 1).expand(-1, 4) - 1
    hover[:2] += 0.01
    history: list[list[float]] = [[] for _ in range(6)]
    lengths = set()
    for _ in range(600):
        _, reward, dones, extras = env.step(hover)
        for i in range(6):
            history[i].append(-reward[i].item())
            measured = extras["episode_metrics"]["position_error"][i].item()
            assert measured == pytest.approx(float(np.mean(history[i][-100:])), abs=1e-5)
            if dones[i]:
                lengths.add(len(history[i]))
                history[i] = []
    assert 250 in lengths
    assert min(lengths) < 100


def test_episode_rewards_are_logged_as_means_over_ended_episodes():
    """Episode_Reward/alive of an episode of L steps is 1.5 L / 5 s, and stands until the next one ends."""
    env = QuadcopterPointCtrlEnv(_cfg(4))
    for _ in range(9):
        env.step(_hover(4))
    env.state[0, 1] = 3.0
    *_, extras = env.step(_hover(4))
    log = extras["log"]
    assert log["Episode_Reward/alive"].item() == pytest.approx(1.5 * 10 / 5.0)
    assert log["Episode_Reward/termination"].item() == pytest.approx(-100 / 5.0)
    assert log["Episode_Termination/position"].item() == 1.0
    assert log["Metrics/episode_length"].item() == 10
    *_, extras = env.step(_hover(4))
    assert extras["log"]["Metrics/episode_length"].item() == 10


def test_random_episode_starts_are_respected():
    """RSL-RL assigns episode_length_buf at the start of training: the time-outs follow it."""
    env = QuadcopterPointCtrlEnv(_cfg(4))
    env.episode_length_buf = torch.tensor([499, 0, 498, 0])
    *_, dones, extras = env.step(_hover(4))
    assert dones.tolist() == [1, 0, 0, 0]
    assert extras["time_outs"].tolist() == [True, False, False, False]
    *_, dones, extras = env.step(_hover(4))
    assert dones.tolist() == [0, 0, 1, 0]


class _NoHostCopies(TorchDispatchMode):
    """Fails on any operation that would wait for the device."""

    forbidden = ("_local_scalar_dense", "nonzero", "masked_select", "_to_cpu", "equal.default", "unique")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(name in str(func) for name in self.forbidden):
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("vehicles", [None, "sampled:2"])
def test_a_step_copies_nothing_to_the_host(vehicles):
    """40 steps, with resets and a redrawn table, run without an operation that needs a value on the host."""
    env = QuadcopterPointCtrlEnv(_cfg(vehicles=vehicles))
    actions = -torch.ones(8, 4)
    with _NoHostCopies():
        for _ in range(40):
            env.step(actions)
    with pytest.raises(AssertionError, match="waits"), _NoHostCopies():
        env.state[0, 0].item()


def test_nan_actions_are_carried_not_hidden():
    """A NaN command makes its own environment's reward and observation NaN, and no other's."""
    env = QuadcopterPointCtrlEnv(_cfg(4))
    actions = _hover(4)
    actions[1, 2] = float("nan")
    obs, reward, *_ = env.step(actions)
    assert torch.isnan(reward).tolist() == [False, True, False, False]
    assert torch.isnan(obs["policy"]).any(1).tolist() == [False, True, False, False]


def test_noise_is_for_students_only():
    """Position noise of 0.1 m shows in the deployable group with that deviation, never in policy."""
    cfg = _cfg(4000)
    cfg.observation_noise.deployable.position = 0.1
    env = QuadcopterPointCtrlEnv(cfg)
    obs, *_ = env.step(_hover(4000))
    difference = obs["deployable"] - obs["policy"][:, :22]
    assert difference[:, :3].std().item() == pytest.approx(0.1, rel=0.05)
    assert (difference[:, 3:] == 0).all()
    clean = QuadcopterPointCtrlEnv(_cfg(4000))
    expected, *_ = clean.step(_hover(4000))
    assert torch.equal(obs["policy"], expected["policy"])


def test_vehicle_sets_scale_the_box_with_the_arms():
    """With vehicles given, environment i flies vehicle i % n within 20 arm lengths and 10 m/s and starts within 10."""
    env = QuadcopterPointCtrlEnv(_cfg(6, vehicles="sampled:3"))
    assert env.vehicle_index.tolist() == [0, 1, 2, 0, 1, 2]
    assert torch.equal(env.vehicles.mass[:3], env.vehicles.mass[3:])
    torch.testing.assert_close(env.limits[0], 20 * env.vehicles.arm_length)
    assert (env.limits[3:6] == 10.0).all() and (env.limits[6:] == 35.0).all()
    assert (env.state[:3].abs() <= 10 * env.vehicles.arm_length).all()


def test_disturbances_push():
    """A vehicle with a mean force drifts: hovering 0.2 s under 0.01 N on every axis it is pushed by F t^2 / 2m."""
    cfg = _cfg(2)
    cfg.init.at_target = 1.0
    cfg.init.rotor_speed = (0.806, 0.806)
    env = QuadcopterPointCtrlEnv(cfg)
    env.vehicles.force_mean += 0.01
    env._disturbed = True
    env.reset(0)
    hover = 2 * env.vehicles.hover_speed.view(-1, 1).expand(-1, 4) - 1
    for _ in range(20):
        env.step(hover)
    assert env.state[0].tolist() == pytest.approx([0.5 * 0.01 / 0.0306 * 0.04] * 2, rel=1e-3)


def test_decimation_repeats_the_action():
    """Two physics steps of 5 ms per action give 100 Hz control and nearly the same flight."""
    cfg = _cfg(decimation=2)
    cfg.sim.dt = 0.005
    env, plain = QuadcopterPointCtrlEnv(cfg), QuadcopterPointCtrlEnv(_cfg())
    assert env.max_episode_length == 500
    for _ in range(20):
        a, *_ = env.step(_hover(8))
        b, *_ = plain.step(_hover(8))
    torch.testing.assert_close(a["policy"], b["policy"], atol=1e-3, rtol=0)


@pytest.mark.parametrize("vehicles", [None, "sampled:5:1"])
def test_the_step_compiles_as_one_graph_and_does_the_same(monkeypatch, vehicles):
    """With cfg.compile the step is traced without a break and gives the eager step's numbers (no code generator here).

    Observations, rewards, dones, time-outs, metrics and logs of 120 random steps, with resets, disturbances and two
    integrator steps per action.
    """
    monkeypatch.setattr("foundation.accel.compiled.generate_code", lambda graph, tensors, options: graph)
    cfgs = [_cfg(compile=compiled, vehicles=vehicles, decimation=2, episode_length_s=0.8) for compiled in (True, False)]
    env, plain = (QuadcopterPointCtrlEnv(cfg) for cfg in cfgs)
    generator = torch.Generator().manual_seed(3)
    ended = 0
    for _ in range(120):
        actions = torch.rand(env.num_envs, 4, generator=generator) * 2.4 - 1.2
        (a, *rest), (b, *expected) = env.step(actions), plain.step(actions)
        for group in ("policy", "deployable", "l2f"):
            torch.testing.assert_close(a[group], b[group], atol=2e-4, rtol=0)
        ended += int(expected[1].sum())
        for ours, theirs in zip(rest[:2], expected[:2], strict=True):
            torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)
        for part in ("log", "episode_metrics"):
            torch.testing.assert_close(rest[2][part], expected[2][part], atol=2e-4, rtol=1e-5)
        assert torch.equal(rest[2]["time_outs"], expected[2]["time_outs"])
        assert torch.equal(env.episode_length_buf, plain.episode_length_buf)
    assert ended > 10
    assert env.state_dict()["stats"]["row"] == plain.state_dict()["stats"]["row"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["judge", "observe", "integrate"])
def test_a_subclass_with_a_method_of_its_own_is_not_compiled(method):
    """The compiled step is the built-in task's: another reward would be left out without a word."""
    own = type("Own", (QuadcopterPointCtrlEnv,), {method: lambda self, *args: None})
    with pytest.raises(UserError, match=f"Own has a {method} of its own: leave env.compile off"):
        own(_cfg(compile=True))


def test_a_task_that_names_no_terms_is_one_line():
    """The names of reward terms and limits are needed before anything is logged."""
    nameless = type("Nameless", (QuadrotorEnv,), dict.fromkeys(("lay_out", "judge", "observe", "solved_return")))
    with pytest.raises(UserError, match="Nameless has no log_names: set LogNames"):
        nameless(_cfg())


def test_the_compiled_step_gives_the_eager_steps_numbers():
    """The real compiler's code gives the eager step's observations and rewards over 30 random steps.

    However the caller lays out what it hands over: actions as columns or in double precision, a clock of int32.
    Without a C++ compiler the environment is refused instead.
    """
    if not any(shutil.which(name) for name in ("g++", "clang++", "c++")):
        with pytest.raises(UserError, match="compiler"):
            QuadcopterPointCtrlEnv(_cfg(compile=True))
        return
    env, plain = QuadcopterPointCtrlEnv(_cfg(compile=True)), QuadcopterPointCtrlEnv(_cfg())
    generator = torch.Generator().manual_seed(4)
    for step in range(30):
        actions = torch.rand(env.num_envs, 4, generator=generator) * 2.0 - 1.0
        if step == 10:
            for either in (env, plain):
                either.episode_length_buf = torch.arange(490, 490 + 2 * env.num_envs, 2, dtype=torch.int32)
        layout = (actions, actions.T.contiguous().T, actions.double())[step % 3]
        (a, reward, dones, _), (b, expected, ended, _) = env.step(layout), plain.step(actions)
        torch.testing.assert_close(a["policy"], b["policy"], atol=2e-5, rtol=0)
        torch.testing.assert_close(reward, expected, atol=2e-5, rtol=0)
        assert torch.equal(dones, ended)
    table = torch.rand(env.num_envs, 16, 11, generator=generator).permute(
        2, 1, 0
    )  # the sizes of a table, laid out in another way
    for drawn in (table, table[:, :3].contiguous(), table.contiguous()):
        torch.testing.assert_close(env.initial_states(drawn), plain.initial_states(drawn), atol=1e-6, rtol=1e-5)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    """Where there is no C++ compiler, one line says so before anything is compiled."""
    monkeypatch.setattr("foundation.accel.compiled.shutil.which", lambda name: None)
    with pytest.raises(UserError, match="C\\+\\+ compiler"):
        QuadcopterPointCtrlEnv(_cfg(compile=True))


def test_render_draws():
    """A frame of the asked size that is not blank, and that changes as vehicles move."""
    env = QuadcopterPointCtrlEnv(_cfg(), render_mode="rgb_array")
    env.cfg.viewer.resolution = (320, 240)
    first = env.render()
    for _ in range(10):
        env.step(-_hover(8))
    second = env.render()
    assert first.shape == (240, 320, 3)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 50
    assert (first != second).any()
    env.close()


def test_play_cfg():
    """The Play variant has few environments and no noise."""
    cfg = QuadcopterPointCtrlEnvCfg_PLAY()
    assert cfg.scene.num_envs == 64
    assert cfg.observation_noise == QuadcopterPointCtrlEnvCfg().observation_noise
    assert isinstance(cfg, QuadcopterPointCtrlEnvCfg)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: setattr(c.scene, "num_envs", 0), "num_envs"),
        (lambda c: setattr(c.sim, "dt", 0.0), "sim.dt"),
        (lambda c: setattr(c.sim, "dt", 0.06), "sim.dt"),
        (lambda c: setattr(c, "episode_length_s", -1.0), "episode_length_s"),
        (lambda c: setattr(c, "decimation", 0), "decimation"),
        (lambda c: setattr(c.init, "rotor_speed", (0.5, 0.1)), "rotor_speed"),
        (lambda c: setattr(c.init, "at_target", 2.0), "at_target"),
        (lambda c: setattr(c.terminations, "velocity", float("nan")), "velocity"),
        (lambda c: setattr(c.observation_noise.l2f, "velocity", -1.0), "velocity"),
        (lambda c: setattr(c.viewer, "num_envs", 0), "env.viewer.num_envs"),
        (lambda c: setattr(c, "vehicles", "/nowhere"), "nowhere"),
    ],
)
def test_bad_configurations_are_refused_in_one_line(change, words):
    """Each names its field."""
    cfg = _cfg()
    change(cfg)
    with pytest.raises(UserError, match=words) as info:
        QuadcopterPointCtrlEnv(cfg)
    assert "\n" not in str(info.value)


def test_cuda_that_is_not_there_is_refused(monkeypatch):
    """A CUDA device without CUDA is an error that says what to use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    cfg = _cfg()
    cfg.sim.device = "cuda:0"
    with pytest.raises(UserError, match="--device cpu"):
        QuadcopterPointCtrlEnv(cfg)


@pytest.mark.parametrize("name", ["scene", "sim", "rewards", "terminations", "init", "observation_noise"])
def test_a_part_of_the_config_that_is_null_is_named(name):
    """``env.rewards=null`` takes away what the task computes with: one line with the key and what to set instead."""
    with pytest.raises(UserError, match=rf"env.{name}=null: this task needs it; set .* env.{name}.<name>=VALUE"):
        QuadcopterPointCtrlEnv(_cfg(4, **{name: None}))


@pytest.mark.parametrize("name", ["deployable", "l2f"])
def test_a_noise_that_is_null_is_named(name):
    """A group's noise is switched off by zeros."""
    cfg = _cfg(4)
    setattr(cfg.observation_noise, name, None)
    with pytest.raises(UserError, match=rf"env.observation_noise.{name}=null"):
        QuadcopterPointCtrlEnv(cfg)
