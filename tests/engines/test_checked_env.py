"""A user's own environment at the boundary: RSL-RL's contract suffices, and what breaks it is named in one line."""

from __future__ import annotations

import dataclasses
import logging
import math
import re
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from rsl_rl.env import VecEnv
from tensordict import TensorDict

from foundation.config.agent_cfg import AgentDict
from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities, LaunchRequest, VideoRequest
from foundation.engines.checked_env import CheckedEnv
from foundation.engines.torch import TorchEngine
from foundation.engines.video import VideoRecorder


class BareEnv(VecEnv):
    """RSL-RL's abstract methods and no more: a random walk of 5 steps, drawn from torch's own generator."""

    def __init__(self, num_envs: int = 3):
        self.num_envs = num_envs
        self.num_actions = 2
        self.max_episode_length = 5
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long)
        self.device = "cpu"
        self.cfg = {}
        self.state = torch.rand(num_envs, 2)

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": self.state.clone()}, batch_size=[self.num_envs])

    def step(self, actions):
        self.state = self.state + actions
        self.episode_length_buf = self.episode_length_buf + 1
        dones = self.ended()
        self.state = torch.where(dones[:, None], torch.rand(self.num_envs, 2), self.state)
        self.episode_length_buf = self.episode_length_buf * ~dones
        return self.get_observations(), self.state.sum(1), dones, {"time_outs": dones}

    def ended(self):
        return self.episode_length_buf >= self.max_episode_length


class BeyondEnv(BareEnv):
    """Ends where the count is above the limit."""

    def ended(self):
        return self.episode_length_buf > self.max_episode_length


class EqualEnv(BareEnv):
    """Ends where the count is the limit exactly."""

    def ended(self):
        return self.episode_length_buf == self.max_episode_length


@pytest.mark.parametrize("cls", [BareEnv, BeyondEnv, EqualEnv])
def test_an_environment_without_reset_is_reset_by_its_time_limit(cls, caplog):
    """Every episode begins anew, the same seed gives the same states, another seed others; one line says how."""
    CheckedEnv._told.clear()
    env = CheckedEnv(cls())
    with caplog.at_level(logging.WARNING, "foundation"):
        env.step(torch.ones(3, 2))
        first = env.reset(7)["policy"].clone()
        assert (env.episode_length_buf == 0).all()
        assert (first < 1.0).all()
        env.step(torch.ones(3, 2))
        again = env.reset(7)["policy"].clone()
        other = env.reset(8)["policy"].clone()
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len(caplog.records) == 1
    assert f"{cls.__name__} has no reset(seed)" in caplog.text
    env.close()


def test_an_environment_that_cannot_be_reset_at_all_is_told_what_to_write():
    """Where episode_length_buf ends nothing, reset(seed) is asked for."""

    class EndlessEnv(BareEnv):
        def ended(self):
            return torch.zeros(self.num_envs, dtype=torch.bool)

    with pytest.raises(UserError, match=r"EndlessEnv has no reset\(seed\).*write reset\(seed\) -> TensorDict"):
        CheckedEnv(EndlessEnv()).reset(0)


def _with_step(change):
    class OddEnv(BareEnv):
        def step(self, actions):
            return change(*super().step(actions))

    return OddEnv()


def _as(obs: TensorDict, dtype: torch.dtype) -> TensorDict:
    return TensorDict({"policy": obs["policy"].to(dtype)}, batch_size=obs.batch_size)


def _with(obs: TensorDict, policy: object) -> TensorDict:
    return TensorDict({"policy": policy}, batch_size=obs.batch_size)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda o, r, d, e: (o, None, r, d, e), r"a tuple of 5 .*expected \(TensorDict, rewards, dones, extras\), or"),
        (lambda o, r, d, e: (o, r, d.float(), d.float(), e), r"a tuple of 5 .*terminated and truncated of .*bool"),
        (lambda o, r, d, e: (o, r, d, d, None), "a tuple of 5"),
        (lambda o, r, d, e: (o, r, d), "a tuple of 3"),
        (lambda o, r, d, e: None, "returned None"),
        (lambda o, r, d, e: (o, r[:, None].expand(3, 2), d, e), r"rewards of .*\(3, 2\); expected .*\(3,\)"),
        (lambda o, r, d, e: (o, r[None], d, e), r"rewards of a tensor of shape \(1, 3\)"),
        (lambda o, r, d, e: (o, r.mean(), d, e), r"rewards of a tensor of shape \(\)"),
        (lambda o, r, d, e: (o, r.numpy(), d, e), "rewards of a ndarray"),
        (lambda o, r, d, e: (o, r, d[:2], e), r"dones of a tensor of shape \(2,\)"),
        (lambda o, r, d, e: (o, r, d, [e]), "extras of a list of 1"),
        (lambda o, r, d, e: (o, r, d, {"time_outs": d[:2]}), r"extras\['time_outs'\] of .*\(2,\)"),
        (lambda o, r, d, e: (o, r, d, {"episode_metrics": {"x": 1.0}}), r"episode_metrics'\]\['x'\] of a float"),
        (lambda o, r, d, e: ({"policy": None}, r, d, e), "a dict; expected a TensorDict .*got 'policy': None"),
        (lambda o, r, d, e: ({"policy": o["policy"].numpy()}, r, d, e), "got 'policy': a ndarray"),
        (lambda o, r, d, e: ({"policy": o["policy"][:2]}, r, d, e), r"got 'policy': a tensor of shape \(2, 2\)"),
        (lambda o, r, d, e: ({}, r, d, e), "a dict; expected a TensorDict"),
        (lambda o, r, d, e: (TensorDict({"policy": r}, batch_size=[3]), r, d, e), r"'policy' of .*shape \(3,\)"),
        (lambda o, r, d, e: (o["policy"], r, d, {"observations": {"policy": o["policy"] + 1}}), "a tensor of shape"),
        (lambda o, r, d, e: (o["policy"], r, d, e), r"expected a TensorDict.*TensorDict\(\{'policy': obs\}"),
        (
            lambda o, r, d, e: (TensorDict({"policy": o["policy"][:2]}, batch_size=[]), r, d, e),
            r"batch_size \[\]; expected batch_size \[3\]",
        ),
        (lambda o, r, d, e: (o, r + 0j, d, e), r"rewards of torch.complex64; expected floating point"),
        (lambda o, r, d, e: (o, r.to("meta"), d, e), "rewards on meta; expected them on the environment's device, cpu"),
        (lambda o, r, d, e: (o, r, d.to("meta"), e), "dones on meta"),
        (lambda o, r, d, e: (o, r, d + 0.5, e), "dones of other values than 0 and 1"),
        (lambda o, r, d, e: (o, r, d * torch.nan, e), "dones of other values than 0 and 1"),
        (lambda o, r, d, e: (o, r, d, {"time_outs": d + 2}), r"extras\['time_outs'\] of other values"),
        (lambda o, r, d, e: (o, r, d, {"log": [1.0]}), r"extras\['log'\] of a list of 1 .*expected a dictionary"),
        (lambda o, r, d, e: (o, r, d, {"log": None}), r"extras\['log'\] of None"),
        (lambda o, r, d, e: (o, r, d, {"log": {"height": "high"}}), r"extras\['log'\]\['height'\] of a str"),
        (lambda o, r, d, e: (o, r, d, {"episode": {"height": None}}), r"extras\['episode'\]\['height'\] of None"),
        (
            lambda o, r, d, e: (_as(o, torch.float64), r, d, e),
            r"'policy' of torch.float64; .*float32: policy.float\(\)",
        ),
        (lambda o, r, d, e: (_as(o, torch.float16), r, d, e), "'policy' of torch.float16"),
        (lambda o, r, d, e: (TensorDict({}, batch_size=[3]), r, d, e), "a TensorDict without groups"),
        (lambda o, r, d, e: (_with(o, torch.zeros(3, 0)), r, d, e), r"'policy' of a tensor of shape \(3, 0\)"),
        (lambda o, r, d, e: (_with(o, o), r, d, e), "'policy' of a TensorDict; expected a tensor"),
        (lambda o, r, d, e: (_with(o, "seen"), r, d, e), "'policy' of .*; expected a tensor"),
        (
            lambda o, r, d, e: (_with(o, o["policy"].to_sparse()), r, d, e),
            r"sparse tensor; expected .*policy.to_dense\(\)",
        ),
        (lambda o, r, d, e: (o, r.to_sparse(), d, e), "rewards as a sparse tensor"),
        (lambda o, r, d, e: (o, r, d + 0j, e), "dones of torch.complex64"),
        (
            lambda o, r, d, e: (o, r, d, {"log": {"height": torch.zeros(0)}}),
            r"\['height'\] of a tensor of shape \(0,\)",
        ),
        (lambda o, r, d, e: (o, r, d, {"log": {3: 1.0}}), r"extras\['log'\] with the key 3; expected names as keys"),
        (lambda o, r, d, e: (o, r, d, {"episode_metrics": {3: r}}), r"extras\['episode_metrics'\] with the key 3"),
        (lambda o, r, d, e: (o, r, d, {"episode_metrics": {"x": r + 0j}}), r"\['x'\] of torch.complex64"),
        (lambda o, r, d, e: (_as(o, torch.complex64), r, d, e), "'policy' of torch.complex64"),
    ],
)
def test_what_step_returns_is_checked_once_and_named(change, words):
    """Class, method, what was returned and what is expected, in one line."""
    with pytest.raises(UserError, match=words) as caught:
        CheckedEnv(_with_step(change)).step(torch.zeros(3, 2))
    assert str(caught.value).startswith("OddEnv.step(actions) returned ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda o, r, d, e: (dict(o), r, d, e), "a dictionary as a TensorDict"),
        (lambda o, r, d, e: (TensorDict(dict(o), batch_size=[]), r, d, e), "a TensorDict without batch_size"),
        (lambda o, r, d, e: (o["policy"], r, d, {**e, "observations": dict(o)}), r"obs and extras\['observations'\]"),
        (lambda o, r, d, e: (o["policy"], r, d, {**e, "observations": {"critic": o["policy"]}}), "obs and extras"),
        (lambda o, r, d, e: (o, r, ~d & False, d, e), r"terminated \| truncated as dones"),
        (lambda o, r, d, e: (o, r, ~d & False, d, {}), r"truncated as extras\['time_outs'\]"),
        (lambda o, r, d, e: (dict(o), r[:, None], (~d & False)[:, None], d[:, None].long(), {}), "dictionary.*rewards"),
        (lambda o, r, d, e: (o, r[:, None], d, e), r"rewards of shape \(3, 1\) as \(3,\)"),
        (lambda o, r, d, e: (o, r, d[:, None], {"time_outs": d[:, None]}), r"dones of .*; extras\['time_outs'\] of"),
        (lambda o, r, d, e: (o, r, d, {**e, "episode_metrics": {"x": r[:, None]}}), r"\['episode_metrics'\]\['x'\]"),
    ],
)
def test_what_has_one_meaning_is_read_as_the_contract_has_it(change, said, caplog):
    """Every step is that of the environment without the change, and one line in all says how it is read."""
    plain, env = CheckedEnv(BareEnv()), CheckedEnv(_with_step(change))
    plain.reset(5)
    with caplog.at_level(logging.WARNING, "foundation"):
        env.reset(5)
        again = CheckedEnv(type(env.env)())
        again.reset(5)
    assert len(re.findall(said, caplog.text)) == 1
    assert len([record for record in caplog.records if "step(actions): reading" in record.message]) == 1
    for _ in range(6):
        torch.manual_seed(0)
        expected, *values, more = plain.step(torch.ones(3, 2))
        torch.manual_seed(0)
        obs, *got, extras = env.step(torch.ones(3, 2))
        assert isinstance(obs, TensorDict) and obs.batch_size == (3,)
        assert torch.equal(obs["policy"], expected["policy"])
        assert all(torch.equal(one, other) for one, other in zip(got, values, strict=True))
        assert torch.equal(extras["time_outs"], more["time_outs"])


@pytest.mark.parametrize(
    "give",
    [
        lambda obs: dict(obs),
        lambda obs: (obs, {}),
        lambda obs: (dict(obs), None),
        lambda obs: (obs["policy"], {"observations": {"policy": obs["policy"]}}),
    ],
)
def test_observations_of_one_meaning_are_read(give, caplog):
    """A dictionary, a pair, and the policy's tensor beside its groups are the TensorDict; one line says so."""

    class OddEnv(BareEnv):
        def get_observations(self):
            return give(super().get_observations())

        def reset(self, seed=None):
            return self.get_observations()

    env = CheckedEnv(OddEnv())
    with caplog.at_level(logging.WARNING, "foundation"):
        results = [env.get_observations(), env.get_observations(), env.reset(0)]
    assert all(torch.equal(obs["policy"], env.env.state) and obs.batch_size == (3,) for obs in results)
    assert len([r for r in caplog.records if r.message.startswith("OddEnv.get_observations(): reading ")]) == 1


@pytest.mark.parametrize("give", [lambda obs: obs["policy"], lambda obs: (obs["policy"], {}), lambda obs: None])
def test_observations_of_no_single_meaning_are_refused(give):
    """A tensor without the group's name, alone or in a pair."""

    class OddEnv(BareEnv):
        def get_observations(self):
            return give(super().get_observations())

    with pytest.raises(UserError, match=r"^OddEnv.get_observations\(\) returned .*; expected a TensorDict"):
        CheckedEnv(OddEnv()).get_observations()


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("num_actions", None, "num_actions must be a positive integer, got None"),
        ("num_envs", 0, "num_envs must be a positive integer"),
        ("max_episode_length", "long", "max_episode_length must be an integer"),
        ("episode_length_buf", torch.zeros(4), r"episode_length_buf must be a tensor of shape \(3,\)"),
    ],
)
def test_attributes_are_checked(name, value, words):
    """An attribute of another kind is named with what it must be."""
    env = BareEnv()
    setattr(env, name, value)
    with pytest.raises(UserError, match=words):
        CheckedEnv(env)


def test_missing_attributes_and_methods_are_named_together():
    """An environment of another library is told all that it lacks in one line."""
    with pytest.raises(UserError, match=r"^object has no num_envs, .*device, get_observations\(\), step\(\): an env"):
        CheckedEnv(object())


class GymnasiumResetEnv(BareEnv):
    """Has gymnasium's reset."""

    def reset(self, *, seed=None, options=None):
        self.seed = seed
        return self.get_observations(), {}


class SeedlessResetEnv(BareEnv):
    """Has a reset without a seed that returns nothing."""

    def reset(self):
        self.state = torch.rand(self.num_envs, 2)


def test_a_reset_of_other_libraries_is_understood():
    """``(obs, info)`` gives the observations; without a seed, torch's generator is seeded."""
    gym = CheckedEnv(GymnasiumResetEnv())
    assert torch.equal(gym.reset(4)["policy"], gym.env.state)
    assert gym.env.seed == 4
    seedless = CheckedEnv(SeedlessResetEnv())
    assert torch.equal(seedless.reset(3)["policy"].clone(), seedless.reset(3)["policy"])


def test_a_sound_environments_step_is_called_directly_after_the_first():
    """The check costs nothing in a long run."""
    env = CheckedEnv(BareEnv())
    env.step(torch.zeros(3, 2))
    assert env.step == env.env.step


def test_episode_lengths_of_each_environment_are_bounded_by_the_longest():
    """RSL-RL allows a tensor; whole episodes are waited for by the longest."""
    bare = BareEnv()
    bare.max_episode_length = torch.tensor([3, 5, 4])  # pyright: ignore[reportAttributeAccessIssue]
    assert CheckedEnv(bare).max_episode_length == 5


def test_a_video_needs_images(tmp_path):
    """No render(), and a render() that returns None, are each one line."""
    request = VideoRequest(tmp_path, length=2, interval=0)
    with pytest.raises(UserError, match=r"--video: BareEnv has no render\(\)"):
        VideoRecorder(CheckedEnv(BareEnv()), request)

    class DarkEnv(BareEnv):
        image: np.ndarray | None = None

        def render(self):
            return self.image

    dark = DarkEnv()
    for image, words in ((None, "returned NoneType"), (np.zeros((4, 4)), r"returned float64 \(4, 4\)")):
        dark.image = image
        with pytest.raises(UserError, match=words):
            VideoRecorder(CheckedEnv(dark), request).step(torch.zeros(3, 2))


@dataclasses.dataclass
class FlatCfg:
    """A config without ``sim`` and ``scene``."""

    num_envs: int = 3


def _register(monkeypatch, env_cfg, agent_cfg):
    kwargs = {
        "env_cfg_entry_point": env_cfg,
        "rsl_rl_cfg_entry_point": agent_cfg,
        "torch_env_entry_point": lambda cfg: BareEnv(cfg["num_envs"] if isinstance(cfg, dict) else cfg.num_envs),
    }
    spec = EnvSpec("Flat-v0", entry_point="x:y", kwargs=kwargs)
    monkeypatch.setitem(gymnasium.registry, "Flat-v0", spec)


@pytest.mark.parametrize("env_cfg", [FlatCfg, lambda: {"num_envs": 3}])
def test_flat_configs_and_agents_that_are_dictionaries_work(monkeypatch, env_cfg):
    """num_envs is set where the config has it; a dictionary is read and written as a config object is."""
    agent = {"seed": 3, "clip_actions": 0.5, "algorithm": {"learning_rate": 0.1}}
    _register(monkeypatch, env_cfg, lambda: agent)
    engine = TorchEngine()
    with engine.launch(LaunchRequest("Flat-v0"), lambda env_cfg, agent_cfg: None) as (cfg, agent_cfg):
        assert isinstance(agent_cfg, AgentDict)
        assert (agent_cfg.seed, agent_cfg.algorithm.learning_rate, agent_cfg.save_interval) == (3, 0.1, 50)
        agent_cfg.seed = 4
        assert agent_cfg["seed"] == 4 and agent["seed"] == 3
        with pytest.raises(AttributeError, match="no 'sede'"):
            _ = agent_cfg.sede
        engine.set_common(cfg, num_envs=4, seed=1, device="cpu")
        assert engine.num_envs(cfg) == 4
        env = engine.make_env(cfg, agent_cfg)
        assert env.num_envs == 4
        obs, *_ = env.step(torch.ones(4, 2))
        assert (obs["policy"] < 1.5).all()


def test_a_config_without_a_place_for_the_number_of_environments(monkeypatch):
    """--num_envs is answered with what the config lacks."""
    with pytest.raises(UserError, match=r"--num_envs 4: .*dict, has neither scene.num_envs nor num_envs"):
        TorchEngine().set_common({}, num_envs=4, seed=1, device="cpu")


@pytest.mark.parametrize("groups", [{"policy": (3, 5)}, {"other": (3, 2)}, {"policy": (3, 2), "more": (3, 1)}])
def test_step_observes_the_groups_that_were_observed_before(groups):
    """Another size, another name or one more: both lists of groups are named."""
    obs = TensorDict({name: torch.zeros(shape) for name, shape in groups.items()}, batch_size=[3])
    env = CheckedEnv(_with_step(lambda _, r, d, e: (obs, r, d, e)))
    env.get_observations()
    with pytest.raises(UserError, match=r"returned groups '.*; expected 'policy' \(3, 2\), as observed before"):
        env.step(torch.zeros(3, 2))


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int32, torch.int64])
def test_whole_rewards_are_read_as_float(dtype, caplog):
    """RSL-RL adds fractions to them; the first step says how they are read, the later ones are read the same."""
    caplog.set_level(logging.WARNING)
    CheckedEnv._told.clear()
    env = CheckedEnv(_with_step(lambda o, r, d, e: (o, torch.tensor([0, 1, 1], dtype=dtype), d, e)))
    for _ in range(2):
        assert torch.equal(env.step(torch.zeros(3, 2))[1], torch.tensor([0.0, 1.0, 1.0]))
    assert caplog.text.count(f"rewards of {dtype} as torch.float32") == 1


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        *[("max_episode_length", value, "must be 1 or more") for value in (0, -1, math.nan, math.inf)],
        ("max_episode_length", 1e30, "at most 2147483648"),
        ("max_episode_length", True, "must be an integer"),
        ("episode_length_buf", torch.full((3,), math.nan), "must be integers"),
        ("max_episode_length", torch.tensor([4, 0, 4]), "as little as 0"),
        ("max_episode_length", torch.tensor([]), "nothing"),
        *[("device", value, "must be a torch device, such as 'cpu'") for value in (None, "gpu", (), "cuda:x")],
    ],
)
def test_attributes_that_cannot_be_are_named(name, value, words):
    """Lengths below a step or without an end, devices that torch does not know."""
    env = BareEnv()
    setattr(env, name, value)
    with pytest.raises(UserError, match=rf"BareEnv.{name} must be .*") as caught:
        CheckedEnv(env)
    assert words in str(caught.value)


class _Abstract(VecEnv):
    def __init__(self, cfg):
        pass


def _raises_inside(cfg):
    return len(5)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (_Abstract, "abstract method"),
        (type("NoCfg", (BareEnv,), {"__init__": lambda self: None}), "positional argument"),
        (type("TwoCfgs", (BareEnv,), {"__init__": lambda self, cfg, more: None}), "missing 1 required"),
        (None, "not callable"),
        (5, "not callable"),
        (_raises_inside, ""),
    ],
)
def test_an_entry_point_that_makes_no_environment_is_named(monkeypatch, target, words):
    """Abstract, with other parameters, or nothing that can be called; a TypeError of its own stays the user's."""
    _register(monkeypatch, FlatCfg, lambda: {"seed": 1})
    gymnasium.registry["Flat-v0"].kwargs["torch_env_entry_point"] = target
    engine = TorchEngine()
    launched = engine.launch(LaunchRequest("Flat-v0"), lambda env_cfg, agent_cfg: None)
    with launched as (cfg, agent_cfg), pytest.raises(UserError if words else TypeError) as caught:
        engine.make_env(cfg, agent_cfg)
    if words:
        assert "task 'Flat-v0': its torch_env_entry_point must be a class or a function" in str(caught.value)
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("agent", "words"),
    [
        ({}, "gives dict without algorithm"),
        ({"max_iterations": 1, "num_steps_per_env": 8}, "gives dict without algorithm"),
        (SimpleNamespace(seed=1), "gives SimpleNamespace without max_iterations, "),
        (5, "gives int; expected RSL-RL's runner settings"),
        ([1], "gives list"),
        (lambda: None, "gives NoneType"),
        (lambda: "cfg.yaml", "gives str"),
    ],
)
def test_an_agents_config_that_is_none_is_named(monkeypatch, agent, words):
    """Where one is trained: what is missing of it, or what it is instead; and what to give."""
    _register(monkeypatch, FlatCfg, agent)
    with pytest.raises(UserError, match=r"'Flat-v0': its rsl_rl_cfg_entry_point gives .*OnPolicyRunnerCfg") as caught:
        TorchEngine().load_configs(LaunchRequest("Flat-v0", needs_agent=True))
    assert words in str(caught.value)


DECLARED = {
    "step_dt": (["x", 0, -1, math.nan, True, [1], "0.01"], "must be a positive number [s]"),
    "solved_return": (["x", math.nan, math.inf, [1], True], "must be a finite number"),
    "action_choices": ([3, "ab", [0], [2.5], ["a"], [True]], "numbers of choices, each at least 1"),
    "action_range": ([3, "ab", [1, 2], [(1,)], [(2, 1)], [(math.nan, 1)]], "a list of (lowest, highest)"),
    "position_fields": (
        [3, {"policy": 3}, {"policy": (0, "earth")}, {"policy": (-1, "world")}, {3: (0, "body")}],
        "a mapping: group -> (first column, 'world' or 'body')",
    ),
    "rotation_fields": ([3, {"policy": "x"}, {"policy": -2}, ["policy"]], "a mapping: group -> first column"),
    "metric_units": ([3, {"m": "cm"}, {"m": ("x", "cm")}, {"m": (math.nan, "cm")}], "metric -> (factor, unit)"),
    "position_unit": ([3, "cm", (1, 2), ("cm", 1.0)], "(factor, unit), such as (100.0, 'cm')"),
    "variant_kind": ([3, ["a"]], "a word, such as 'vehicle'"),
    "variant_names": ([3, "abc", [1]], "a list of names"),
    "variant_index": ([3, [0, 1, 2], torch.zeros(4).long(), torch.zeros(3)], "integers, one for each environment"),
}
"""Optional attribute -> values that it cannot have, and what the error says."""


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, (values, _) in DECLARED.items() for value in values]
)
def test_optional_attributes_of_another_kind_are_named_before_anything_runs(name: str, value: object) -> None:
    """One line with the class and the attribute, when the environment is made, and not a traceback when it is used."""
    env = BareEnv()
    setattr(env, name, value)
    with pytest.raises(UserError, match=rf"^BareEnv\.{name} must be ") as caught:
        CheckedEnv(env)
    assert DECLARED[name][1] in str(caught.value)


def test_optional_attributes_are_read_as_plain_values() -> None:
    """Numbers of NumPy and lists as those of Python; infinite bounds are bounds."""
    env = BareEnv()
    declared = {
        "step_dt": np.float32(0.5),
        "action_choices": np.array([2, 3]),
        "action_range": [(-math.inf, 1), [0, 2.5]],
        "position_fields": {"policy": [3, "body"]},
        "metric_units": {"height": [100, "cm"]},
        "variant_names": ["a", "b"],
    }
    for name, value in declared.items():
        setattr(env, name, value)
    found = EnvCapabilities.of(CheckedEnv(env))
    assert (found.step_dt, found.action_choices, found.action_range) == (0.5, (2, 3), ((-math.inf, 1.0), (0.0, 2.5)))
    assert (found.position_fields, found.metric_units) == ({"policy": (3, "body")}, {"height": (100.0, "cm")})
    assert found.variant_names == ("a", "b")


def test_images_may_be_of_half_precision():
    """A group of float16 that has height and width passes as it is; a flat one is refused, as before."""

    class SeeingEnv(BareEnv):
        def get_observations(self):
            return _with(super().get_observations(), torch.full((self.num_envs, 1, 4, 4), 0.5, dtype=torch.float16))

    env = CheckedEnv(SeeingEnv())
    assert env.get_observations()["policy"].dtype == torch.float16
    obs, *_ = env.step(torch.zeros(3, 2))
    assert obs["policy"].dtype == torch.float16 and obs["policy"].shape == (3, 1, 4, 4)
