"""RSL-RL 1.x to 3.x: one ``model_state_dict`` with ``actor.*``, ``critic.*`` and perhaps ``memory_a.rnn.*``."""

from __future__ import annotations

from typing import Any

from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source, logger, optional
from foundation.checkpoints.reading.rsl_rl_parts import Parts, assemble

KEYS = {
    "model_state_dict",
    "obs_norm_state_dict",
    "privileged_obs_norm_state_dict",
    "critic_obs_norm_state_dict",
}
"""Entries of a checkpoint that this format reads."""


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    model = checkpoint.get("model_state_dict")
    if "actor_state_dict" in checkpoint or "student_state_dict" in checkpoint:
        return False  # both layouts at once: that of the newer library is read, and compared with this one
    return isinstance(model, dict) and any(str(key).startswith("actor.") for key in model)


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the policy."""
    actor, critic, version = policy_parts(checkpoint, source)
    return assemble(source, f"RSL-RL {version}", "actor", actor, critic)


def policy_parts(checkpoint: dict[str, Any], source: Source) -> tuple[Parts, Parts | None, str]:
    """Return the actor, the critic where there is one, and the library's version."""
    entries = Entries(checkpoint["model_state_dict"], f"'{source.path}' (model_state_dict)")
    separate = "obs_norm_state_dict" in checkpoint
    inside = {name: entries.take(f"{name}_obs_normalizer.") for name in ("actor", "critic")}
    critic_norm = next(
        (n for n in ("privileged_obs_norm_state_dict", "critic_obs_norm_state_dict") if n in checkpoint), ""
    )
    actor = Parts(
        body=entries.take("actor."),
        rnn=entries.take("memory_a.rnn."),
        normalizer=_separate(checkpoint, "obs_norm_state_dict", source) or inside["actor"],
        std=entries.take_one("std"),
        log_std=entries.take_one("log_std"),
    )
    body = entries.take("critic.")
    rnn = entries.take("memory_c.rnn.")
    of_another_kind = entries.take("critic_") | entries.take("memory_c.")
    critic = None
    if body and not of_another_kind:
        own = optional(source, lambda: _separate(checkpoint, critic_norm, source))
        critic = None if own is None else Parts(body=body, rnn=rnn, normalizer=own or inside["critic"])
    elif of_another_kind:
        logger.info("'%s': its critic is of another kind and is not read, so that it gives no value.", source.path)
    entries.finish(source.overrides.strict)
    version = "1.x to 3.x"
    if separate:
        version = "2.x"
    elif inside["actor"] or inside["critic"]:
        version = "3.x"
    return actor, critic, version


def _separate(checkpoint: dict[str, Any], name: str, source: Source) -> dict[str, Any]:
    if name not in checkpoint:
        return {}
    return Entries(checkpoint[name], f"'{source.path}' ({name})").take("")
