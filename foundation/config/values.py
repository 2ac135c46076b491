"""Typed, closed updates of any dataclass-like config: this project's, an Isaac Lab ``configclass``, or a dict."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from typing import Any

from foundation.config.plain import field_of, key_of
from foundation.config.typing_fit import (
    MisfitError,
    choices_of,
    describe,
    field_hints,
    fit,
    is_mapping,
    members,
    value_hint,
)
from foundation.core.errors import UserError, suggest

_SPLIT_BRACES = re.compile(r"[^\s:{}]+:[^:{}]+$")
"""What a shell leaves of ``key={a:1,b:2}`` without quotes: ``key=a:1`` and ``key=b:2``."""


def apply_values(cfg: object, values: Mapping[str, Any], where: str = "", *, null: bool = False) -> None:
    """Set fields of a config in place, checking names and types.

    Args:
        cfg: A dataclass instance, any object with instance fields, or a dict.
        values: Nested mappings and dotted keys, mixed as you like: ``{"scene": {"num_envs": 8}, "sim.dt": 0.01}``.
        where: What ``cfg`` is called, for messages: ``"distill"``, ``"env"``.
        null: Whether null switches off whatever is no plain number, as Isaac Lab's users do with a term of a manager
            (``env.rewards.alive=null``), though the field is not annotated as optional.

    Raises:
        UserError: If a key does not exist or a value does not fit its type; names the full key.
    """
    _Update(cfg, where, null).apply(cfg, values, Any, where)


def key_names(cfg: Any) -> list[str]:
    """List the keys that may be set on a config object."""
    if isinstance(cfg, Mapping):
        return [str(k) for k in cfg]
    if isinstance(cfg, (list, tuple)):
        return [str(i) for i in range(len(cfg))]
    names = [key_of(f.name) for f in dataclasses.fields(cfg)] if _is_dataclass(cfg) else []
    names += [key_of(n) for n in getattr(cfg, "__dict__", {}) if not n.startswith("_")]
    return list(dict.fromkeys(names))


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_missing(value: object) -> bool:
    return type(value).__name__ in ("_MISSING_TYPE", "MISSING") or value is dataclasses.MISSING


def _is_config(value: object) -> bool:
    """Return whether a value has fields to go down into."""
    if _is_dataclass(value):
        return not _is_missing(value)
    if isinstance(value, (Mapping, list, tuple)):
        return True
    plain = isinstance(value, (str, bytes, int, float, type)) or value is None or callable(value)
    return not plain and not _is_missing(value) and bool(getattr(value, "__dict__", None))


def _key_paths(cfg: object, where: str, depth: int = 5) -> Iterator[str]:
    """List the dotted keys of a config, those of its parts last; a config may hold itself, hence the depth."""
    parts: list[tuple[object, str]] = []
    for name in key_names(cfg):
        path = f"{where}.{name}" if where else name
        yield path
        value = cfg.get(name) if isinstance(cfg, Mapping) else getattr(cfg, field_of(name), None)
        if depth > 1 and _is_config(value) and not isinstance(value, (list, tuple)):
            parts.append((value, path))
    for value, path in parts:
        yield from _key_paths(value, path, depth - 1)


class _Update:
    """One update of a config.

    Args:
        root: The whole config.
        where: What it is called.
        null: Whether null switches off what is not optional.
    """

    def __init__(self, root: object, where: str, null: bool):
        self.root = root
        self.where = where
        self.null = null

    def apply(self, target: object, values: Mapping[str, Any], hint: object, where: str) -> None:
        """Set the fields of one object, each by its own or by a dotted key."""
        for key, value in values.items():
            head, _, rest = str(key).partition(".")
            self._set(target, head, {rest: value} if rest else value, hint, where)

    def _set(self, target: object, name: str, value: object, hint: object, where: str) -> None:
        full = f"{where}.{name}" if where else name
        names = key_names(target)
        opened = isinstance(target, dict) and is_mapping(hint) and not _needs_arguments(value_hint(hint))
        if name not in names and not opened:
            raise UserError(f"unknown key '{full}'. {self._suggest(name, names)}")
        if isinstance(target, dict):
            key = next((k for k in target if str(k) == name), name)
            own_hint = value_hint(hint)
            if value is None and key not in target and not self.null:  # an entry that was not there has no null to keep
                _refuse_null(own_hint, full)
            target[key] = self._merge(target.get(key), value, own_hint, full)
        elif isinstance(target, list):
            target[int(name)] = self._merge(target[int(name)], value, Any, full)
        else:
            own = field_of(name)
            own_hint = field_hints(type(target)).get(own, Any)
            setattr(target, own, self._merge(getattr(target, own, None), value, own_hint, full))

    def _suggest(self, name: str, names: list[str]) -> str:
        """Answer an unknown key with the nearest beside it, else with one of that name elsewhere in the config."""
        if not get_close_matches(name, names):
            paths: dict[str, str] = {}
            for path in _key_paths(self.root, self.where):
                paths.setdefault(path.rpartition(".")[2], path)
            near = get_close_matches(name, paths, n=1, cutoff=0.8)
            if near:
                return f"Did you mean '{paths[near[0]]}'?"
        return suggest(name, names)

    def _merge(self, current: object, value: object, hint: object, full: str) -> Any:
        if isinstance(value, Mapping):
            return self._merge_mapping(current, value, hint, full)
        if value is None and self.null and not isinstance(current, (bool, int, float)):
            return None
        return _convert(current, value, hint, full)

    def _merge_mapping(self, current: object, value: Mapping[str, Any], hint: object, full: str) -> Any:
        if isinstance(current, dict):
            current = dict(current)  # a default may be shared between instances
        elif isinstance(current, (list, tuple)):
            return self._merge_items(current, value, full)
        elif not _is_config(current):
            nested = _makeable(hint)
            if nested:
                current = nested[0]()
            elif is_mapping(hint):
                current = {}
            else:
                key = next(iter(value), "")
                raise UserError(f"'{full}' is {_show(current)}, so '{full}.{key}' cannot be set: {full} {_wants(hint)}")
        self.apply(current, value, hint, full)
        return current

    def _merge_items(self, current: list | tuple, value: Mapping[str, Any], full: str) -> Any:
        """Set items by their index: ``env.goals.0.x=1``."""
        items = list(current)
        self.apply(items, value, Any, full)
        return items if isinstance(current, list) else tuple(items)


def _convert(current: object, value: object, hint: object, full: str) -> Any:
    if _is_missing(current):
        current = None
    if hint is Any and current is not None and not callable(current):
        hint = type(current)
    if value is None and current is None:
        return None
    try:
        return fit(value, hint)
    except MisfitError as misfit:
        expected = str(misfit)
    if current is not None and not _fits(current, hint):
        try:  # an annotation that its own default contradicts: go by the default
            return fit(value, type(current))
        except MisfitError as misfit:
            expected = str(misfit)
    choices = choices_of(hint)
    if choices and isinstance(value, str):
        raise UserError(f"'{full}' is {_show(value)}. {suggest(value, choices)}")
    if isinstance(value, str) and _SPLIT_BRACES.match(value) and _fits({"key": 0}, hint):
        raise UserError(
            f"'{full}' is {_show(value)}: it must be {expected}; the shell splits braces without quotes: "
            f"type '{full}={{{value}, ...}}' with the quotes"
        )
    such = f", such as {full}=[{value}]" if isinstance(value, (str, int, float)) and _fits([value], hint) else ""
    raise UserError(f"'{full}' is {_show(value)}: it must be {expected}{such}")


def _refuse_null(hint: object, full: str) -> None:
    """Raise ``UserError`` unless a type has a null."""
    if hint is not Any and not _fits(None, hint):
        raise UserError(f"'{full}' is null: it must be {describe(hint)}")


def _fits(value: object, hint: object) -> bool:
    try:
        fit(value, hint)
    except MisfitError:
        return False
    return True


def _needs_arguments(hint: object) -> bool:
    """Return whether a type is a config's with fields that have no default: no key of it can be set on its own."""
    return any(_is_config_class(member) for member in members(hint)) and not _makeable(hint)


def _makeable(hint: object) -> list[Any]:
    """List the dataclasses of an annotation that can be made without arguments."""
    kinds: list[Any] = [member for member in members(hint) if _is_config_class(member)]
    return [
        kind for kind in kinds if not inspect.isabstract(kind) and not any(map(_is_required, dataclasses.fields(kind)))
    ]


def _is_required(entry: dataclasses.Field[Any]) -> bool:
    return entry.init and entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING


def _is_config_class(value: Any) -> bool:
    return isinstance(value, type) and dataclasses.is_dataclass(value)


def _wants(hint: object) -> str:
    return "must be " + describe(hint) if hint is not Any else "has no fields"


def _show(value: object) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if not isinstance(value, float) else f"{value:g}"
