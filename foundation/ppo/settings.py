"""PPO's settings for a fine-tuning run, read from the task's agent config, this project's or Isaac Lab's."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from foundation.config.agent_cfg import PPOAlgorithmCfg
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.config.validate import read
from foundation.config.values import apply_values
from foundation.core.errors import UserError
from foundation.ppo.agent_checks import check_algorithm, check_count, check_networks
from foundation.ppo.versions import translate

log = logging.getLogger(__name__)

_ELSEWHERE = ("share_cnn_encoders", "use_mixed_precision", "grad_reduce_bucket_mb")
"""Settings of RSL-RL's algorithm that say how it computes, not what."""


@dataclass
class AgentSettings:
    """What a fine-tuning run takes from the agent config."""

    algorithm: PPOAlgorithmCfg
    num_steps_per_env: int
    """Env steps of a rollout."""
    actor_groups: list[str]
    """Observation groups of the task's own actor."""
    critic_groups: list[str] | None
    """Observation groups of its critic; None where the config names none."""
    critic_dims: list[int]
    critic_activation: str
    min_std: float
    """Floor of the actions' standard deviation [action units]."""
    clip_actions: float | None
    """Bound of the actions that the environment takes."""

    @classmethod
    def read(cls, agent_cfg: object, cfg: FinetuneCfg) -> AgentSettings:
        """Read an agent config, and put in what the run's own config says instead.

        Raises:
            UserError: If it has no PPO in it.
        """
        check_networks(agent_cfg)
        steps = read(agent_cfg, "num_steps_per_env")
        check_count(steps, "agent.num_steps_per_env")
        values = translate(agent_cfg, "distribution")
        if "actor" not in values:
            raise UserError("the task's agent config is of a distillation, and fine-tuning needs one of PPO")
        algorithm = _algorithm(values["algorithm"])
        if cfg.learning_rate is not None:
            algorithm.learning_rate = cfg.learning_rate
        groups = values.get("obs_groups") or {}
        critic: Mapping[str, Any] = values["critic"]
        clip = values.get("clip_actions")
        floor = cfg.actor.min_std
        if floor is None:
            distribution = read(read(agent_cfg, "actor"), "distribution_cfg")
            floor = 0.0 if cfg.checkpoint is not None else float(read(distribution, "min_std") or 0.0)
        return cls(
            algorithm=algorithm,
            num_steps_per_env=int(values.get("num_steps_per_env") or 24),
            actor_groups=list(groups.get("actor") or ["policy"]),
            critic_groups=list(groups["critic"]) if groups.get("critic") else None,
            critic_dims=list(critic.get("hidden_dims") or [256, 256, 256]),
            critic_activation=str(critic.get("activation") or "elu"),
            min_std=floor,
            clip_actions=None if clip is None else float(clip),
        )


def _algorithm(values: Mapping[str, Any]) -> PPOAlgorithmCfg:
    """Return the settings that our PPO has, checked by their types; warn of those that it does not have."""
    algorithm = PPOAlgorithmCfg()
    known = {own.name for own in fields(PPOAlgorithmCfg)}
    ours = {name: value for name, value in values.items() if name in known and value is not None}
    apply_values(algorithm, ours, "agent.algorithm")
    for name in ("rnd_cfg", "symmetry_cfg"):
        if getattr(algorithm, name) is not None:
            log.warning("agent.algorithm.%s has no effect on fine-tuning, which has PPO's own losses alone", name)
    for name in values:
        if name not in known and name not in _ELSEWHERE:
            log.warning("agent.algorithm.%s has no effect on fine-tuning, whose PPO has no such setting", name)
    check_algorithm(algorithm)
    return algorithm
