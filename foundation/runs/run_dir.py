"""The folder of a run: its name, its checkpoints, its parameters, its lock."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from foundation.config.plain import finite, to_plain
from foundation.core.errors import UserError, suggest
from foundation.core.files import atomic_torch_save, atomic_write_bytes, load_checkpoint, load_yaml, lock_folder
from foundation.core.program import command_name, note_run_folder
from foundation.core.text import quoted

logger = logging.getLogger(__name__)

_SHELL = re.compile(r"(?:^|(?<!\\)[\w-])[*?]")
"""A star or question mark behind a plain character, or first: a shell pattern rather than a regular expression."""
_STAMP = "%Y-%m-%d_%H-%M-%S"
_LONGEST_NAME = 200
"""Bytes of a name that a flag gives: the time and an ending still fit into the 255 that file systems take."""
_RUN_NAME = re.compile(r"(\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d)(?:_(.*))?")


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sort key in which ``model_1000`` comes after ``model_999``: runs of digits compare as numbers."""
    return [(1, int(part), "") if part.isdigit() else (0, 0, part) for part in re.split(r"(\d+)", name) if part]


class RunDir:
    """One run's folder, ``<root>/<experiment_name>/<YYYY-MM-DD_HH-MM-SS>[_run_name]``.

    Args:
        path: An existing folder.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self._lock: int | None = None
        self._identity: tuple[int, int] | None = None
        """Device and inode of the folder when it was locked."""
        self._made: list[Path] = []
        """Folders above this one that were made for it, innermost first."""

    def __repr__(self) -> str:
        return f"RunDir({str(self.path)!r})"

    @classmethod
    def create(cls, root: Path | str, experiment_name: str, run_name: str = "") -> RunDir:
        """Make the folder of a new run, named by the time and unlike every other's, and lock it.

        Raises:
            UserError: If the folder cannot be made or written to, or a name would leave ``root``.
        """
        if not experiment_name:
            raise UserError("--experiment_name is empty: it must be a plain name")
        check_name("experiment_name", experiment_name)
        check_name("run_name", run_name)
        parent = Path(root) / experiment_name
        suffix = f"_{run_name}" if run_name else ""
        moment = datetime.now()
        made = [folder for folder in (parent, *parent.parents) if not folder.exists()]
        try:
            while True:  # runs that start in the same second take the next free ones: names then sort by age
                parent.mkdir(parents=True, exist_ok=True)
                stamp = moment.strftime(_STAMP)
                path = parent / (stamp + suffix)
                if not any(parent.glob(f"{stamp}*")):
                    # FileNotFoundError: a run that failed took away the folder, which was empty then
                    with contextlib.suppress(FileExistsError, FileNotFoundError):
                        path.mkdir()
                        break
                moment += timedelta(seconds=1)
        except OSError as error:
            _remove_empty(made)
            raise UserError(f"cannot make the run's folder in {parent}: {error.strerror or error}") from None
        _warn_of_later_runs(path, moment)
        run = cls(path)
        run._made = made
        run.lock()
        note_run_folder(path)
        return run

    @classmethod
    def find(
        cls,
        root: Path | str,
        experiment_name: str | None = None,
        load_run: str | None = None,
        *,
        with_file: str | None = None,
    ) -> RunDir:
        """Find the newest run; the arguments are those of :meth:`find_all`."""
        return cls.find_all(root, experiment_name, load_run, with_file=with_file)[-1]

    @classmethod
    def find_all(
        cls,
        root: Path | str,
        experiment_name: str | None = None,
        load_run: str | None = None,
        *,
        with_file: str | None = None,
    ) -> list[RunDir]:
        """Find the runs that are meant, the newest last.

        Args:
            root: ``logs/distillation``, ``logs/rsl_rl``.
            experiment_name: Only this experiment's runs. None: any experiment's.
            load_run: A run's name, a regular expression for it, or the path of a run's folder. None: any run.
            with_file: Where several match, only those count that have this file, unless none has.

        Raises:
            UserError: If there is no such run; names those there are.
        """
        if load_run is not None and os.sep in load_run and Path(load_run).is_dir():
            return [cls(load_run)]
        root = Path(root)
        parents = [root / experiment_name] if experiment_name else _folders(root)
        runs = sorted((p for parent in parents for p in _folders(parent) if _is_run(p)), key=_age)
        where = root / experiment_name if experiment_name else root
        if not runs:
            others = [path.name for path in _folders(root) if any(map(_is_run, _folders(path)))]
            near = suggest(experiment_name, others, 5) if experiment_name and others else "Start one first."
            raise UserError(f"no run found in {where}. {near}")
        named = [p for p in runs if load_run in (None, p.name)]
        chosen = named if named or load_run is None else _matching(runs, load_run)
        if not chosen:
            names = [p.name for p in reversed(runs)]
            near = suggest(str(load_run), names, 5, ordered=True)
            raise UserError(f"no run in {where} matches '{load_run}'. {near}")
        complete = [path for path in chosen if with_file is None or (path / with_file).exists()]
        return [cls(path) for path in complete or chosen]

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def experiment_name(self) -> str:
        """The experiment the run belongs to."""
        return self.path.resolve().parent.name

    @property
    def params_dir(self) -> Path:
        """Folder of the configs."""
        return self.path / "params"

    @property
    def dataset_dir(self) -> Path:
        """Folder of the dataset's shards, one per epoch."""
        return self.path / "dataset"

    def video_dir(self, kind: str = "distillation") -> Path:
        """Return the folder of a command's videos."""
        return self.path / "videos" / kind

    def shard_path(self, epoch: int, rank: int = 0, world_size: int = 1) -> Path:
        """Return where an epoch's shard of the dataset belongs, of several processes the one of this rank."""
        folder = self.path / f"dataset_{rank}_of_{world_size}" if world_size > 1 else self.dataset_dir
        return folder / f"epoch_{epoch:06d}.pt"

    def shards(self) -> list[Path]:
        """List the shards that are there, in the order of their epochs."""
        return sorted(self.dataset_dir.glob("epoch_*.pt"), key=lambda p: natural_key(p.name))

    def save_checkpoint(self, name: str, payload: Mapping[str, Any]) -> Path:
        """Write a checkpoint atomically: whatever happens, the old one or the new one is there, whole."""
        path = self.path / name
        with self.writing():
            atomic_torch_save(dict(payload), path, within=self.not_to_make)
        return path

    def load_checkpoint(self, name: str, map_location: str = "cpu") -> dict[str, Any]:
        """Read a checkpoint of this run, without unpickling code."""
        return load_checkpoint(self.path / name, map_location=map_location)

    def checkpoints(self) -> list[Path]:
        """List the checkpoints, numbers in their names compared as numbers."""
        return sorted((p for p in self.path.glob("*.pt") if p.is_file()), key=lambda p: natural_key(p.name))

    def checkpoint_path(self, pattern: str = r".*\.pt") -> Path:
        """Return the last checkpoint, in numeric order, whose name is or matches ``pattern``.

        Args:
            pattern: A name, a regular expression, a shell pattern (``model_*.pt``), or ``latest``: the state after the
                last epoch or iteration that was saved.

        Raises:
            UserError: If there is none; names those there are.
        """
        found = self.checkpoints()
        if pattern == "latest":
            pattern = r"checkpoint_latest\.pt" if (self.path / "checkpoint_latest.pt").exists() else r"\w*_\d+\.pt"
        chosen = [p for p in found if pattern in (p.name, p.stem)] or _matching(found, pattern)
        if not chosen:
            names = [p.name for p in found]
            raise UserError(f"no checkpoint in {self.path} matches '{pattern}'. {suggest(pattern, names)}")
        return chosen[-1]

    def save_params(
        self,
        env_cfg: object = None,
        agent_cfg: object = None,
        distillation_cfg: object = None,
        overrides: object = None,
        teacher: object = None,
        finetune_cfg: object = None,
    ) -> None:
        """Write ``params/{env,agent}.{yaml,pkl}`` and ``params/{distillation,finetune,overrides,teacher}.yaml``.

        Args:
            env_cfg: The environment's config; None, here and below, is left out.
            agent_cfg: The agent's config.
            distillation_cfg: The config of a run that distils.
            overrides: What was typed for the first two, so that a resumed run can set it again.
            teacher: Description of a teacher that is code.
            finetune_cfg: The config of a run that fine-tunes.
        """
        self.check_there()
        # What a resumed run reads comes first and in that order: where its own config is there, all of it is.
        own = {"distillation": distillation_cfg, "finetune": finetune_cfg}
        configs = {"overrides": overrides, **own, "env": env_cfg, "agent": agent_cfg, "teacher": teacher}
        for name, cfg in configs.items():
            if cfg is None:
                continue
            text = yaml.safe_dump(to_plain(cfg), sort_keys=False, allow_unicode=True)
            atomic_write_bytes(self.path / f"params/{name}.yaml", text.encode(), within=self.not_to_make)
            if name in ("env", "agent"):
                atomic_write_bytes(self.path / f"params/{name}.pkl", _pickled(cfg), within=self.not_to_make)

    def discard_if_empty(self) -> None:
        """Remove the folder, and those made for it if nothing else is in them, unless a checkpoint was written."""
        if self.checkpoints() or not self._is_there():
            return
        self.unlock()
        shutil.rmtree(self.path, ignore_errors=True)
        _remove_empty(self._made)

    def load_params(self, name: str = "distillation") -> dict[str, Any]:
        """Read ``params/<name>.yaml`` back as plain values."""
        if not (self.params_dir / f"{name}.yaml").exists():
            raise UserError(f"{self.path} {self._why_without(name)}")
        values = load_yaml(self.params_dir / f"{name}.yaml")
        if not isinstance(values, dict):
            raise UserError(f"{self.params_dir / name}.yaml does not hold a mapping of keys to values")
        return values

    def _why_without(self, name: str) -> str:
        """Return why the folder has no ``params/<name>.yaml``, and what to do."""
        other = {"distillation": "finetune", "finetune": "distillation"}.get(name)
        if other is not None and (self.params_dir / f"{other}.yaml").exists():
            return f"is a run of {command_name(f'{other}.py')}: resume it by that, or name another one by --load_run"
        if not (_is_run(self.path.absolute()) or self.params_dir.exists()):
            return f"is not the folder of a run, which has params/{name}.yaml: name one by --load_run"
        return (
            f"has no params/{name}.yaml: that run stopped before it began; start it anew, or name another one with "
            "--load_run"
        )

    def write_summary(self, summary: Mapping[str, Any], name: str = "summary.json") -> Path:
        """Write the run's figures as JSON, atomically; NaN and infinities become null."""
        with self.writing():
            text = json.dumps(finite(to_plain(summary)), indent=2) + "\n"
            atomic_write_bytes(self.path / name, text.encode(), within=self.not_to_make)
        return self.path / name

    def lock(self) -> None:
        """Keep other processes from writing to this run. The lock goes with the process, however it ends.

        Raises:
            UserError: If another process holds it.
        """
        if self._lock is not None:
            return
        refusal = f"another process is writing to {self.path}: stop it, or start a new run"
        self._lock = lock_folder(self.path, refusal)
        self._identity = _identity(self.path)
        if self._lock is None:  # two processes may then resume the same run
            return
        for pattern in (".*.tmp", ".*.part.mp4"):  # of a process that was killed while it wrote
            for leftover in self.path.rglob(pattern):
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def check_there(self) -> None:
        """Check, before something is written, that this is still the folder that was locked.

        Raises:
            UserError: If it was removed or renamed: what would be written now would be half a run in a new folder.
        """
        if not self._is_there():
            raise UserError(
                f"the run's folder {self.path} was removed or renamed while the run was going on: the run ends here. "
                "If it was renamed, go on with --resume --load_run and the path that it has now"
            )

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Check, before something is written and where that fails, that this is still the folder that was locked."""
        self.check_there()
        try:
            yield
        except UserError:
            self.check_there()  # it went away in the middle: that is what to say
            raise

    @property
    def not_to_make(self) -> Path | None:
        """The run's folder, once this process has locked it: where it is gone by then, no write makes it again."""
        return None if self._identity is None else self.path

    def _is_there(self) -> bool:
        return self._identity is None or _identity(self.path) == self._identity

    def unlock(self) -> None:
        """Let other processes write to this run."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


class FollowedRunDir(RunDir):
    """The folder of a run to which another process writes: what this one would write, that one does."""

    def save_checkpoint(self, name: str, payload: Mapping[str, Any]) -> Path:
        """Write nothing; return where the checkpoint is, or will be."""
        return self.path / name

    def save_params(self, *configs: object, **named: object) -> None:
        """Write nothing."""

    def write_summary(self, summary: Mapping[str, Any], name: str = "summary.json") -> Path:
        """Write nothing; return where the summary is, or will be."""
        return self.path / name

    def lock(self) -> None:
        """Leave the lock to the process that writes."""

    def discard_if_empty(self) -> None:
        """Leave the folder to the process that writes."""


def check_name(flag: str, name: str) -> None:
    """Refuse a name that is no plain part of a folder's name, such as one with a line break or a slash.

    Args:
        flag: The flag that gives it, without its dashes.
        name: The name; an empty one is plain.

    Raises:
        UserError: Naming the flag and what is wrong.
    """
    said = f"--{flag} is {quoted(name)}: it must be a plain name"
    if name in (".", "..") or "/" in name or "\\" in name:
        raise UserError(f"{said}, without slashes")
    if not name.isprintable():
        raise UserError(f"{said}, without line breaks and other characters that cannot be printed")
    if name != name.strip():
        raise UserError(f"{said}, without blanks at its ends")
    if len(name.encode()) > _LONGEST_NAME:
        raise UserError(f"{said} of at most {_LONGEST_NAME} bytes, it has {len(name.encode())}")


def _warn_of_later_runs(path: Path, moment: datetime) -> None:
    """Warn where a new run is not the newest by its name, as after the clock was set back."""
    # Runs that start at once are named by the seconds that follow.
    limit = (moment + timedelta(minutes=1)).strftime(_STAMP)
    later = [other.name for other in _folders(path.parent) if _is_run(other) and other.name > limit]
    if later:
        logger.warning(
            "%s is older by its name than %s, as the clock was set back: without --load_run that one counts as the "
            "newest run",
            path.name,
            max(later),
        )


def _remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders that were made for a run, innermost first, up to one that something else is in."""
    with contextlib.suppress(OSError):
        for folder in folders:
            folder.rmdir()


def _identity(path: Path) -> tuple[int, int] | None:
    """Return what a folder keeps when it is renamed, and another one of its name does not have."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_dev, stat.st_ino


def _folders(path: Path) -> list[Path]:
    with contextlib.suppress(OSError):
        return sorted(p for p in path.iterdir() if p.is_dir())
    return []


def _is_run(path: Path) -> bool:
    return _RUN_NAME.fullmatch(path.name) is not None


def _age(path: Path) -> tuple[str, float]:
    match = _RUN_NAME.fullmatch(path.name)
    return (match[1] if match else "", path.stat().st_mtime)


def _matching(paths: list[Path], pattern: str) -> list[Path]:
    """Return the paths whose names match a regular expression, or a shell pattern, which users type too."""
    shell = _SHELL.search(pattern) is not None
    found = [path for path in paths if shell and fnmatch.fnmatchcase(path.name, pattern)]
    if found:
        return found
    try:
        return [path for path in paths if re.match(pattern, path.name)]
    except re.error as error:
        if shell:
            return []
        raise UserError(f"'{pattern}' is not a regular expression: {error}") from None


def _pickled(cfg: object) -> bytes:
    """Pickle a config as Isaac Lab does; one that holds lambdas goes in as plain values."""
    try:
        return pickle.dumps(cfg)
    except (pickle.PicklingError, TypeError, AttributeError):
        return pickle.dumps(to_plain(cfg))
