"""Checkpoint formats, one file each, recognised by content.

A module of this folder has ``KEYS`` (the checkpoint's entries that it reads, such as ``{"model_state_dict"}``; None
where the checkpoint is the weights themselves), ``recognise(checkpoint) -> bool`` and
``load(checkpoint, source) -> LoadedPolicy``. The first that recognises a checkpoint reads it. A format that is not a
PyTorch checkpoint has ``recognise_file(path, head) -> bool`` and ``load_file(source) -> LoadedPolicy`` instead.
A module with ``LAST = True`` is asked after the others.
A module of another package registers itself by :func:`register_format` when it is imported.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from foundation.checkpoints.as_is import load_as_is
from foundation.checkpoints.reading.agent_config import AgentConfig
from foundation.checkpoints.reading.assembler import expect
from foundation.checkpoints.reading.joint_order import with_joint_order
from foundation.checkpoints.reading.loading import EXPORT_IT, LoadedPolicy, Overrides, Source, report_unknown, unwrapped
from foundation.checkpoints.reading.outputs import take_outputs_as_given
from foundation.checkpoints.reading.vecnormalize import bare_moments
from foundation.config.env_state import read_env_state
from foundation.core.archives import ArchiveError, check_regular
from foundation.core.errors import UserError
from foundation.core.files import load_checkpoint
from foundation.core.pointers import refuse_pointer

_TRAINING_KEYS = {"optimizer_state_dict", "rnd_state_dict", "rnd_optimizer_state_dict", "iter", "infos"}

_registered: dict[str, ModuleType] = {}
"""Formats of other packages, by the module's name."""


def register_format(name: str) -> None:
    """Add a format of another package; it is asked before the formats of this folder.

    Call it in the last line of the module, as ``register_format(__name__)``, and import the module with
    ``--import pkg.module``.

    Args:
        name: Name of the module, whose functions are those that a module of this folder has.

    Raises:
        UserError: If a function or ``KEYS`` is missing.
    """
    module = sys.modules[name]
    for needed in (("recognise_file", "load_file"), ("KEYS", "recognise", "load")):
        missing = [attribute for attribute in needed if not hasattr(module, attribute)]
        if not missing:
            _registered[name] = module
            return
    raise UserError(
        f"checkpoint format '{name}' must define recognise_file and load_file, or KEYS, recognise and load, "
        "before it calls register_format"
    )


def load_policy(path: str | Path, overrides: Overrides) -> LoadedPolicy:
    """Read a policy from any known kind of checkpoint.

    Args:
        path: The checkpoint.
        overrides: What the user has set for it, which takes precedence over what the checkpoint holds.
    """
    file = Path(path)
    try:
        check_regular(file)
    except ArchiveError as error:
        raise UserError(f"'{file}' cannot be read: {error}. Check the path.") from None
    refuse_pointer(file)
    source = Source(file, overrides, AgentConfig())
    head = _head(file)
    if overrides.run_as_is:
        source.agent = AgentConfig.beside(file, overrides.agent_config)
        return with_joint_order(_checked(load_as_is(source, head), source), source)
    for module in _modules("load_file"):
        if module.recognise_file(file, head):
            source.agent = AgentConfig.beside(file, overrides.agent_config)
            return with_joint_order(_checked(module.load_file(source), source), source)
    checkpoint = {name: _unwrapped(value) for name, value in load_checkpoint(file).items()}
    source.agent = AgentConfig.beside(file, overrides.agent_config)
    for module in _modules("load"):
        if module.recognise(checkpoint):
            if module.KEYS is not None:
                unknown = [key for key in checkpoint if _holds_tensors(checkpoint[key])]
                unknown = sorted(set(unknown).difference(module.KEYS, _TRAINING_KEYS))
                report_unknown(unknown, f"'{file}'", overrides.strict)
            policy = _checked(module.load(checkpoint, source), source)
            _refuse_moments_beside(policy, source)
            policy = with_joint_order(policy, source, checkpoint)
            return replace(policy, info=replace(policy.info, env_state=read_env_state(checkpoint, f"'{file}'")))
    shown = ", ".join(f"'{key}'" for key in sorted(checkpoint)[:6]) or "nothing"
    advice = EXPORT_IT if _holds_tensors(checkpoint) else "Check the path"
    raise UserError(f"'{file}' is not a policy checkpoint of a known format: it holds {shown}. {advice}.")


def _checked(policy: LoadedPolicy, source: Source) -> LoadedPolicy:
    """Take the outputs as the user has set them; refuse what is set and the file fixes itself."""
    given = source.overrides.activation
    found = policy.info
    if given is not None and found.activation_from != "override":
        raise UserError(
            f"'{source.path}' ({found.format}) fixes its own activation ('{found.activation}'), so that "
            f"'{given}' has no effect: leave out --teacher_activation (distill.teacher.activation)."
        )
    for name in ("distribution", "action_range"):
        value = getattr(source.overrides, name)
        if value is not None and name not in source.heard and value != found.distribution:
            raise UserError(
                f"'{source.path}' ({found.format}) fixes how its outputs make actions ({found.distribution}), so that "
                f"distill.teacher.{name}={value} has no effect: leave it out."
            )
    if source.overrides.head is not None and "head" not in found.more:
        raise UserError(
            f"'{source.path}' ({found.format}) is a policy of one task, so that distill.teacher.head="
            f"{source.overrides.head} has no effect: leave it out."
        )
    return take_outputs_as_given(policy, source)


def _refuse_moments_beside(policy: LoadedPolicy, source: Source) -> None:
    """Refuse to take a policy for one without a normaliser where moments of observations lie beside it."""
    folder = source.path.absolute().parent
    beside = [] if policy.info.obs_normalization else bare_moments(folder)
    message = f"has no observation normaliser, but '{beside[0].name}' lies beside it" if beside else ""
    advice = f"where it belongs to it, use it: {EXPORT_IT}; else move it elsewhere"
    expect(not beside, source, f"{message}: {advice}")


def _modules(function: str) -> Iterator[ModuleType]:
    """Yield the formats that have a function: registered ones in the order of their imports, then this folder's."""
    yield from (module for module in _registered.values() if hasattr(module, function))
    names = sorted(info.name for info in pkgutil.iter_modules([str(Path(__file__).parent)]))
    own = [importlib.import_module(f"{__name__}.{name}") for name in names]
    own.sort(key=lambda module: getattr(module, "LAST", False))
    yield from (module for module in own if hasattr(module, function))


def _unwrapped(value: Any) -> Any:
    """Return a state_dict without its wrappers' names, which hide the entries that a format is recognised by."""
    is_state = isinstance(value, dict) and value and all(isinstance(item, torch.Tensor) for item in value.values())
    return unwrapped(value) if is_state else value


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as stream:
            return stream.read(16)
    except (OSError, ValueError):
        return b""  # load_checkpoint raises the error for a file that cannot be read


def _holds_tensors(value: object) -> bool:
    if isinstance(value, dict):
        return any(_holds_tensors(item) for item in value.values())
    return isinstance(value, torch.Tensor)
