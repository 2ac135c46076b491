"""The README says what the code does: flags, keys, names and files in it are real, and none is left out."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.resolve import choices
from foundation.learning.losses import LOSSES
from foundation.learning.schedules import KINDS
from foundation.rsl_rl import distillation, play, train
from foundation.students import student_cfg_class, student_names

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PARSERS = {"train.py": train.build_parser, "distillation.py": distillation.build_parser, "play.py": play.build_parser}


def section(title: str) -> str:
    """Return the text under a heading, up to the next heading of the same or a higher level."""
    match = re.search(rf"^(#+) {re.escape(title)}$(.*?)(?=^#{{1,3}} |\Z)", README, re.MULTILINE | re.DOTALL)
    assert match, f"README has no section '{title}'"
    return match[2]


def flags(text: str) -> set[str]:
    return set(re.findall(r"`(--[\w-]+)", text))


@pytest.mark.parametrize("command", sorted(PARSERS))
def test_every_flag_of_a_command_is_listed_and_no_other(command):
    """The tables of a command are its ``--help``."""
    common = section("All three commands").split("The simulator's own")[0]
    listed = flags(common) | flags(section(command).split("Without `--")[0])
    if command != "play.py":
        listed |= flags(section("train.py and distillation.py"))
    real = set(PARSERS[command]().flag_names()) - {"--help"}
    assert listed == real


def test_documented_defaults_are_the_real_ones():
    """The column of defaults in the distillation table."""
    cfg = DistillationCfg()
    rows = re.findall(r"^\| `--(\w+)[^|]*\| ([^|]*) \|", section("distillation.py"), re.MULTILINE)
    stated = {name: value.split(";")[0].strip() for name, value in rows if value.strip()}
    assert stated.pop("eval_interval") == "1" and cfg.eval_interval is None
    assert stated.pop("sequence_length") == "1" and cfg.sequence_length is None
    for name, value in stated.items():
        real = getattr(cfg, name)
        assert value == {True: "on", False: "off"}.get(real, value) if isinstance(real, bool) else float(value) == real
    assert f"| `--num_episodes N` | {play.NUM_EPISODES} |" in section("play.py")
    assert f"| `--seed N` | {cfg.seed} |" in section("All three commands") and cfg.seed == play.SEED


def test_every_distillation_key_exists():
    """``distill.a.b`` is a field, of some student where it is a student's."""
    for key in set(re.findall(r"distill\.([a-z_.]+[a-z])", README)):
        cfg = DistillationCfg()
        if key.startswith("student."):
            known = {field.name for name in student_names() for field in dataclasses.fields(student_cfg_class(name))}
            assert key.split(".")[1] in known, key
            continue
        for name in key.split("."):
            assert hasattr(cfg, name), key
            cfg = getattr(cfg, name)


def test_every_choice_is_listed_and_exists():
    """Students, losses, schedules, files of configs/."""
    options = section("Options")
    row = {line.split("|")[1].split(",")[0].strip(): line for line in options.splitlines() if line.startswith("| ")}
    names = {title: set(re.findall(r"`(\w+)`", line.split("|", 2)[2])) for title, line in row.items()}
    assert names["Student"] == set(student_names()) == set(choices("student"))
    assert names["Loss"] == set(LOSSES)
    assert names["Who acts"] == set(choices("schedule"))
    assert names["Dataset"] == set(choices("dataset"))
    assert set(re.findall(r"experiment=(\w+)(?![\w:])", README)) <= set(choices("experiment"))
    assert set(re.search(r"kind: ([\w\\|]+),", row["Schedules"])[1].split("\\|")) == set(KINDS)  # type: ignore[index]


def test_every_file_that_is_named_is_there():
    """Paths of the repository in code spans, commands and links."""
    pattern = r"(?:foundation|scripts|tests|configs)/[\w./-]+\.(?:py|sh|yaml|pt)|constraints\.txt"
    missing = [path for path in set(re.findall(pattern, README)) if not (ROOT / path).exists()]
    assert not missing
