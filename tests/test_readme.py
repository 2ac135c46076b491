"""README and docs/ say what the code does: the reference is generated, and names in what people wrote are real."""

from __future__ import annotations

import ast
import dataclasses
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.finetune_cfg import FinetuneCfg
from foundation.config.resolve import choices
from foundation.engines import engine_names
from foundation.learning.losses import LOSSES
from foundation.learning.schedules import KINDS
from foundation.students import student_cfg_class, student_names

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

import make_reference  # noqa: E402

GENERATED = {f"docs/reference/{name}" for name in ("commands.md", "config.md", "registries.md")}
PAGES = ["README.md", "CONTRIBUTING.md", *sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").rglob("*.md"))]
PAGES = [page for page in PAGES if "_build" not in page]
WRITTEN = [page for page in PAGES if page not in GENERATED]
OTHER_FLAGS = {
    "--nproc_per_node",
    "--nnodes",
    "--node_rank",
    "--master_addr",
    "--master_port",
    "--no-python",
    "--logdir",
    "--rl_library",
    "--extra",
    "--quick",
    "--parts",
    "--seeds",
    "--raptor",
    "--check",
    "--enable_cameras",
    "--cpu_graphs",
    "--checkpoint-file",
    "--viz",
    "--no-real_vehicles",
    "--observation_noise",
}
"""Flags of other programs, and of scripts/ that have parsers of their own."""


OF_EXAMPLES = {
    "teacher.weights.crazyflie",
    "student.width",
    "loss.params",
    "loss.params.level",
    "foundation/checkpoints/numpy_mlp.py",
    "foundation/students/normed.py",
}
"""Keys and files that an example makes."""


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["commands.md", "config.md", "registries.md", "tasks.md"])
def test_the_reference_is_generated(name: str) -> None:
    """Flags, keys and names in docs/reference/ are those of the code: python scripts/make_reference.py."""
    committed = (make_reference.FOLDER / name).read_text(encoding="utf-8")
    assert committed == make_reference.pages()[name], "out of date: python scripts/make_reference.py"


def test_the_reference_leaves_nothing_out() -> None:
    """Every flag of every command, every key of the config and of each student, every loss, student and preset."""
    commands = text_of("docs/reference/commands.md")
    for script, module in make_reference.COMMANDS.items():
        section = re.search(rf"^## {re.escape(script)}$(.*?)(?=^## |\Z)", commands, re.MULTILINE | re.DOTALL)
        assert section is not None
        listed = set(re.findall(r"`(--[\w-]+)`", section[1]))
        assert listed == set(module.build_parser().flag_names()) - {"--help"}
    config = text_of("docs/reference/config.md")
    for scope, cfg in (("distill", DistillationCfg()), ("finetune", FinetuneCfg())):
        listed = set(re.findall(rf"\| `({scope}[\w.]+)` \|", config))
        assert {f"{scope}.{key}" for key in leaves(cfg)} <= listed
    names = text_of("docs/reference/registries.md")
    for group in ("student", "loss", "schedule", "dataset", "experiment"):
        assert {f"{group}={name}" for name in choices(group)} <= set(re.findall(r"\| `(\w+=\w+)` \|", names))
    assert {*LOSSES, *KINDS, *student_names()} <= set(re.findall(r"\| `(\w+)` \|", names))


def leaves(cfg: object, prefix: str = "") -> list[str]:
    """List the dotted names of a config's values."""
    names = []
    for field in dataclasses.fields(cfg):  # type: ignore[arg-type]
        value = getattr(cfg, field.name)
        inside = dataclasses.is_dataclass(value)
        names += leaves(value, f"{prefix}{field.name}.") if inside else [f"{prefix}{field.name}"]
    return names


def test_the_readme_is_short() -> None:
    """At most 150 lines, and its picture below 1 MB."""
    assert len(text_of("README.md").splitlines()) <= 150
    assert (ROOT / "docs" / "student.gif").stat().st_size < 1_000_000


@pytest.mark.parametrize("page", WRITTEN)
def test_flags_in_the_text_exist(page: str) -> None:
    """``--flag`` belongs to a command, or to a program that is known here."""
    known = {flag for module in make_reference.COMMANDS.values() for flag in module.build_parser().flag_names()}
    spans = re.findall(r"`[^`\n]+`|^```.*?^```", text_of(page), re.MULTILINE | re.DOTALL)
    foreign = re.compile(r"pip (install|download)|scripts/")
    commands = [line for span in spans for line in span.splitlines() if not foreign.search(line)]
    written = {flag for line in commands for flag in re.findall(r"(?<![\w-])--[a-z][\w-]*", line)}
    assert written <= known | OTHER_FLAGS


@pytest.mark.parametrize("page", WRITTEN)
def test_keys_in_the_text_exist(page: str) -> None:
    """``distill.a.b`` is a field, of some student where it is a student's; ``experiment=`` has a file."""
    for key in set(re.findall(r"distill\.([a-z0-9_.]+[a-z])", text_of(page))):
        if key in OF_EXAMPLES:
            continue
        cfg = DistillationCfg()
        if key.startswith("student."):
            known = {field.name for name in student_names() for field in dataclasses.fields(student_cfg_class(name))}
            assert key.split(".")[1] in known, key
            continue
        for name in key.split("."):
            assert hasattr(cfg, name) or (name in {"kind", "start", "end", "epochs"} and cfg is None), key
            cfg = getattr(cfg, name)
    keys = set(leaves(FinetuneCfg()))
    for key in set(re.findall(r"finetune\.(?!py|json)([a-z_]+[a-z_.]*[a-z_]+)(?=[=`])", text_of(page))):
        assert any(own.startswith(key) or key.startswith(f"{own}.") for own in keys), key
    own = {"mine"}  # what the pages call a file of the reader's; one by its path or package has a dot or a colon
    files = {*choices("experiment"), *choices("finetune")}
    assert set(re.findall(r"experiment=(\w+)(?![\w:.])", text_of(page))) - own <= files


def test_the_guide_names_no_choice_that_is_not_there() -> None:
    """Names that begin a line of a table can be chosen. What is new needs no line there: the reference has it."""
    for page, names in (
        ("students", set(student_names())),
        ("schedules", set(choices("schedule"))),
        ("data", set(choices("dataset"))),
        ("engines", set(engine_names())),
    ):
        cells = re.findall(
            r"^\| ((?:`\w+`(?:, | \(default\)| (?=\|))*)+)", text_of(f"docs/guide/{page}.md"), re.MULTILINE
        )
        named = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
        assert named and named <= names, page
    losses = text_of("docs/guide/losses.md").partition("`loss=` is the main term")[2].partition(".")[0]
    assert set(re.findall(r"`(\w+)`", losses)) <= set(LOSSES)


@pytest.mark.parametrize("page", PAGES)
def test_files_and_links_exist(page: str) -> None:
    """Paths of the repository in code spans and commands, and relative links."""
    pattern = r"(?:foundation|scripts|tests|configs|examples)/[\w./-]+\.(?:py|sh|yaml|pt)|constraints\.txt"
    missing = [path for path in set(re.findall(pattern, text_of(page))) if not (ROOT / path).exists()]
    missing += [
        link
        for link in re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", text_of(page))
        if not ((ROOT / page).parent / link).exists()
    ]
    assert not set(missing) - OF_EXAMPLES


def test_contributing_names_every_room() -> None:
    """The table of CONTRIBUTING.md has one line for each folder of the package."""
    table = text_of("CONTRIBUTING.md").partition("## Layout")[2].partition("## ")[0]
    rooms = {path.parent.name for path in (ROOT / "foundation").glob("*/__init__.py")}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == rooms


def test_examples_in_the_docs_are_the_files() -> None:
    """The script that the guide shows is the one in examples/."""
    assert text_of("examples/own_script.py") in text_of("docs/guide/configuration.md")


@cache
def texts_of_the_code() -> str:
    """Every text in foundation/, those of an f-string joined by ``…``."""
    texts = []
    for file in (ROOT / "foundation").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
            elif isinstance(node, ast.JoinedStr):
                texts.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
    return re.sub(r"%\w", "…", "\n".join(texts))


LINES = re.findall(
    r"^\| `(.+?)` \|", (ROOT / "docs/howto/troubleshooting.md").read_text(encoding="utf-8"), re.MULTILINE
)


@pytest.mark.parametrize("line", LINES)
def test_lines_of_the_troubleshooting_are_said(line: str) -> None:
    """A line that the page explains is in the code, piece by piece."""
    code = texts_of_the_code()
    pieces = [piece.strip() for piece in line.split("…") if len(piece.strip()) > 3]
    assert pieces and not [piece for piece in pieces if piece not in code]


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    """Sphinx, every warning an error."""
    pytest.importorskip("myst_parser")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", "-b", "html", str(ROOT / "docs"), str(tmp_path / "html")]
    done = subprocess.run([*command, "-d", str(tmp_path / "doctrees")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "html" / "reference" / "config.html").exists()
