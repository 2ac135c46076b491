"""From YAML files, overrides and flags to one checked :class:`DistillationCfg`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.config.distillation_cfg import DistillationCfg, StudentCfg
from foundation.config.overrides import Overrides
from foundation.config.validate import validate
from foundation.config.values import apply_values, key_names
from foundation.core.errors import UserError, suggest

StudentCfgClass = Callable[[str], type[StudentCfg]]
"""Gives the config class of a student by its name; raises :class:`UserError` for an unknown one."""

_BY_NAME = ("student", "loss")
"""Groups whose choices need no file: any student and any loss may be chosen by its own name."""


@dataclass
class Resolved:
    """A distillation config, and what its files say about the other two configs."""

    cfg: DistillationCfg
    env: dict[str, Any] = field(default_factory=dict)
    """Values for the environment's config, from ``env:`` in a ``task/`` or ``experiment/`` file."""
    agent: dict[str, Any] = field(default_factory=dict)
    """Values for the agent's config, from ``agent:`` in such a file."""

    def configure(self, env_cfg: Any, agent_cfg: Any, overrides: Overrides) -> None:
        """Apply the files' values, then the command line's, to the simulator's configs in place."""
        apply_values(env_cfg, self.env, "env")
        apply_values(agent_cfg, self.agent, "agent")
        overrides.configure(env_cfg, agent_cfg, self.cfg)


def config_folder() -> Path:
    """Return the folder of the YAML files, in a clone or in an installed package."""
    package = Path(__file__).resolve().parent.parent
    for folder in (package.parent / "configs", package / "configs"):
        if (folder / "distillation.yaml").is_file():
            return folder
    raise UserError(f"no configs/distillation.yaml beside {package} or in it: install the package again")


def choices(group: str) -> list[str]:
    """List the files of a group of ``configs/``."""
    return sorted(path.stem for path in (config_folder() / group).glob("*.yaml"))


def compose(groups: Mapping[str, str | None]) -> dict[str, Any]:
    """Let Hydra put ``configs/distillation.yaml`` and the chosen group files together. Writes nothing.

    Args:
        groups: Group -> name of a file, or None for no file at all.

    Returns:
        Plain nested values.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    typed = [f"~{group}" if name is None else f"{group}={name}" for group, name in groups.items()]
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            values = OmegaConf.to_container(hydra_compose("distillation", overrides=typed), resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(f"configs: {' '.join(str(error).split())}") from None
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def resolve(
    overrides: Overrides,
    flags: Mapping[str, Any],
    *,
    student_cfg_class: StudentCfgClass,
    loss_names: Iterable[str] | None = None,
    base: Mapping[str, Any] | None = None,
) -> Resolved:
    """Put a run's config together: defaults, then files, then overrides, then flags.

    Args:
        overrides: What was typed as ``key=value``.
        flags: Dotted field -> value, for the flags that were typed.
        student_cfg_class: The students' registry, which this layer does not know.
        loss_names: Valid losses. None leaves the loss's name unchecked.
        base: Values of a run that is resumed; they take the place of the files, except for groups typed again.

    Raises:
        UserError: For an unknown key, group or name, a wrong type, or a value out of range.
    """
    groups, named = _split_groups(overrides)
    values = compose(groups)
    if base is not None:
        base = copy.deepcopy(dict(base))
        typed = named.get("student") or groups.get("student")
        if typed not in (None, _student_name(base)):
            del base["student"]  # another student has other fields
        # What a typed group says counts, also where the default files say the same.
        values = _merge(base, _difference(values, compose(dict.fromkeys(groups))) if groups else {})
    env, agent = values.pop("env", None) or {}, values.pop("agent", None) or {}
    name = named.pop("student", None) or _student_name(values)
    cfg = DistillationCfg(student=student_cfg_class(name)())
    values["student"] = {**(values.get("student") or {}), "name": name}
    apply_values(cfg, values, "configs")
    for field_name, value in named.items():
        apply_values(cfg, {field_name if field_name == "task" else f"{field_name}.name": value}, "distill")
    _apply_typed(cfg, overrides)
    apply_values(cfg, flags, "distill")
    validate(cfg, loss_names)
    return Resolved(cfg, env, agent)


def resolve_distillation_cfg(overrides: Overrides, flags: Mapping[str, Any], **options: Any) -> DistillationCfg:
    """Return the distillation config alone (see :func:`resolve`)."""
    return resolve(overrides, flags, **options).cfg


def _split_groups(overrides: Overrides) -> tuple[dict[str, str | None], dict[str, str]]:
    """Tell choices that have a file from those that are the name of a student, a loss or a task."""
    typed = dict(overrides.groups)
    for item in [*overrides.scoped.get("distill", []), *overrides.bare]:
        if item.path == "student.name":  # the name decides which other fields there are: treat it as the choice
            typed["student"] = str(item.value)
    groups: dict[str, str | None] = {}
    named: dict[str, str] = {}
    for group, name in typed.items():
        valid = choices(group)
        if name in valid:
            groups[group] = name
        elif group == "task":
            named["task"] = name
        elif group in _BY_NAME:
            groups[group], named[group] = None, name
        else:
            raise UserError(f"unknown {group} '{name}'. {suggest(name, valid)}")
    return groups, named


def _student_name(values: Mapping[str, Any]) -> str:
    return str((values.get("student") or {}).get("name", StudentCfg().name))


def _apply_typed(cfg: DistillationCfg, overrides: Overrides) -> None:
    own = key_names(cfg)
    typed = list(overrides.scoped.get("distill", []))
    typed += [item for item in overrides.bare if item.path.partition(".")[0] in own]
    for item in typed:
        if item.path == "student.name":
            continue
        apply_values(cfg, {item.path: item.value}, "distill")


def _difference(values: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of ``values`` that ``other`` does not have like that."""
    result: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(other.get(key), Mapping):
            below = _difference(value, other[key])
            if below:
                result[key] = below
        elif key not in other or other[key] != value:
            result[key] = value
    return result


def _merge(base: dict[str, Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Write nested ``values`` over ``base``."""
    for key, value in values.items():
        if isinstance(value, Mapping) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value
    return base
