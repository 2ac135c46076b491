"""Values for the environment's and the agent's config: null, interpolation, what cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.overrides import parse_overrides
from foundation.core.errors import UserError


@dataclass
class Term:
    weight: float = 1.0


@dataclass
class Rewards:
    alive: Term = field(default_factory=Term)
    scale: float = 1.0


@dataclass
class Scene:
    num_envs: int = 4
    ground: Term = field(default_factory=Term)
    usd: str = "a.usd"


@dataclass
class EnvCfg:
    scene: Scene = field(default_factory=Scene)
    rewards: Rewards = field(default_factory=Rewards)
    events: dict[str, Any] = field(default_factory=lambda: {"push": Term(), "reset": Term()})
    seed: int | None = None
    log_name: str = ""


def configured(*tokens: str, agent: Any = None) -> tuple[EnvCfg, Any]:
    env, agent = EnvCfg(), agent or {"clip_actions": None, "algorithm": {"optimizer": "adam"}, "run_name": ""}
    parse_overrides(tokens).configure(env, agent, DistillationCfg(seed=5))
    return env, agent


def test_null_switches_a_term_off() -> None:
    """Isaac Lab's way to leave out a reward, an event or an asset, though the field is not optional."""
    env, _ = configured("env.rewards.alive=null", "env.events.push=null", "env.scene.ground=null", "scene.usd=null")
    assert env.rewards.alive is None and env.scene.ground is None and env.scene.usd is None  # type: ignore[comparison]
    assert env.events["push"] is None and env.events["reset"] == Term()


@pytest.mark.parametrize("token", ["env.rewards.scale=null", "env.scene.num_envs=null"])
def test_a_number_is_not_switched_off(token: str) -> None:
    """A number without a value would fail somewhere in the simulator: refused here."""
    with pytest.raises(UserError, match="null: it must be"):
        configured(token)


def test_text_of_env_and_agent_is_interpolated() -> None:
    """It may refer to any of the three configs, as they are once what came before was set."""
    env, agent = configured(
        "env.scene.num_envs=9", "env.log_name=${env.scene.num_envs}_${distill.seed}", "agent.run_name=r${oc.env:HOME}"
    )
    assert env.log_name == "9_5" and agent["run_name"].startswith("r/")
    with pytest.raises(UserError, match=r"no key 'env\.scene\.num_env' to refer to.*num_envs"):
        configured("env.log_name=${env.scene.num_env}")


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("env.seed=-1", "env.seed is -1: it must be at least 0"),
        ("env.seed=4294967296", "at most 4294967295"),
        ("agent.clip_actions=wide", "agent.clip_actions is 'wide'"),
        ("agent.clip_actions=true", "agent.clip_actions is True"),
        ("agent.clip_actions=0", "agent.clip_actions is 0"),
        ("agent.clip_actions=1e-45", "agent.clip_actions is 1e-45"),
        ("agent.algorithm.optimizer=2", "agent.algorithm.optimizer is '2'"),
        ("agent.algorithm.optimizer=adma", "Did you mean 'adam'"),
    ],
)
def test_what_cannot_be_is_one_line(token: str, says: str) -> None:
    """Of our own configs, Isaac Lab's and dictionaries alike."""
    with pytest.raises(UserError) as caught:
        configured(token)
    assert says in str(caught.value) and "\n" not in str(caught.value)
