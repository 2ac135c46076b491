"""One-line errors for environments that Isaac Lab cannot make: its asset server, a broken file, a missing name."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from foundation.core.errors import UserError
from foundation.core.text import one_line, shorten

_PATHS = ("usd_path", "asset_path")
"""Fields of Isaac Lab's spawner configs that hold an asset's place."""
_LOADERS = ("retrieve_file_path", "check_file_path", "check_usd_path_with_timeout")
"""Isaac Lab's functions that fetch or look for the file that their parameter ``path`` or ``usd_path`` names."""
_ROOT = "ISAACSIM_ASSET_ROOT"
_KIT_ROOT = "--kit_args=--/persistent/isaac/asset_root/cloud"
_DEPTH = 12
"""How deep configs are nested at most."""


@dataclass(frozen=True)
class Asset:
    """A file that the environment's config asks for."""

    key: str
    """Its place in the config, as it is typed: ``env.scene.robot.spawn.usd_path``."""
    path: str
    prim: str
    """Where in the stage it goes: ``/World/envs/env_.*/Robot``; "" where the config does not state it."""
    optional: str
    """What may be set to null to do without it, or ""."""


@contextmanager
def naming_assets(task: str, env_cfg: object, *, major: int) -> Iterator[None]:
    """Turn what goes wrong inside Isaac Lab, while it makes an environment, into one line for the user.

    Args:
        task: Gym id of the task.
        env_cfg: What the environment is made from.
        major: Isaac Lab's version.

    Raises:
        UserError: Names the asset, its server and what to set; or Isaac Lab's own reason, after its traceback. An error
            of the user's code, or of this package's, is left as it is.
    """
    try:
        yield
    except Exception as error:
        path = _asset_of(error)
        assets = list(find_assets(env_cfg, "env"))
        if path is not None:
            raise UserError(_asset_line(path, error, assets, major)) from error
        if not _inside_isaac_lab(error.__traceback__):
            raise
        traceback.print_exception(error, file=sys.stderr)
        raise UserError(
            f"task '{task}': Isaac Lab cannot make its environment: {type(error).__name__}: {one_line(error, 400)}"
            f"{_asset_named(str(error), assets)}"
        ) from error


def find_assets(cfg: object, key: str, prim: str = "", optional: str = "", depth: int = 0) -> Iterator[Asset]:
    """Find the assets of a config, each with its place.

    Args:
        cfg: A config object, mapping or list.
        key: Its own place, such as ``env``.
        prim: Where in the stage the asset that holds it goes.
        optional: What may be set to null to do without that asset.
        depth: How deep it is nested.
    """
    if depth > _DEPTH or isinstance(cfg, str | bytes | int | float | type | None):
        return
    if isinstance(cfg, list | tuple):
        items: list[tuple[Any, Any]] = list(enumerate(cfg))
    else:
        items = list(cfg.items()) if isinstance(cfg, Mapping) else list(getattr(cfg, "__dict__", {}).items())
    values = dict(items)
    if isinstance(values.get("prim_path"), str):
        prim = values["prim_path"]
        # Isaac Lab's scene leaves out what is null; the task's own code asks for its robots by name.
        optional = key if type(cfg).__name__ == "AssetBaseCfg" else ""
    for name, value in items:
        if name in _PATHS and isinstance(value, str):
            yield Asset(f"{key}.{name}", value, prim, optional)
        elif not str(name).startswith("_"):
            yield from find_assets(value, f"{key}.{name}", prim, optional, depth + 1)


def _asset_of(error: BaseException) -> str | None:
    """Return the path of the asset that was being read when the error was raised, or None."""
    for frame in reversed(_frames(error.__traceback__)):
        if frame.tb_frame.f_code.co_name == _LOADERS[0] or "USD file not found" in str(error):
            values = frame.tb_frame.f_locals
            found = values.get("usd_path", values.get("path"))
            if isinstance(found, str):
                return found
    return None


def _asset_line(path: str, error: BaseException, assets: list[Asset], major: int) -> str:
    asset = next((asset for asset in assets if asset.path == path), None)
    root = f"{_ROOT}=FOLDER" if major >= 3 else f"{_KIT_ROOT}=FOLDER"
    place = f" ({asset.key})" if asset else ""
    ways = [f"{asset.key}=FILE"] if asset else []
    ways += [f"{asset.optional}=null to do without it"] if asset and asset.optional else []
    url = urlsplit(path)
    if url.scheme and url.netloc:
        where = f"the asset server {url.scheme}://{url.netloc}"
        why = f"{where} cannot be reached, or does not have it"
        if _lacks_client(error):
            why = f"fetching it from {where} needs the Python package omniverseclient, which is not installed"
        ways.insert(0, f"{root} to a local copy of the assets (FOLDER has Isaac/ in it)")
        return f"asset '{path}'{place} cannot be loaded: {why}: set {', or '.join(ways)}"
    if not Path(path).is_file():
        under = os.environ.get(_ROOT)
        ways = [f"{root} to a whole copy of the assets", *ways] if under and path.startswith(under) else ways
        return f"asset '{path}'{place} cannot be loaded: there is no such file: {_set(ways)}"
    inner = _referred_to(error)
    if inner is not None and inner != path:
        return f"asset '{path}'{place} refers to '{shorten(inner, 200)}', which cannot be found: {_set(ways)}"
    return f"asset '{path}'{place} is broken, not a file that USD can read ({_reason(error)}): {_set(ways)}"


def _set(ways: list[str]) -> str:
    return f"replace it, or set {', or '.join(ways)}" if ways else "replace it"


def _reason(error: BaseException) -> str:
    """Take pxr's words without the places in its source."""
    text = " ".join(str(error).split())
    return one_line(text.rpartition(".cpp : ")[2].rpartition(".h : ")[2].strip("'\" ") or text, 200)


def _lacks_client(error: BaseException) -> bool:
    return isinstance(error, ImportError) and str(error.name or "").partition(".")[0] == "omni"


def _referred_to(error: BaseException) -> str | None:
    """Return the file inside the asset that was looked for last, where the error came from there."""
    for frame in reversed(_frames(error.__traceback__)):
        code = frame.tb_frame.f_code.co_name
        found = frame.tb_frame.f_locals.get("path")
        if code in _LOADERS[1:] and isinstance(found, str):
            return found
    return None


def _asset_named(message: str, assets: list[Asset]) -> str:
    """Return which of the config's assets a message is about: it has the file's path, or the end of the prim's."""
    for asset in assets:
        last = asset.prim.rpartition("/")[2]
        if asset.path in message or (last and f"/{last}'" in message):
            return f" (asset {asset.key}='{asset.path}')"
    return ""


def _frames(trace: TracebackType | None) -> list[TracebackType]:
    frames: list[TracebackType] = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    return frames


def _inside_isaac_lab(trace: TracebackType | None) -> bool:
    """Return whether everything above this module, up to the place of the error, is Isaac Lab's or a library's."""
    files = [Path(frame.tb_frame.f_code.co_filename) for frame in _frames(trace)]
    ours = max((i for i, file in enumerate(files) if _PACKAGE in file.parents), default=-1)
    above = files[ours + 1 :]
    isaac = [any(part.startswith("isaaclab") for part in file.parts) for file in above]
    installed = [bool({"site-packages", "dist-packages"} & set(file.parts)) for file in above]
    return any(isaac) and all(one or other for one, other in zip(isaac, installed, strict=True))


_PACKAGE = Path(__file__).resolve().parents[1]
