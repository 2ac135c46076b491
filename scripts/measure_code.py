"""Measure how code is written, package beside package: ``python scripts/measure_code.py foundation rsl_rl mjlab``.

Each argument is a package's folder, or the name of an installed package; ``TITLE=FOLDER`` gives its column a title. An
earlier commit is measured in a work tree of it. The figures are those that a reader meets: files and their sizes, how
many are there for one other file alone, parameters that are typed ``Any``, imports hidden in functions, comments, and
circles of imports.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import statistics
import sys
import tokenize
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser

Statements = Callable[[ast.AST], Iterator[ast.Import | ast.ImportFrom]]
"""Yields those import statements of a file that count."""


@dataclass
class Figures:
    """What was counted in one package."""

    lines: list[int] = field(default_factory=list)
    """Lines of each file."""
    function_lines: list[int] = field(default_factory=list)
    """Lines of each function and method."""
    comments: int = 0
    """Comment lines and trailing comments."""
    parameters: int = 0
    """Parameters, ``self`` and ``cls`` left out."""
    any_parameters: int = 0
    """Parameters whose annotation is ``Any`` itself."""
    runner_any: int = 0
    """Parameters called ``runner`` that are typed ``Any``."""
    inner_imports: int = 0
    """Import statements inside functions."""
    nested_ternaries: int = 0
    """Conditional expressions inside another one."""
    tuple_assignments: int = 0
    """``a, b = x, y``: several assignments on one line."""
    ignores: int = 0
    """``type: ignore`` and ``noqa`` comments."""
    one_importer: int = 0
    """Files that exactly one other file imports."""
    circles: int = 0
    """Groups of files that import each other in a circle, when they are imported."""
    typing_circles: int = 0
    """The same with the imports inside functions and for type checkers alone."""

    def column(self) -> dict[str, str]:
        """Return the figures as a table shows them."""
        total = sum(self.lines)
        per_cent = 100.0 * self.any_parameters / max(1, self.parameters)
        return {
            "files": str(len(self.lines)),
            "lines": str(total),
            "lines a file, median / largest": f"{statistics.median(self.lines):.0f} / {max(self.lines)}",
            "lines a function, median / largest": (
                f"{statistics.median(self.function_lines or [0]):.0f} / {max(self.function_lines or [0])}"
            ),
            "files with one importer": str(self.one_importer),
            "circles of imports": str(self.circles),
            "circles, with imports in functions and for types": str(self.typing_circles),
            "parameters typed Any": f"{self.any_parameters} ({per_cent:.1f} %)",
            "parameters `runner: Any`": str(self.runner_any),
            "imports inside functions": str(self.inner_imports),
            "nested ternaries": str(self.nested_ternaries),
            "tuple assignments per 1000 lines": f"{1000.0 * self.tuple_assignments / max(1, total):.1f}",
            "comments per 100 lines": f"{100.0 * self.comments / max(1, total):.1f}",
            "type: ignore, noqa": str(self.ignores),
        }


def folder_of(name: str) -> Path:
    """Return the folder that an argument means.

    Raises:
        SystemExit: If it is neither a package's folder nor an installed package.
    """
    if Path(name).is_dir():
        if not (Path(name) / "__init__.py").is_file():
            # One level too high, as an unpacked wheel is, no import would be found to be one of the package's own.
            sys.exit(f"error: '{name}' has no __init__.py: give the folder of the package itself")
        return Path(name)
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        sys.exit(f"error: '{name}' is neither a folder nor an installed package; install it, or give its folder")
    return Path(spec.submodule_search_locations[0])


def measure(folder: Path) -> Figures:
    """Count one package."""
    figures = Figures()
    trees: dict[str, ast.Module] = {}
    packages: set[str] = set()
    for path in sorted(folder.rglob("*.py")):
        source = path.read_text(encoding="utf-8")
        if not source.strip():
            continue
        tree = ast.parse(source)
        parts = path.resolve().relative_to(folder.resolve().parent).with_suffix("").parts
        module = ".".join(part for part in parts if part != "__init__")
        trees[module] = tree
        if parts[-1] == "__init__":
            packages.add(module)
        figures.lines.append(source.count("\n"))
        _count_comments(source, figures)
        _count_tree(tree, figures)
    imports = {module: set(_imported(module, trees, packages, _at_import)) - {module} for module in trees}
    all_imports = {module: set(_imported(module, trees, packages, _everywhere)) - {module} for module in trees}
    importers: dict[str, int] = defaultdict(int)
    for targets in all_imports.values():
        for target in targets:
            importers[target] += 1
    figures.one_importer = sum(count == 1 for count in importers.values())
    figures.circles = sum(len(group) > 1 for group in _circles(imports))
    figures.typing_circles = sum(len(group) > 1 for group in _circles(all_imports))
    return figures


def _count_comments(source: str, figures: Figures) -> None:
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if "type: ignore" in token.string or "noqa" in token.string:
            figures.ignores += 1
        elif not token.string.startswith("#!"):
            figures.comments += 1


def _count_tree(tree: ast.Module, figures: Figures) -> None:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            figures.function_lines.append((node.end_lineno or node.lineno) - node.lineno + 1)
            _count_parameters(node.args, figures)
            inner = (child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom))
            figures.inner_imports += sum(1 for _ in inner)
        elif isinstance(node, ast.IfExp):
            arms = (node.test, node.body, node.orelse)
            figures.nested_ternaries += any(isinstance(child, ast.IfExp) for arm in arms for child in ast.walk(arm))
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple):
            figures.tuple_assignments += any(isinstance(target, ast.Tuple) for target in node.targets)


def _count_parameters(arguments: ast.arguments, figures: Figures) -> None:
    given = [*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs]
    for argument in given:
        if argument.arg in ("self", "cls"):
            continue
        figures.parameters += 1
        if argument.annotation is not None and ast.unparse(argument.annotation) in ("Any", "typing.Any"):
            figures.any_parameters += 1
            figures.runner_any += argument.arg == "runner"


def _imported(
    module: str, trees: Mapping[str, ast.Module], packages: Set[str], statements: Statements
) -> Iterator[str]:
    """Yield the modules of the package that one of them imports."""
    for node in statements(trees[module]):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            origin = _origin(module, module in packages, node)
            names = [f"{origin}.{alias.name}" for alias in node.names]
        for name in names:
            found = name if name in trees else name.rpartition(".")[0]
            if found in trees:
                yield found


def _origin(module: str, is_package: bool, node: ast.ImportFrom) -> str:
    """Return the absolute name of what ``from ... import`` reads from."""
    if node.level == 0:
        return node.module or ""
    parts = module.split(".")
    # One dot is the package that the file is in, and of an __init__.py that is the package itself.
    up = node.level - 1 if is_package else node.level
    return ".".join([*parts[: len(parts) - up], *([node.module] if node.module else [])])


def _everywhere(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield every import statement of a file."""
    yield from (child for child in ast.walk(node) if isinstance(child, ast.Import | ast.ImportFrom))


def _at_import(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield the import statements that run when a file is imported."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        else:
            yield from _at_import(child)


def _circles(graph: Mapping[str, set[str]]) -> Iterator[list[str]]:
    """Yield the strongly connected groups of a graph (Tarjan 1972)."""
    number: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []

    def visit(name: str) -> Iterator[list[str]]:
        number[name] = low[name] = len(number)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in number:
                yield from visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], number[other])
        if low[name] == number[name]:
            at = stack.index(name)
            group = stack[at:]
            del stack[at:]
            yield group

    for name in sorted(graph):
        if name not in number:
            yield from visit(name)


def parse(argv: Sequence[str] | None = None) -> list[str]:
    """Read the command line."""
    parser = ScriptParser("Measure how code is written, package beside package.")
    parser.add_argument(
        "packages", nargs="+", metavar="[TITLE=]PACKAGE", help="a package's folder, or the name of an installed package"
    )
    return parser.read(argv).packages


def compare(arguments: Sequence[str]) -> None:
    """Print one column for each package, as a Markdown table."""
    packages = [argument.rpartition("=") for argument in arguments]
    columns = [measure(folder_of(name)).column() for _, _, name in packages]
    print("| | " + " | ".join(title or name for title, _, name in packages) + " |")
    print("|---|" + "---|" * len(packages))
    for name in columns[0]:
        print(f"| {name} | " + " | ".join(column[name] for column in columns) + " |")


def main(argv: Sequence[str] | None = None) -> int:
    """Compare the packages and return the exit code."""
    return run_command(lambda arguments: compare(parse(arguments)), argv)


if __name__ == "__main__":
    sys.setrecursionlimit(10_000)
    sys.exit(main())
