"""Settings in which a resumed run differs from what it was."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from foundation.config.plain import to_plain
from foundation.core.distributed import current
from foundation.core.errors import UserError
from foundation.core.text import quoted
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import OfflineState, RunCheckpoint, RunState

_OF_A_PROCESS = ("log_dir",)
"""Fields that an engine sets and no user chooses."""
_ABSENT = object()
_LONGEST = 80
"""Characters of a value that are shown."""
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")
"""Where an object lies in memory, which is part of its text and differs from process to process."""


def changed_settings(
    run: RunDir, checkpoint: Mapping[str, Any], cfg: object, env_cfg: object = None, agent_cfg: object = None
) -> str:
    """Name every setting that is not what it was when the checkpoint was written.

    Args:
        run: The run; its ``params/env.yaml`` and ``params/agent.yaml`` say what those were.
        checkpoint: Holds the run's own configuration as it was.
        cfg: The run's configuration now.
        env_cfg: The environment's configuration now; None, here and below, is not compared.
        agent_cfg: The agent's configuration now.

    Returns:
        Such as ", but learning_rate is 3e-4, was 1e-4", to follow "exact"; "" where nothing has changed.
    """
    pairs = [("", checkpoint.get("distillation"), cfg)]
    for scope, now in (("env", env_cfg), ("agent", agent_cfg)):
        if now is not None and (run.params_dir / f"{scope}.yaml").exists():
            pairs.append((f"{scope}.", run.load_params(scope), now))
    found: list[str] = []
    for prefix, was, now in pairs:
        if isinstance(was, Mapping):
            found += _changes(was, yaml.safe_load(yaml.safe_dump(to_plain(now))), now, prefix)
    return f", but {'; '.join(found)}" if found else ""


def refuse_settled(was: object, cfg: object, paths: Sequence[str], name_of: Callable[[str], str]) -> None:
    """Refuse another value of what a run reads when it begins alone: a resumed one would not notice it.

    Args:
        was: The run's configuration as it was saved, plain values.
        cfg: The run's configuration now.
        paths: The settings that are read at the beginning alone.
        name_of: Names a setting as a user sets it.

    Raises:
        UserError: Naming the first one that differs.
    """
    now = to_plain(cfg)
    for path in paths:
        old, new = _at(was, path), _at(now, path)
        if old is not _ABSENT and not _same(old, new):
            raise UserError(
                f"{name_of(path)} is {_shown(new)}, and the run began with {_shown(old)}: it is read when a run "
                "begins, so that it must stay as it was with --resume"
            )


def _at(values: object, path: str) -> object:
    """Return a nested value, or the mark of one that is absent."""
    for key in path.split("."):
        values = values.get(key, _ABSENT) if isinstance(values, Mapping) else _ABSENT
    return values


def changed_processes(checkpoint: RunCheckpoint[RunState] | RunCheckpoint[OfflineState], follows: bool) -> str:
    """Say that a run is resumed by another number of processes than it had, to follow "exact"; "" where it is not.

    Args:
        checkpoint: What it is resumed from.
        follows: Whether other settings are named before.
    """
    state = checkpoint.state
    now = current().world_size
    if state is None or state.world_size == now:
        return ""
    return f"{';' if follows else ', but'} the number of processes is {now}, was {state.world_size}"


def _changes(was: Mapping[str, Any], now: Mapping[str, Any], cfg: object, prefix: str) -> Iterator[str]:
    """Name what differs.

    Args:
        was: Saved values.
        now: The values of ``cfg``, plain.
        cfg: The config now, which says what is a field and what an entry of a mapping.
        prefix: Put before each name.
    """
    entries = isinstance(cfg, Mapping)
    for key in dict.fromkeys([*was, *now]):
        old = was.get(key, _ABSENT)
        new = now.get(key, _ABSENT)
        # A field that this version of the package has added was not there, and has its default.
        if (old is _ABSENT and not entries) or key in _OF_A_PROCESS:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            part = cfg.get(key) if isinstance(cfg, Mapping) else getattr(cfg, str(key), None)
            yield from _changes(old, new, part, f"{prefix}{key}.")
        elif not _same(old, new):
            yield f"{prefix}{key} is {_shown(new)}, was {_shown(old)}"


def _same(old: object, new: object) -> bool:
    if isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new):
        return True
    if isinstance(old, str) and isinstance(new, str):
        return _ADDRESS.sub("", old) == _ADDRESS.sub("", new)
    return old == new


def _shown(value: object) -> str:
    """Write a value as it is typed: 3e-4, not 0.0003."""
    if value is _ABSENT:
        return "not set"
    if value is None or isinstance(value, bool | Mapping):
        text = yaml.safe_dump(value, default_flow_style=True, width=math.inf).removesuffix("...\n").strip()
        return text if len(text) < _LONGEST else f"{text[:_LONGEST]}..."
    if isinstance(value, float) and 0.0 < abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:e}".partition("e")
        short = f"{float(mantissa):g}e{int(exponent)}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) and value.isprintable() and len(value) < _LONGEST else quoted(value)
