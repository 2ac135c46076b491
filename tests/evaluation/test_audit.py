"""Intervals, several seeds, checksums and ablations of an evaluation."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from tensordict import TensorDict
from toy_env import RegulatorEnv

from foundation.core.errors import UserError
from foundation.evaluation.ablation import AblatedActor, Ablation, MeanObservations, parse_ablations
from foundation.evaluation.audit import manifest, pooled, wilson_interval
from foundation.rollout.episodes import EvaluationResult


@pytest.mark.parametrize(
    ("successes", "episodes", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),  # Newcombe 1998, table I, method 3
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval(successes: int, episodes: int, low: float, high: float) -> None:
    """The ends are those that Newcombe (1998) prints, and stay within 0 and 1."""
    assert wilson_interval(successes, episodes) == pytest.approx((low, high), abs=5e-5)
    mirrored = wilson_interval(episodes - successes, episodes)
    assert mirrored == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_episodes_of_several_seeds_are_put_together() -> None:
    """All episodes count once; what one seed's episodes do not know is not known of all."""
    one = EvaluationResult(
        torch.tensor([1.0, 2.0]), torch.ones(2), torch.tensor([True, False]), {"a": torch.ones(2)}, 5
    )
    two = EvaluationResult(torch.tensor([6.0]), torch.ones(1), torch.tensor([True]), {}, 3)
    both = pooled([one, two])
    assert both.mean_return == 3.0
    assert both.success is not None
    assert both.success.tolist() == [True, False, True]
    assert (both.metrics, both.env_steps) == ({}, 8)
    assert pooled([one, EvaluationResult(torch.ones(1), torch.ones(1), None)]).success is None


def test_manifest_has_the_checksum_of_each_file(tmp_path: Path) -> None:
    """A file is named once; one that is not there is left out."""
    path = tmp_path / "a.pt"
    path.write_bytes(b"weights")
    (entry,) = manifest([path, path, tmp_path / "none"])
    assert entry == {"path": str(path), "bytes": 7, "sha256": hashlib.sha256(b"weights").hexdigest()}


class Seen:
    """Keeps what it is shown."""

    def __init__(self) -> None:
        self.obs: list[TensorDict] = []

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Nothing to forget."""

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return zeros."""
        self.obs.append(obs)
        return torch.zeros(obs.batch_size[0], 2)


def test_an_ablated_actor_sees_all_but_one_input() -> None:
    """Zero, the mean of the intact episodes, or another environment's values: in these columns and no others."""
    obs = RegulatorEnv(6).get_observations()
    means = MeanObservations()
    for shift in (0.0, 2.0):
        means.before_step(
            TensorDict({name: obs[name] + shift for name in ("policy", "privileged")}, [6]), obs["policy"]
        )
    before = obs.clone()
    for how in ("zero", "mean", "shuffled"):
        seen = Seen()
        AblatedActor(seen, Ablation("x", how, {"privileged": [1]}), means, seed=0).act(obs)
        (shown,) = seen.obs
        assert torch.equal(shown["privileged"][:, [0, 2]], obs["privileged"][:, [0, 2]])
        assert torch.equal(shown["policy"], obs["policy"])
        column = shown["privileged"][:, 1]
        if how == "zero":
            assert torch.equal(column, torch.zeros(6))
        elif how == "mean":
            assert column == pytest.approx([float(obs["privileged"][:, 1].mean()) + 1.0] * 6, abs=1e-6)
        else:
            assert sorted(column.tolist()) == sorted(obs["privileged"][:, 1].tolist())
            assert not torch.equal(column, obs["privileged"][:, 1])
    assert all(torch.equal(before[name], obs[name]) for name in ("policy", "privileged")), "the environment's own"


def test_names_of_inputs() -> None:
    """Groups, terms by name, places of columns and all of them; an unknown one is answered with the nearest."""
    env = RegulatorEnv(3)
    env.observation_terms = {"privileged": {"place": 2, "clock": 1}}  # type: ignore[attr-defined]
    groups = ["policy", "privileged"]

    def parsed(*typed: str) -> list[tuple[str, str, dict[str, list[int] | None]]]:
        return [(a.name, a.how, a.columns) for a in parse_ablations(typed, env, "x", groups)]

    assert parsed("policy:zero") == [("policy", "zero", {"policy": None})]
    assert parsed("clock") == [("clock", "mean", {"privileged": [2]})]
    assert parsed("policy.0:1:shuffled") == [("policy.0:1", "shuffled", {"policy": [0]})]
    assert [name for name, _, _ in parsed("all")] == ["policy", "privileged.place", "privileged.clock"]
    with pytest.raises(UserError, match=r"no term 'clok' in policy \+ privileged. Did you mean 'clock'"):
        parsed("clok")
    with pytest.raises(UserError, match=r"'shufled' is no way of ablation. Did you mean 'shuffled'"):
        parsed("policy:shufled")
    with pytest.raises(UserError, match="shuffling needs two environments"):
        parse_ablations(["policy:shuffled"], RegulatorEnv(1), "x", groups)
