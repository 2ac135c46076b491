"""Print the flags of a command, and the fields of the config known by then: ``python show_parser.py SCRIPT``.

The script is run with ``--help``; the parser whose help it would show is printed as JSON. Fields are those of the
dataclass named ``DistillationCfg``, wherever it is defined.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import runpy
import sys
import typing
from pathlib import Path
from typing import Any, NoReturn


def flags(parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return flag -> default; positional arguments by their names."""
    found = {}
    for action in parser._actions:
        default = None if action.default is argparse.SUPPRESS else action.default
        found.update(dict.fromkeys(action.option_strings or [action.dest], default))
    return found


def keys(cfg: type, prefix: str = "") -> dict[str, dict[str, Any]]:
    """Return dotted key -> type and default; keys of a nested config that may be absent come without its defaults."""
    found: dict[str, dict[str, Any]] = {}
    hints = typing.get_type_hints(cfg)
    for field in dataclasses.fields(cfg):
        name = prefix + field.name
        nested = [kind for kind in (hints[field.name], *typing.get_args(hints[field.name])) if _is_config(kind)]
        if hints[field.name] not in nested:
            found[name] = {"type": str(field.type), "default": _default(field)}
        for kind in nested:
            found |= keys(kind, f"{name}.")
    return found


def _is_config(kind: Any) -> bool:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind)


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def show(parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
    """Print the parser and leave, in place of showing its help."""
    classes = [getattr(module, "DistillationCfg", None) for module in list(sys.modules.values())]
    cfg = next((kind for kind in classes if _is_config(kind)), None)
    print(json.dumps({"flags": flags(parser), "keys": {} if cfg is None else keys(cfg)}), flush=True)
    os._exit(0)


if __name__ == "__main__":
    script = Path(sys.argv[1])
    sys.argv = [str(script), "--help"]
    sys.path[0] = str(script.parent)
    argparse.ArgumentParser.print_help = show  # type: ignore[method-assign]
    runpy.run_path(str(script), run_name="__main__")
