"""Noise, bias, dropout, delay and lost actions at the boundary of an environment that records what reaches it."""

from __future__ import annotations

from types import MappingProxyType

import pytest
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import EnvCapabilities
from foundation.engines.perturbed import BOUNDARY, PerturbedEnv
from foundation.tasks.pursuit.chase import QuadcopterChaseEnv
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

NUM_ENVS = 2000
LENGTH = 6


class RecordingEnv:
    """Observes its step count and a constant byte, and keeps the actions that it was given; episodes of 6 steps."""

    num_actions = 1
    max_episode_length = LENGTH
    device = torch.device("cpu")

    def __init__(self, num_envs: int = NUM_ENVS):
        self.num_envs = num_envs
        self.cfg = None
        self.received: list[torch.Tensor] = []
        self.reset()

    def reset(self, seed: int | None = None) -> TensorDict:
        self.total = 0
        self.episode_length_buf = torch.zeros(self.num_envs, dtype=torch.long)
        self.received = []
        return self.get_observations()

    def get_observations(self) -> TensorDict:
        clock = torch.full((self.num_envs, 3), float(self.total))
        groups = {"policy": clock, "image": torch.full((self.num_envs, 2, 2), 7, dtype=torch.uint8)}
        return TensorDict(groups, batch_size=[self.num_envs])

    def step(self, actions):
        self.received.append(actions.clone())
        self.total += 1
        self.episode_length_buf += 1
        dones = self.episode_length_buf >= LENGTH
        self.episode_length_buf *= ~dones
        return self.get_observations(), torch.zeros(self.num_envs), dones, {"time_outs": dones}

    def close(self) -> None:
        pass


SCALES = {"policy": torch.tensor([2.0, 0.5, 0.0])}


def rollout(env: PerturbedEnv, steps: int = 2 * LENGTH, seed: int = 0) -> torch.Tensor:
    """Act by the step number; return what was observed. Shape: (steps + 1, num_envs, 3)."""
    seen = [env.reset(seed)["policy"]]
    for step in range(steps):
        obs, *_ = env.step(torch.full((env.num_envs, 1), float(step)))
        seen.append(obs["policy"])
    return torch.stack(seen)


def varied(name: str | None, value: float = 0.0, num_envs: int = NUM_ENVS) -> PerturbedEnv:
    env = PerturbedEnv(RecordingEnv(num_envs), SCALES)
    env.vary(name, value)
    return env


def clean(steps: int = 2 * LENGTH) -> torch.Tensor:
    return torch.arange(steps + 1.0).view(-1, 1, 1)


def test_nominal_changes_nothing():
    """Without a perturbation, observations and actions pass through as they are."""
    env = varied(None)
    assert torch.equal(rollout(env), clean().expand(-1, NUM_ENVS, 3))
    assert [float(action[0]) for action in env.env.received] == list(range(2 * LENGTH))


def test_noise_has_the_deviation_that_was_asked_for():
    """10 % of columns with deviations 2, 0.5 and 0 is noise of deviation 0.2, 0.05 and none, new at each step."""
    env = varied("observation_noise", 10.0)
    noise = rollout(env) - clean()
    assert noise[..., 0].std().item() == pytest.approx(0.2, rel=0.02)
    assert noise[..., 1].std().item() == pytest.approx(0.05, rel=0.02)
    assert noise[..., 2].abs().max() == 0.0
    assert abs(float((noise[3, :, 0] * noise[4, :, 0]).mean())) < 0.002
    assert env.get_observations()["image"].dtype == torch.uint8


def test_a_bias_has_its_size_and_stays_for_an_episode():
    """Its size is exact in each column, half of the signs are positive, and another episode draws them again."""
    bias = rollout(varied("observation_bias", 20.0)) - clean()
    assert torch.allclose(bias[..., 0].abs(), torch.tensor(0.4), atol=1e-5)
    assert torch.allclose(bias[..., 1].abs(), torch.tensor(0.1), atol=1e-5)
    first, second = bias[:LENGTH, :, 0], bias[LENGTH : 2 * LENGTH, :, 0]
    assert torch.allclose(first, first[:1].expand_as(first), atol=1e-5)
    assert torch.allclose(second, second[:1].expand_as(second), atol=1e-5)
    assert float((first[0] > 0).float().mean()) == pytest.approx(0.5, abs=0.05)
    assert float((first[0] * second[0] > 0).float().mean()) == pytest.approx(0.5, abs=0.05)


def test_an_observation_that_is_lost_leaves_the_last_one():
    """A quarter of them are, never an episode's first; what is seen is then what was seen a step before."""
    seen = rollout(varied("observation_dropout", 25.0))[..., 0]
    fresh = seen == clean()[..., 0]
    assert fresh[0].all() and fresh[LENGTH].all()
    inner = [step for step in range(1, 2 * LENGTH) if step != LENGTH]
    assert float(fresh[inner].float().mean()) == pytest.approx(0.75, abs=0.01)
    held = seen[1:] == seen[:-1]
    assert (held | fresh[1:]).all()


def test_a_delay_of_two_steps_is_a_delay_of_two_steps():
    """Action t arrives at step t + 2; an episode's first one fills the time before, in the second episode too."""
    env = varied("action_delay", 2.0, 3)
    rollout(env)
    received = [float(action[0]) for action in env.env.received]
    assert received == [0, 0, 0, 1, 2, 3, 6, 6, 6, 7, 8, 9]


def test_a_lost_action_leaves_the_last_one():
    """Half of them are lost, never an episode's first; the environment then gets what it got a step before."""
    env = varied("action_loss", 50.0)
    rollout(env)
    received = torch.cat(env.env.received, 1)
    fresh = received == torch.arange(2.0 * LENGTH)
    assert fresh[:, 0].all() and fresh[:, LENGTH].all()
    inner = [step for step in range(1, 2 * LENGTH) if step != LENGTH]
    assert float(fresh[:, inner].float().mean()) == pytest.approx(0.5, abs=0.01)
    assert (fresh[:, 1:] | (received[:, 1:] == received[:, :-1])).all()


class EchoEnv(RecordingEnv):
    """Its second column is the action that arrived last."""

    action_fields = MappingProxyType({"policy": 1})

    def get_observations(self):
        obs = super().get_observations()
        if self.received:
            obs["policy"][:, 1:2] = self.received[-1].clamp(-1.0, 1.0)
        return obs


def test_a_policy_knows_what_it_has_commanded():
    """Under a delay the column of the last action holds what was given, clipped; with noise it is exact."""
    env = PerturbedEnv(EchoEnv(3), SCALES)
    assert env.scales["policy"].tolist() == [2.0, 0.0, 0.0]
    env.vary("action_delay", 2.0)
    env.reset(0)
    given = [0.1, 0.2, 0.3, 3.0]
    seen = [float(env.step(torch.full((3, 1), value))[0]["policy"][0, 1]) for value in given]
    assert seen == pytest.approx([0.1, 0.2, 0.3, 1.0])
    assert [float(action[0]) for action in env.env.received] == pytest.approx([0.1, 0.1, 0.1, 0.2])


def test_the_built_in_tasks_declare_their_last_action():
    """The declared columns hold the action that was given, in every group of both kinds of task."""
    for env in (QuadcopterPointCtrlEnv(), QuadcopterChaseEnv()):
        action = torch.rand(env.num_envs, 4)
        obs, _, dones, _ = env.step(action)
        assert not dones.any()
        for group, first in EnvCapabilities.of(env).action_fields.items():
            assert torch.equal(obs[group][:, first : first + 4], action)
        assert set(env.action_fields) == set(obs.keys())


@pytest.mark.parametrize("name", [name for name in BOUNDARY if name != "action_delay"])
def test_the_seed_gives_the_same_perturbations(name):
    """Teacher and student meet the same ones; another seed gives others."""
    env = varied(name, 30.0)
    runs = []
    for seed in (0, 0, 1):
        seen = rollout(env, seed=seed)
        runs.append(torch.cat([seen.flatten(), torch.cat(env.env.received).flatten()]))
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("mass", 20.0, "mass: this environment cannot vary it. Valid are: action_delay"),
        ("observation_nois", 20.0, "Did you mean 'observation_noise'"),
        ("action_delay", 1.5, "an integer number of steps"),
        ("action_loss", 101.0, "expected 0 to 100"),
        ("observation_noise", -1.0, "expected 0 or more"),
        ("observation_noise", float("nan"), "expected 0 or more"),
    ],
)
def test_what_cannot_be_varied_is_refused(name, value, said):
    """A quantity that the environment lacks, and a value that it cannot take, are named."""
    with pytest.raises(UserError, match=said):
        varied(name, value, 2)


def test_an_environment_declares_what_its_simulation_varies():
    """Its quantities stand beside those of the boundary, and are set and restored by its own method."""

    class WindyEnv(RecordingEnv):
        perturbations = MappingProxyType({"wind": ("m/s", 0, [1, 2])})
        given: list[dict[str, float]]

        def perturb(self, values):
            self.given = [*getattr(self, "given", []), dict(values)]

    env = PerturbedEnv(WindyEnv(2))
    assert env.quantities["wind"] == ("m/s", 0.0, (1.0, 2.0))
    env.vary("wind", 2.0)
    env.vary("action_delay", 1.0)
    env.vary(None)
    assert env.env.given == [{"wind": 2.0}, {}, {}]


@pytest.mark.parametrize("declared", [3, {"wind": 1}, {"wind": ("m/s", 0, [])}, {"wind": ("m/s", "no", [1])}, {1: "x"}])
def test_a_declaration_of_another_form_is_named(declared):
    """A task's own slip is one line that names class, attribute and form."""
    env = RecordingEnv(1)
    env.perturbations = declared
    with pytest.raises(UserError, match=r"RecordingEnv\.perturbations must be a mapping: name -> \(unit, nominal"):
        EnvCapabilities.of(env)
