"""Hydra-style overrides of the command line: the config that each one belongs to, and its typed value."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from foundation.config.interpolation import has_interpolation, interpolate
from foundation.config.plain import to_plain
from foundation.config.validate import check_env_and_agent
from foundation.config.values import apply_values, key_names
from foundation.core.errors import UserError, suggest

GROUPS = ("student", "loss", "schedule", "dataset", "task", "experiment")
"""Folders under ``configs/``, each a choice of files: ``student=gru``."""

FLAG_NAMES = ("seed", "device", "experiment_name", "run_name", "logger")
"""Keys of several configs that mean, written bare, what the command's flag of that name does."""


class Assignment(NamedTuple):
    """One ``path=value`` of the command line."""

    path: str
    value: Any
    token: str
    """As it was typed."""


@dataclass
class Overrides:
    """Typed overrides, sorted by the config they are for."""

    groups: dict[str, str] = field(default_factory=dict)
    """Choices of files: group -> name."""
    scoped: dict[str, list[Assignment]] = field(default_factory=dict)
    """Assignments with a prefix: ``env``, ``agent`` or ``distill`` -> paths without it."""
    bare: list[Assignment] = field(default_factory=list)
    """Assignments without a prefix: their first name is a key of one config."""

    def configure(self, env_cfg: object, agent_cfg: object, own_cfg: object = None, own_scope: str = "distill") -> None:
        """Apply ``env.``, ``agent.`` and bare overrides, once a simulator is up and its configs are known.

        Args:
            env_cfg: The environment's config, changed in place.
            agent_cfg: The agent's config, changed in place.
            own_cfg: The command's own config (``DistillationCfg``, ``FinetuneCfg``), whose overrides are applied
                already; None in the commands that have none.
            own_scope: Its prefix.

        Raises:
            UserError: For an unknown key, a wrong type, or a bare key that matches more than one config.
        """
        configs = {"env": env_cfg, "agent": agent_cfg}
        for scope in configs:
            for item in self.scoped.get(scope, []):
                _apply_one(configs, scope, item, {own_scope: own_cfg})
        if own_cfg is not None:
            configs[own_scope] = own_cfg
        for item in self.bare:
            scope = self._scope_of(item, configs)
            if scope != own_scope:
                _apply_one(configs, scope, item, {own_scope: own_cfg})
        check_env_and_agent(env_cfg, agent_cfg)

    def take(self, names: Sequence[str]) -> list[str]:
        """Remove the assignments to these bare names, and return them as they were typed."""
        taken = [item.token for item in self.bare if item.path in names]
        self.bare = [item for item in self.bare if item.path not in names]
        return taken

    @staticmethod
    def _scope_of(item: Assignment, configs: dict[str, Any]) -> str:
        head = item.path.partition(".")[0]
        names = {scope: key_names(cfg) if cfg is not None else [] for scope, cfg in configs.items()}
        found = [scope for scope, keys in names.items() if head in keys]
        if len(found) == 1:
            return found[0]
        if head in FLAG_NAMES and len(found) > 1:
            return next((scope for scope in found if scope not in ("env", "agent")), "agent")
        if found:
            choices = ", ".join(f"{scope}.{item.path}" for scope in found)
            raise UserError(f"override '{item.token}' could mean any of {choices}: write the one you want")
        valid = [key for keys in names.values() for key in keys]
        known = ", ".join(configs)
        raise UserError(f"override '{item.token}': no key '{head}' in any of {known}. {suggest(head, valid)}")


def _apply_one(configs: dict[str, Any], scope: str, item: Assignment, own: dict[str, object]) -> None:
    """Set one key of the environment's or the agent's config."""
    value = item.value
    if has_interpolation(value):
        known = {name: to_plain(cfg) for name, cfg in {**configs, **own}.items() if cfg is not None}
        value = interpolate(value, known, f"override '{item.token}'")
    apply_values(configs[scope], {item.path: value}, scope, null=True)


def parse_overrides(tokens: Sequence[str], scopes: Sequence[str] = ("env", "agent", "distill")) -> Overrides:
    """Read ``key=value`` tokens.

    ``student=gru`` and ``distill.student=gru`` choose a file of ``configs/student`` (where ``distill`` is a scope);
    ``env.x=..``, ``agent.x=..`` and ``distill.x=..`` name their config; anything else is bare.

    Raises:
        UserError: For a token that is not ``key=value``, has a Hydra prefix (``+``, ``~``) or is a sweep.
    """
    result = Overrides()
    for token in tokens:
        item = _parse(token)
        head, _, rest = item.path.partition(".")
        group = _group_of(item) if "distill" in scopes else None
        if group is not None:
            before = result.groups.setdefault(group, str(item.value))
            if before != item.value:
                raise UserError(f"override '{token}': {group}={before} is typed too; choose one")
        elif head in scopes:
            if not rest:
                raise UserError(f"override '{token}' replaces a whole config: set one key of it, {head}.<key>=<value>")
            result.scoped.setdefault(head, []).append(item._replace(path=rest))
        else:
            result.bare.append(item)
    return result


def _group_of(item: Assignment) -> str | None:
    name = item.path.removeprefix("distill.")
    if name not in GROUPS or isinstance(item.value, dict):
        return None
    if not isinstance(item.value, str) or not item.value:
        raise UserError(f"override '{item.token}': {name} is chosen by name, {name}=<name>")
    return name


def _parse(token: str) -> Assignment:
    key, equals, _ = token.partition("=")
    if token[:1] in "+~":
        bare = token.lstrip("+~")
        raise UserError(
            f"override '{token}': keys can be neither added (+) nor removed (~), only set; write '{bare}' without the "
            f"prefix"
        )
    if not equals or not key:
        raise UserError(f"'{token}' is neither a flag (--name) nor an override (key=value)")
    if "@" in key or "/" in key:
        raise UserError(f"override '{token}': the key must be dotted names, such as env.scene.num_envs")
    parsed = _read(token)
    if parsed.is_sweep_override():
        raise UserError(
            f"override '{token}' is a sweep: add --multirun, or give one value, or a list in brackets, {key}=[...]"
        )
    return Assignment(key, parsed.value(), token)


def key_of(token: str) -> str:
    """Return the key of a token, without Hydra's ``+`` and ``~``."""
    return token.lstrip("+~").partition("=")[0]


def is_sweep(token: str) -> bool:
    """Return whether a token has several values: ``seed=1,2,3``, ``seed=range(1,4)``."""
    return "=" in token and _read(token).is_sweep_override()


_MAX_VALUES = 10_000
"""Values of one key that a sweep runs over."""


def values_of(token: str) -> list[str]:
    """Return the tokens that a sweep stands for, ``seed=1`` and ``seed=2``; none where its sweeper alone can say."""
    from hydra.core.override_parser.types import Glob

    parsed = _read(token)
    if not parsed.is_discrete_sweep():
        return []
    if isinstance(parsed.value(), Glob):
        raise UserError(f"override '{token}': glob() finds nothing here: write the names, {key_of(token)}=a,b,c")
    values = list(itertools.islice(parsed.sweep_string_iterator(), _MAX_VALUES + 1))
    if not values:
        raise UserError(f"override '{token}' has no value to run over")
    if len(values) > _MAX_VALUES:
        raise UserError(
            f"override '{token}' has more than {_MAX_VALUES} values: a sweep runs a job for each; give fewer"
        )
    return [f"{parsed.get_key_element()}={value}" for value in values]


@functools.cache
def _parser() -> Any:
    from hydra.core.override_parser.overrides_parser import OverridesParser

    return OverridesParser.create()


def _read(token: str) -> Any:
    from hydra.errors import HydraException

    try:
        return _parser().parse_override(token)
    except HydraException as error:
        reason = " ".join(str(error).split())
        key = token.partition("=")[0]
        raise UserError(f"override '{token}' cannot be read ({reason}); quote text: {key}=\\'...\\'") from None
