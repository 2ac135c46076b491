"""Policies that other libraries wrote, as RSL-RL checkpoints: read again they act and judge as before."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import foundation
from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.export.rsl_rl import write_rsl_rl
from foundation.policies.actor_critic import ActorCritic, Critic, Trunk
from foundation.policies.distribution import Beta, Gaussian
from foundation.policies.mlp import build_mlp
from foundation.policies.normalizer import ObsNormalizer
from foundation.policies.rnn import RecurrentCore

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE)]

from exported import NUM_ACTIONS, NUM_OBS, fly, randomise  # noqa: E402

TEACHER = Path(foundation.__file__).resolve().parent / "assets" / "teachers" / "point_ctrl" / "model.pt"


def trunk(num_out: int, sizes: list[int], cell: str | None) -> Trunk:
    """Return a normaliser, recurrent layers and dense ones."""
    layers = list(build_mlp(16 if cell else NUM_OBS, sizes, num_out, "tanh"))
    normalizer = ObsNormalizer(NUM_OBS)
    normalizer.update(torch.randn(100, NUM_OBS) * 2 + num_out)
    return Trunk([RecurrentCore(cell, NUM_OBS, 16, 2), *layers] if cell else layers, normalizer)


def policy(cell: str | None) -> ActorCritic:
    """Return an actor and a critic with normalisers and sizes of their own."""
    torch.manual_seed(0)
    deviation = torch.rand(NUM_ACTIONS) + 0.1
    network = ActorCritic(trunk(NUM_ACTIONS, [8, 6], cell), Gaussian(deviation), Critic(trunk(1, [12], cell)))
    randomise(network)
    return network


def values(network, obs):
    """Return values and deviations over a sequence."""
    with torch.no_grad():
        output = network.sequence(torch.from_numpy(obs))[0]
    return output.value, output.std


@pytest.mark.parametrize("layout", ["3", "5"])
@pytest.mark.parametrize("cell", [None, "gru", "lstm"])
def test_actor_and_critic_survive(cell, layout, tmp_path):
    """Actions, deviations and values are the same to 1e-5, with a normaliser each and memories of their own."""
    network = policy(cell)
    write_rsl_rl(network, tmp_path / "model_0.pt", layout)
    read = load_policy(tmp_path / "model_0.pt", Overrides()).network
    flight = fly(network)
    assert numpy.abs(fly(read).actions - flight.actions).max() <= 1e-5
    for before, after in zip(values(network, flight.obs), values(read, flight.obs), strict=True):
        assert torch.allclose(before, after, atol=1e-5)


def test_a_teacher_from_one_layout_to_the_other(tmp_path):
    """The shipped teacher of layout 5 is written as layout 3 and back, and acts and judges as before."""
    network = load_policy(TEACHER, Overrides()).network
    path = TEACHER
    for layout in ("3", "5"):
        target = tmp_path / layout / "model_0.pt"
        write_rsl_rl(load_policy(path, Overrides()).network, target, layout)
        path = target
    read = load_policy(path, Overrides()).network
    flight = fly(network, steps=20)
    assert numpy.array_equal(fly(read, steps=20).actions, flight.actions)
    assert torch.equal(values(read, flight.obs)[0], values(network, flight.obs)[0])


def test_what_rsl_rl_has_no_network_for(tmp_path):
    """Other distributions, several activations and layers before the memory are one line."""
    beta = ActorCritic(trunk(2 * NUM_ACTIONS, [8], None), Beta())
    mixed = ActorCritic(
        Trunk([nn.Linear(NUM_OBS, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)]), Gaussian(torch.ones(3))
    )
    encoded = ActorCritic(
        Trunk([nn.Linear(NUM_OBS, 4), nn.ReLU(), RecurrentCore("gru", 4, 5), nn.Linear(5, 3)]), Gaussian(torch.ones(3))
    )
    for network, said in ((beta, "beta actions"), (mixed, "one activation"), (encoded, "RSL-RL has no network like")):
        with pytest.raises(UserError, match=said):
            write_rsl_rl(network, tmp_path / "model_0.pt")
    assert not list(tmp_path.iterdir())
