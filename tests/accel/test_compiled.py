"""Functions that are compiled for one set of sizes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from foundation.accel import compiled
from foundation.core.errors import UserError


def test_a_function_is_traced_once_and_computes_the_same(monkeypatch):
    """The second call, with other numbers, does not run the function again."""
    monkeypatch.setattr(compiled, "generate_code", lambda graph, tensors, options: graph)
    calls = []

    def function(a, b):
        calls.append(a.shape)
        return a + b, (a * b).sum()

    made = compiled.CompiledFunction(function, torch.device("cpu"))
    for seed in range(2):
        a, b = torch.randn(2, 5, generator=torch.Generator().manual_seed(seed)).unbind()
        total, product = made(a, b)
        assert torch.equal(total, a + b)
        torch.testing.assert_close(product, (a * b).sum())
    assert calls == [(5,)]


def test_a_branch_on_values_is_refused():
    """What is compiled must not depend on numbers: tracing stops instead of keeping the branch of the first call."""
    made = compiled.CompiledFunction(lambda a: (a if a.sum() > 0 else -a,), torch.device("cpu"))
    with pytest.raises(RuntimeError, match="data-dependent"):
        made(torch.ones(3))


def test_a_machine_without_a_compiler_is_told_so(monkeypatch, tmp_path):
    """Before anything is traced, on the CPU alone."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    with pytest.raises(UserError, match=r"needs a C\+\+ compiler on the CPU: install g\+\+"):
        compiled.CompiledFunction(lambda a: (a,), torch.device("cpu"))
    assert compiled.compiler_options(torch.device("cuda")) is None


@pytest.mark.parametrize("works_for_tests", [False, True])
def test_a_compiler_that_fails_is_named_in_one_line(tmp_path: Path, works_for_tests: bool):
    """One that does nothing, and one that says its version but cannot compile."""
    compiler = tmp_path / "c++"
    version = '[ "$1" = --version ] && exec g++ --version\n' if works_for_tests else ""
    compiler.write_text(f"#!/bin/sh\n{version}echo 'x.h:1: fatal error: no such file' >&2\nexit 1\n")
    compiler.chmod(0o700)
    script = (
        "import torch\n"
        "from foundation.accel.compiled import CompiledFunction\n"
        "from foundation.core.errors import UserError\n"
        "try:\n"
        "    CompiledFunction(lambda a: (a.sin() + 1,), torch.device('cpu'))(torch.ones(300))\n"
        "except UserError as error:\n"
        "    print(error)\n"
    )
    env = os.environ | {"CXX": str(compiler), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True)
    [line] = done.stdout.splitlines()
    assert line.startswith("a compiled simulator (env.compile=true, --compile) needs a C++ compiler that works: ")
    assert line.endswith("fatal error: no such file" if works_for_tests else f"(None, '{compiler}')")
