"""Advice that can be typed: flags and keys that the package's own texts name exist."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import foundation.rsl_rl
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.config.values import key_names
from foundation.engines import engine_class
from foundation.students import student_cfg_class, student_names

PACKAGE = Path(foundation.rsl_rl.__file__).parents[1]
OF_OTHERS = {"--viz", "--enable_cameras", "--kit_args", "--nproc_per_node", "--no-python", "--compile", "--version"}
OF_OTHERS |= {"--no-deps", "--force-reinstall"}
"""Flags of Isaac Lab's launcher, of torchrun, of the scripts, of the console command and of pip."""
PARTS = "teacher|student|dataset|collection|optimizer|loss|early_stopping"
FILES = ("yaml", "json")


def texts() -> Iterator[tuple[str, str]]:
    """Yield each text of the package that is no docstring, with its place; what is filled in is a NUL."""
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = ""
            if isinstance(node, ast.JoinedStr):
                text = "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                text = node.value
            if text:
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", text  # type: ignore[attr-defined]


def test_flags_that_are_named_exist() -> None:
    """``--flag`` in any message belongs to one of the commands, or to a program that is known here."""
    flags = argparse.ArgumentParser(add_help=False)
    for name in (
        "gymnasium",
        "l2f",
        "mjlab",
        "mujoco",
        "torch",
    ):  # Isaac Lab's flags are its launcher's, where it is installed
        engine_class(name).add_args(flags)
    known = OF_OTHERS | set(flags._option_string_actions)
    for path in sorted((PACKAGE / "rsl_rl").glob("[a-z]*.py")):
        parser = getattr(importlib.import_module(f"foundation.rsl_rl.{path.stem}"), "build_parser", None)
        known |= set(parser()._option_string_actions) if parser else set()
    pattern = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*\w(?![\w\0-])")
    messages = [(place, text) for place, text in texts() if "var(--" not in text]  # names of a style sheet's own
    found = {flag: place for place, text in messages for flag in pattern.findall(text)}
    assert len(found) > 50
    assert {flag: place for flag, place in found.items() if flag not in known} == {}


def test_keys_that_are_named_exist() -> None:
    """``distill.a.b``, and ``a.b`` of a part of the config, is a field, of some student where it is a student's."""
    pattern = re.compile(rf"(?:\bdistill\.|(?<![\w.])(?={PARTS}))((?:{PARTS})(?:\.[a-z_][a-z0-9_]*)+)(?![\w.]*\()")
    found = {key: place for place, text in texts() if place.split("/")[0] != "config" for key in pattern.findall(text)}
    keys = {key: place for key, place in found.items() if key.rpartition(".")[2] not in FILES}
    assert len(keys) > 50
    cfgs: list[object] = [DistillationCfg(student=student_cfg_class(name)()) for name in student_names()]
    wrong = {key: place for key, place in keys.items() if not any(_has(cfg, key) for cfg in cfgs)}
    finetuned = {key for key, place in wrong.items() if place.startswith("ppo/") and _has(FinetuneCfg(), key)}
    assert {key: place for key, place in wrong.items() if key not in finetuned} == {}


def _has(cfg: object, key: str) -> bool:
    """Return whether a config has a field; what lies in a mapping, or in a part that is not set, is free."""
    for name in key.split("."):
        if cfg is None or isinstance(cfg, dict):
            return True
        if name not in key_names(cfg):
            return False
        cfg = getattr(cfg, name)
    return True


def test_the_check_itself_finds_what_it_should() -> None:
    """A key that is not there, and one below a field that has none, are found; optional parts are free."""
    cfg = DistillationCfg()
    assert _has(cfg, "teacher.obs_groups") and _has(cfg, "optimizer.lr_schedule.start") and _has(cfg, "loss.params.x")
    assert not _has(cfg, "teacher.clip_actions") and not _has(cfg, "dataset.filter.succes")
