"""Derived observation groups of a command: in a session's environments, and read by its policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from foundation.cli.session import Session
from foundation.config.derived_cfg import DerivedGroup, DerivedObsCfg, read_derived
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.engines.base import VecEnv
from foundation.engines.derived_groups import DerivedGroups


def derive_in(
    session: Session,
    settings: Mapping[str, DerivedObsCfg],
    task: str,
    seed: int,
    recorded: Mapping[str, DerivedGroup] | None = None,
    key: str = "distill.obs",
) -> None:
    """Let every environment of a session have some derived groups; nothing is done where there are none.

    Args:
        session: Makes the environments.
        settings: Settings of each group, by its name.
        task: The task, which may name columns.
        seed: Seed of noise and lost readings until an environment is reset with another.
        recorded: Groups as a policy was trained on them.
        key: Key of the settings, for messages.
    """
    if not settings:
        return

    def derive(env: VecEnv) -> VecEnv:
        return cast(VecEnv, DerivedGroups(env, settings, task, seed, recorded, key))

    session.derive = derive


def recorded_groups(checkpoint: str | Path) -> dict[str, DerivedGroup]:
    """Return the derived groups that a policy was trained on; none where its file has no entry for them."""
    try:
        values = load_checkpoint(Path(checkpoint))
    except UserError:  # of another kind: whoever reads the policy raises what is wrong with it
        return {}
    return read_derived(values.get("derived_groups"), f"'{checkpoint}'")
