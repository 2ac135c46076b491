"""A first run of a policy's own code in a process of its own: it may loop for ever, or crash the process it is in."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

from foundation.checkpoints.as_is.onnx_runtime import load_onnx
from foundation.checkpoints.as_is.script import load_script
from foundation.checkpoints.onnx.file import load_model
from foundation.core.child_process import end_with_parent
from foundation.core.errors import UserError

_SECONDS = 60.0
"""Most time that loading a policy and running it for a few steps may take [s]."""
_PLAIN_CODE = 1 << 15
"""TorchScript without loops that is no longer than this cannot exhaust PyTorch's compiler [B]."""
_LOOP = re.compile(rb"^\s*(while|for)\b", re.MULTILINE)
_COLLECTION = re.compile(rb"(= \(|\[)\w+, ")
_MAX_COLLECTIONS = 8
"""Tuples and lists in code without loops: thirty, each of two of the one before, would hold a billion tensors."""
_CONTROL_FLOW = ("Loop", "Scan", "If")
_PROGRAM = "from foundation.checkpoints.as_is.trial import _run; _run()"


def try_in_child(path: Path, sizes: list[int], onnx: bool) -> None:
    """Run a policy in another process first, if its code has loops or is very long; what is plain needs no trial.

    A policy that raises there raises here too, with its own message, so that only hangs and crashes are reported.

    Args:
        path: The policy.
        sizes: Number of observations of each of its arguments, where the user has set it, else empty.
        onnx: Whether it is an ONNX model, else TorchScript.

    Raises:
        UserError: If it does not end within a minute, or if the process crashes.
    """
    if not (_may_loop_onnx(path) if onnx else _may_loop_script(path)):
        return
    runtime = "onnxruntime" if onnx else "PyTorch"
    root = str(Path(__file__).resolve().parents[3])  # where the package is found
    known = os.environ.get("PYTHONPATH")
    child = subprocess.Popen(
        [sys.executable, "-P", "-c", _PROGRAM, "onnx" if onnx else "script", str(path), *map(str, sizes)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, known] if known else [root])},
        preexec_fn=end_with_parent(),
    )
    try:
        code = child.wait(_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise UserError(
            f"'{path}' has not ended its first steps after {_SECONDS:.0f} s in {runtime}: its code seems to loop for "
            "ever. Export the policy again, one step per call."
        ) from error
    finally:
        child.kill()
        child.wait()
    if code < 0:
        raise UserError(
            f"'{path}' crashes {runtime} in its first steps ({signal.Signals(-code).name}): its code is damaged or too "
            "long. Export the policy again."
        )


def _may_loop_script(path: Path) -> bool:
    """Return whether a TorchScript archive's code has loops, or is long enough to exhaust PyTorch's compiler."""
    try:
        with zipfile.ZipFile(path) as archive:
            code = [entry for entry in archive.infolist() if "/code/" in entry.filename]
            if sum(entry.file_size for entry in code) > _PLAIN_CODE:
                return True
            texts = [archive.read(entry) for entry in code]
    except Exception:  # a damaged archive raises whatever it runs into
        return True
    return any(_LOOP.search(text) or len(_COLLECTION.findall(text)) > _MAX_COLLECTIONS for text in texts)


def _may_loop_onnx(path: Path) -> bool:
    model = load_model(path)
    return bool(model.functions) or any(node.op_type in _CONTROL_FLOW for node in model.graph.node)


def _run() -> None:
    """Load the policy that the arguments name. This is the other process."""
    kind, path, *sizes = sys.argv[1:]
    try:
        (load_onnx if kind == "onnx" else load_script)(Path(path), list(map(int, sizes)))
    except UserError:  # met again, and said, by the process that waits for this one
        sys.exit(1)
