"""Settings in which a resumed run differs from what it was."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from foundation.config.plain import to_plain
from foundation.core.text import quoted
from foundation.runs.run_dir import RunDir

_OF_A_PROCESS = ("log_dir",)
"""Fields that an engine sets and no user chooses."""
_ABSENT = object()


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
            found += [f"{prefix}{change}" for change in _changes(was, yaml.safe_load(yaml.safe_dump(to_plain(now))))]
    return f", but {'; '.join(found)}" if found else ""


def _changes(was: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    before = _flat(was)
    after = _flat(now)
    for path in dict.fromkeys([*before, *after]):
        old = before.get(path, _ABSENT)
        new = after.get(path, _ABSENT)
        # A field that this version of the package has added was not there, and has its default.
        if old is _ABSENT or _same(old, new) or path.rpartition(".")[2] in _OF_A_PROCESS:
            continue
        yield f"{path} is {'not set' if new is _ABSENT else _shown(new)}, was {_shown(old)}"


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Lay nested mappings out as dotted names; lists stay whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _same(old: object, new: object) -> bool:
    both_nan = isinstance(old, float) and isinstance(new, float) and math.isnan(old) and math.isnan(new)
    return both_nan or old == new


def _shown(value: object) -> str:
    """Write a value as people type it: 3e-4, not 0.0003."""
    if isinstance(value, float) and 0.0 < abs(value) < 1e-2:
        mantissa, _, exponent = f"{value:e}".partition("e")
        short = f"{float(mantissa):g}e{int(exponent)}"
        return short if float(short) == value else repr(value)
    return value if isinstance(value, str) and value.isprintable() and len(value) < 80 else quoted(value)
