"""RSL-RL 4.x and 5.x: ``actor_state_dict`` and ``critic_state_dict``, each with ``mlp.*``, ``rnn.*`` and more."""

from __future__ import annotations

from typing import Any

from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source, optional, report_unknown
from foundation.checkpoints.reading.rsl_rl_parts import Parts, assemble, merge
from foundation.checkpoints.rsl_rl_actor_critic import KEYS as OLDER_KEYS
from foundation.checkpoints.rsl_rl_actor_critic import policy_parts
from foundation.checkpoints.rsl_rl_actor_critic import recognise as is_older

KEYS = {"actor_state_dict", "critic_state_dict", *OLDER_KEYS}
"""Entries of a checkpoint that this format reads."""


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    return "actor_state_dict" in checkpoint


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the policy."""
    actor, version = model_parts(checkpoint["actor_state_dict"], source, "actor_state_dict")
    if is_older({"model_state_dict": checkpoint.get("model_state_dict")}):
        actor = merge(actor, policy_parts(checkpoint, source)[0], source, "actor_state_dict")
    else:
        report_unknown(sorted(OLDER_KEYS & checkpoint.keys()), f"'{source.path}'", source.overrides.strict)
    critic = optional(source, lambda: model_parts(checkpoint["critic_state_dict"], source, "critic_state_dict")[0])
    return assemble(source, f"RSL-RL {version}", "actor", actor, critic)


def model_parts(tensors: Any, source: Source, name: str) -> tuple[Parts, str]:
    """Read one model, and the library's version, which shows in how it stores the standard deviation."""
    entries = Entries(tensors, f"'{source.path}' ({name})")
    new = {key.split(".")[-1] for key in tensors if str(key).startswith("distribution.")}
    old = {"std", "log_std"} & set(tensors)
    parts = Parts(
        body=entries.take("mlp."),
        rnn=entries.take("rnn.rnn."),
        cnns=entries.take("cnns."),
        normalizer=entries.take("obs_normalizer."),
        std=entries.take_one("distribution.std_param", "std"),
        log_std=entries.take_one("distribution.log_std_param", "log_std"),
    )
    entries.finish(source.overrides.strict)
    if new:
        return parts, "5.x"
    return parts, "4.x" if old else "4.x or 5.x"
