"""The config ``params/agent.yaml`` beside a checkpoint, in any layout that RSL-RL has had."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.core.errors import UserError
from foundation.core.files import load_yaml
from foundation.core.pointers import refuse_pointer
from foundation.core.text import shorten

logger = logging.getLogger(__name__)

_SECTIONS = {"actor": ("actor", "policy"), "critic": ("critic", "policy"), "student": ("student", "policy")}
_FOLDERS_OF_A_RUN = ("exported", "nn", "checkpoints")
"""Folders that a run keeps policies in: of RSL-RL's exports in Isaac Lab, of rl_games and of skrl."""
_GROUP_SETS = {"actor": ("actor", "policy"), "critic": ("critic",), "student": ("student", "policy")}


@dataclass(frozen=True)
class AgentConfig:
    """The agent config of a training run, read without making any object; empty when there is none."""

    path: Path | None = None
    """The file it came from."""
    data: dict[str, Any] = field(default_factory=dict)
    """Its content."""

    @classmethod
    def beside(cls, checkpoint: Path, given: str | Path | None = None) -> AgentConfig:
        """Read the config of the run that a checkpoint belongs to.

        It lies in the checkpoint's own folder, or in the run's where that folder is one that runs keep policies in
        (``exported``, ``nn``, ``checkpoints``). What lies above any other folder belongs to something else.

        Args:
            checkpoint: Path of the checkpoint.
            given: A config file to use instead of the one beside the checkpoint.
        """
        path = Path(given) if given is not None else _found_beside(checkpoint)
        if path is None:
            return cls()
        data = load_yaml(path)
        if not isinstance(data, dict):
            raise UserError(f"'{path}' is not an agent config: a mapping was expected. Move it away or mend it.")
        return cls(path, data)

    def role(self) -> str:
        """Return which network the run trained: ``student`` in a distillation, else ``actor``."""
        policy = self.data.get("policy")
        kind = str(policy.get("class_name", "")) if isinstance(policy, dict) else ""
        return "student" if isinstance(self.data.get("student"), dict) or "StudentTeacher" in kind else "actor"

    def option(self, role: str, name: str) -> Any:
        """Return an option of one network, or None.

        Args:
            role: ``actor``, ``critic`` or ``student``.
            name: The option's name in RSL-RL 4 and later, such as ``hidden_dims``; older prefixes are tried too.
        """
        for section_name in _SECTIONS[role]:
            section = self.data.get(section_name)
            if not isinstance(section, dict):
                continue
            names = (f"{role}_{name}", name) if section_name == "policy" else (name,)
            for key in names:
                if _is_given(section.get(key)):
                    return section[key]
        return None

    def obs_groups(self, role: str) -> list[str] | None:
        """Return the observation groups that a network reads, or None when the config does not state them."""
        sets = self.data.get("obs_groups")
        if not isinstance(sets, dict):
            return None
        for name in _GROUP_SETS[role]:
            groups = sets.get(name)
            if isinstance(groups, list) and groups and all(isinstance(g, str) for g in groups):
                return list(groups)
        return None

    def normalizes(self, role: str) -> bool:
        """Return whether the config states that a network's observations are normalised."""
        own = self.option(role, "obs_normalization")
        return (own if isinstance(own, bool) else self.data.get("empirical_normalization")) is True

    def clip_actions(self) -> float | None:
        """Return the bound that the run clipped its actions to, or None."""
        value = self.data.get("clip_actions")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    def distribution(self, role: str) -> tuple[str | None, dict[str, Any]]:
        """Return the kind of action distribution that the config names, or None, and its options."""
        given = self.option(role, "distribution_cfg")
        if isinstance(given, dict):
            name = str(given.get("class_name", "")).replace(":", ".").split(".")[-1]
            kind = {
                "GaussianDistribution": "gaussian",
                "HeteroscedasticGaussianDistribution": "heteroscedastic",
                "BetaDistribution": "beta",
            }.get(name)
            if kind is None:
                raise UserError(
                    f"'{self.path}' names the action distribution '{shorten(name)}', which is not known. "
                    "Set the one that it resembles: distill.teacher.distribution."
                )
            return kind, {"std_range": [1e-6, 1e6]} | given  # the library's own default
        options = {"std_type": self.option(role, "noise_std_type") or "scalar"}
        if self.option(role, "state_dependent_std") is True:
            return "heteroscedastic", options
        fixed = self.option(role, "state_dependent_std") is False and self.option(role, "stochastic") is not False
        return "gaussian" if fixed else None, options


def _found_beside(checkpoint: Path) -> Path | None:
    """Return the config file of the run that a checkpoint lies in, or None; say when it is not in its own folder."""
    folders = dict.fromkeys((checkpoint.absolute().parent, checkpoint.resolve().parent))  # it may be a link
    for folder in folders:
        for place in (folder / "params" / "agent.yaml", folder / "agent.yaml"):
            if _is_there(place):
                return place
        above = folder.parent / "params" / "agent.yaml"
        if folder.name in _FOLDERS_OF_A_RUN and _is_there(above):
            logger.info("'%s': reading '%s', as '%s' is a folder of that run.", checkpoint, above, folder.name)
            return above
    return None


def _is_there(path: Path) -> bool:
    """Return whether there is a file; a link to nothing is refused, not passed over: what it says would be lost."""
    refuse_pointer(path)
    return path.is_file()


def _is_given(value: object) -> bool:
    """Return whether a value is set: neither empty nor what Isaac Lab's MISSING sentinel leaves in a YAML file."""
    return value is not None and not (isinstance(value, dict) and not value) and value != "???"


def at(data: object, *keys: object) -> Any:
    """Return what lies under a path of keys in nested mappings and lists, or None."""
    for key in keys:
        if isinstance(data, dict):
            data = data.get(key)
        elif isinstance(data, list) and isinstance(key, int) and key < len(data):
            data = data[key]
        else:
            return None
    return data


def section(data: object, *keys: object) -> dict[str, Any]:
    """Return the mapping that lies under a path of keys; an empty one where there is none."""
    found = at(data, *keys)
    return found if isinstance(found, dict) else {}


def number(value: Any, default: float) -> float:
    """Return a config's number, or the default where there is none."""
    given = isinstance(value, int | float) and not isinstance(value, bool) and value == value  # NaN is not itself
    return float(value) if given else default
