"""A run's folder, read for a report: configs, curves, summary, studies, and the checksums of its files."""

from __future__ import annotations

import hashlib
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.plain import changed_leaves, to_plain
from foundation.core.errors import UserError
from foundation.core.files import load_json, load_yaml
from foundation.report.event_file import PATTERN, Curve, read_scalars
from foundation.report.pictures import mapping, number
from foundation.students import student_cfg_class, student_names

T = TypeVar("T")

_HASHED = ("*.pt", "*.onnx", "*.json", "exported/*", "params/*.yaml")
"""Files whose checksums are listed."""
_LARGEST = 1 << 30
"""Files beyond this size [B] are listed without a checksum."""
_MAX_FILES = 60
STUDIES = ("robustness", "similarity")


@dataclass
class RunRecord:
    """What a run has left."""

    path: Path
    summary: Mapping[str, Any] = field(default_factory=dict)
    params: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """Name of a file in ``params/`` -> its values."""
    curves: dict[str, Curve] = field(default_factory=dict)
    studies: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    """``robustness`` and ``similarity``, where they were measured."""
    files: list[tuple[str, int, str]] = field(default_factory=list)
    """Name, size [B] and SHA-256 of each file."""
    notes: list[str] = field(default_factory=list)
    """What could not be read, one line each."""

    @classmethod
    def read(cls, path: Path) -> RunRecord:
        """Read a run's folder; what is damaged becomes a note.

        Raises:
            UserError: If there is no such folder, or nothing of a run in it.
        """
        if not path.is_dir():
            what = "is a file" if path.exists() else "does not exist"
            raise UserError(f"'{path}' {what}: give the folder of a run, such as logs/distillation/NAME/DATE")
        left = [path / "summary.json", path / "params", *path.glob(PATTERN), *path.glob("*.pt")]
        if not any(part.exists() for part in left):
            raise UserError(f"'{path}' holds no run: neither summary.json nor params/, checkpoints or event files")
        record = cls(path)
        record.summary = record._try(lambda: mapping(load_json(path / "summary.json")), path / "summary.json", {})
        for file in sorted((path / "params").glob("*.yaml")):
            record.params[file.stem] = record._try(lambda file=file: mapping(load_yaml(file)), file, {})
        record.curves = record._try(lambda: read_scalars(path), path, {})
        for name in STUDIES:
            file = path / f"{name}.json"
            if file.exists():
                record.studies[name] = record._try(lambda file=file: mapping(load_json(file)), file, {})
        record.files = checksums(path)
        if not (path / "best_student.pt").exists() and "distillation" in record.params:
            record.notes.append("There is no best_student.pt: the run ended before its first evaluation.")
        elif not record.summary and not record.notes:
            record.notes.append("There is no summary.json: the run has not ended.")
        return record

    def _try(self, read: Callable[[], T], path: Path, absent: T) -> T:
        """Read a part; what cannot be read is noted and left out, what is not there is left out."""
        if not path.exists():
            return absent
        try:
            return read()
        except UserError as error:
            self.notes.append(str(error))
            return absent

    @property
    def name(self) -> str:
        """The run's experiment and folder."""
        resolved = self.path.resolve()
        return f"{resolved.parent.name}/{resolved.name}"

    @property
    def student(self) -> str:
        """Kind of the student; "" where the run has none."""
        return str(mapping(mapping(self.params.get("distillation")).get("student")).get("name", ""))

    @property
    def parameters(self) -> float:
        """Parameters of the student; NaN where unknown."""
        return number(mapping(self.summary.get("parameters")).get("student"))

    @property
    def score(self) -> tuple[float, str]:
        """The figure that runs are compared by, more of which is better, and its name: a ratio of returns, or a return.

        Of runs without a simulator it is the loss on held-out data, negative.
        """
        for key, name in (("return_ratio", "return / teacher's"), ("best_student_return", "return")):
            value = number(self.summary.get(key))
            if value == value:
                return value, name
        for group in ("fresh", "best"):
            value = number(mapping(self.summary.get(group)).get("mean_return"))
            if value == value:
                return value, "return"
        score = number(self.summary.get("geometric_mean_score"))
        if score == score:
            return score, "mean score"
        return -number(self.summary.get("held_out_loss")), "-held-out loss"

    def curve(self, tag: str) -> Curve:
        """Return a curve; an empty one where the run has none of that tag."""
        return self.curves.get(tag, Curve([], []))

    def levels(self) -> dict[str, float]:
        """Return the mean returns of teacher, zero and random actions, where they were measured."""
        known = mapping(self.summary.get("baselines"))
        found = {}
        for name in ("teacher", "zero", "random"):
            value = number(mapping(known.get(name)).get("mean_return"))
            logged = self.curve(f"baseline/{name}_mean_return").values
            if value != value and logged:
                value = logged[-1]
            if value == value:
                found[name] = value
        return found

    def commands(self) -> list[str]:
        """Return what to type to repeat the run, to play its policy, and to make this page."""
        own = self.params.get("distillation")
        typed = []
        if own:
            typed.append(_distillation_command(own, mapping(self.params.get("overrides"))))
        folder = shlex.quote(str(self.path))
        if (self.path / "best_student.pt").exists():
            typed.append(f"foundation play --load_run {folder} --robustness --similarity")
        return [*typed, f"foundation report {folder}"]


def _distillation_command(own: Mapping[str, Any], overrides: Mapping[str, Any]) -> str:
    """Return the command of a distillation: every value that is not the default, and the simulator's overrides."""
    words = ["foundation", "distill"]
    for flag, key in (("--task", "task"), ("--num_envs", "num_envs"), ("--seed", "seed")):
        if own.get(key) is not None:
            words += [flag, str(own[key])]
    checkpoint = mapping(own.get("teacher")).get("checkpoint")
    if checkpoint is not None:
        words += [
            "--teacher_checkpoint",
            *(map(str, checkpoint) if isinstance(checkpoint, list) else [str(checkpoint)]),
        ]
    student = mapping(own.get("student")).get("name", "mlp")
    if student != "mlp":
        words.append(f"student={student}")
    shown = {"task", "num_envs", "seed", "device", "student.name", "teacher.checkpoint", "dataset.size"}
    default: dict[str, Any] = to_plain(DistillationCfg())
    if student in student_names():  # a class that a file names is not imported
        default["student"] = to_plain(student_cfg_class(student)())
    for key, value in changed_leaves(own, default):
        if key not in shown and value is not None:
            words.append(f"distill.{key}={_hydra(value)}")
    tokens = overrides.get("tokens")
    words += [str(token) for token in tokens] if isinstance(tokens, list) else []
    return shlex.join(words)


def _hydra(value: object) -> str:
    """Write a value as an override takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{','.join(map(_hydra, value))}]"
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{key}:{_hydra(part)}" for key, part in value.items()) + "}"
    return "null" if value is None else str(value)


def checksums(folder: Path) -> list[tuple[str, int, str]]:
    """Return name, size [B] and SHA-256 of a run's files, links and what is very large left without one."""
    paths = sorted({path for pattern in _HASHED for path in folder.glob(pattern) if path.is_file()})
    found = []
    for path in paths[:_MAX_FILES]:
        size = path.stat().st_size
        digest = "" if size > _LARGEST or path.is_symlink() else _sha256(path)
        found.append((str(path.relative_to(folder)), size, digest))
    return found


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
