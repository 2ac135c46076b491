"""The Chinese guide, docs/zh/, says what the code does: flags by command, keys, formats, defaults and error lines."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path

import pytest

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.resolve import choices
from foundation.engines import engine_names
from foundation.export.formats import FORMATS
from foundation.learning.losses import LOSSES
from foundation.students import student_names

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "scripts"), str(ROOT / "tests")]

import make_reference  # noqa: E402
from test_readme import texts_of_the_code  # noqa: E402

PAGES = sorted((ROOT / "docs" / "zh").glob("*.md"))
COMMANDS = {script: set(module.build_parser().flag_names()) for script, module in make_reference.COMMANDS.items()}


def text_of(name: str) -> str:
    return (ROOT / "docs" / "zh" / f"{name}.md").read_text(encoding="utf-8")


def test_every_page_is_reached() -> None:
    """README and the index lead to the guide, the guide to each of its pages, and they are in Chinese."""
    assert "](docs/zh/index.md)" in (ROOT / "README.md").read_text(encoding="utf-8")
    assert "zh/index" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
    names = {page.stem for page in PAGES} - {"index"}
    assert names == {"commands", "outputs", "retention", "deploy", "troubleshooting"}
    toctree = text_of("index").partition("```{toctree}")[2].partition("```")[0]
    assert {line for line in toctree.split() if not line.startswith(":")} == names
    for page in PAGES:
        assert len(re.findall(r"[\u4e00-\u9fff]", page.read_text(encoding="utf-8"))) > 200, page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_a_command_has_the_flags_that_it_is_shown_with(page: Path) -> None:
    """Each line of shell that runs one of the scripts has flags of that script alone."""
    shell = "\n".join(re.findall(r"^```bash$(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL))
    for line in shell.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        script = next((Path(word).name for word in words if Path(word).name in COMMANDS), None)
        if script is not None:
            written = {word.partition("=")[0] for word in words if word.startswith("--")}
            assert written <= COMMANDS[script], line


def test_every_command_is_there() -> None:
    """The table of commands has one line for each script, and the sections name what is most used of each."""
    table = set(re.findall(r"^\| `(\w+\.py)` \|", text_of("commands"), re.MULTILINE))
    assert table == set(COMMANDS)
    section = text_of("commands").partition("## 蒸馏")[2].partition("## ")[0]
    assert set(re.findall(r"`(--[a-z_]+)", section)) <= COMMANDS["distillation.py"]
    assert len(re.findall(r"`(--[a-z_]+)", section)) > 15
    shared = text_of("commands").partition("## 各命令共有的参数")[2].partition("## ")[0]
    for script in ("train.py", "distillation.py", "finetune.py"):
        assert set(re.findall(r"`(--[a-z_]+)", shared)) <= COMMANDS[script], script


def test_defaults_are_those_of_the_config() -> None:
    """Numbers in the second column of the table are the config's defaults."""
    rows = re.findall(r"^\| `--(\w+)` \| ([\d.e-]+)", text_of("commands"), re.MULTILINE)
    assert len(rows) >= 5
    cfg = DistillationCfg()
    given = {"batch_size": 256, "sequence_length": 1}  # where the config says: not given
    for name, value in rows:
        default = getattr(cfg, name)
        assert float(value) == (given[name] if default is None else default), name


def test_names_to_choose_from() -> None:
    """Students, losses, engines and presets that are named can be chosen; all students and engines are named."""
    text = text_of("commands")
    listed = re.search(r"^- `student=`：(.*)$", text, re.MULTILINE)
    assert listed is not None
    own = {name for name in student_names() if name != "multi_task"}
    assert set(re.findall(r"`(\w+)`", listed[1])) == own
    losses = re.search(r"^- `loss=`：(.*)$", text, re.MULTILINE)
    assert losses is not None
    assert set(re.findall(r"`(\w+)`", losses[1])) <= set(LOSSES)
    engines = re.search(r"^\| `--engine auto` \| (.*) \|$", text, re.MULTILINE)
    assert engines is not None
    assert set(re.findall(r"`(\w+)`", engines[1])) - {"auto"} <= set(engine_names())
    for page in PAGES:
        for group, name in re.findall(
            r"(?<![\w.])(student|loss|schedule|dataset)=(\w+)", page.read_text(encoding="utf-8")
        ):
            assert name in choices(group) or name in LOSSES or name == "OLD", (page, group, name)


def test_every_format_is_in_the_table() -> None:
    """The page on deployment lists the formats that can be written, each once."""
    cells = re.findall(r"^\| ((?:`\w+`(?:、)?)+) \|", text_of("deploy"), re.MULTILINE)
    assert sorted(name for cell in cells for name in re.findall(r"`(\w+)`", cell)) == sorted(FORMATS)


@pytest.mark.parametrize("line", re.findall(r"^\| `(.+?)` \|", text_of("troubleshooting"), re.MULTILINE))
def test_error_lines_are_said(line: str) -> None:
    """A line that the page explains is in the code, piece by piece."""
    code = texts_of_the_code()
    pieces = [piece.strip() for piece in line.split("…") if len(piece.strip()) > 3]
    assert pieces
    assert not [piece for piece in pieces if piece not in code]
