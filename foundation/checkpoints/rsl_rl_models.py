"""RSL-RL 4.x and 5.x: ``actor_state_dict`` and ``critic_state_dict``, each with ``mlp.*``, ``rnn.*`` and more."""

from __future__ import annotations

from typing import Any

from foundation.checkpoints.reading.assembly import Parts, assemble
from foundation.checkpoints.reading.image_assembly import assemble_with_images
from foundation.checkpoints.reading.loading import Entries, LoadedPolicy, Source

KEYS = {"actor_state_dict", "critic_state_dict"}
"""Entries of a checkpoint that this format reads."""


def recognise(checkpoint: dict[str, Any]) -> bool:
    """Return whether a checkpoint is in this format."""
    return "actor_state_dict" in checkpoint


def load(checkpoint: dict[str, Any], source: Source) -> LoadedPolicy:
    """Read the policy."""
    actor, version = model_parts(checkpoint["actor_state_dict"], source, "actor_state_dict")
    if actor.cnns:
        return assemble_with_images(source, f"RSL-RL {version}", "actor", actor)
    critic = None
    if "critic_state_dict" in checkpoint:
        critic, _ = model_parts(checkpoint["critic_state_dict"], source, "critic_state_dict")
    return assemble(source, f"RSL-RL {version}", "actor", actor, critic)


def model_parts(tensors: Any, source: Source, name: str) -> tuple[Parts, str]:
    """Read one model, and tell the library's version by how it stores the deviation."""
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
    return parts, "5.x" if new else "4.x" if old else "4.x or 5.x"
