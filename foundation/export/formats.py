"""The formats in which a policy can be written, each with the check that its own runtime gives the policy's actions."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy
import torch
import yaml
from numpy.typing import NDArray

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError, suggest
from foundation.core.text import one_line
from foundation.deploy import Golden, Policy
from foundation.deploy.description import Description
from foundation.deploy.golden import FloatArray
from foundation.deploy.npz_file import write_golden, write_npz
from foundation.export.bundle import Bundle
from foundation.export.c_source import CFiles, to_c, to_int8_c
from foundation.export.c_text import c_name
from foundation.export.deploy_yaml import deploy_values, to_deploy_yaml
from foundation.export.executorch import read_executorch, write_executorch
from foundation.export.leapp_bundle import read_leapp, write_leapp
from foundation.export.onnx_file import write_onnx
from foundation.export.onnx_int8 import write_int8_onnx
from foundation.export.px4 import ArchivedPolicy, read_px4, write_px4
from foundation.export.rl_tools import write_rl_tools
from foundation.export.rsl_rl import write_rsl_rl
from foundation.export.torch_export import read_torch_export, write_torch_export
from foundation.export.torchscript import write_torchscript
from foundation.policies.policy_network import PolicyNetwork

_COMPILER_SECONDS = 300
_WITHOUT_8_BITS = "take format {}, or distil it with the last epochs in 8 bits (distill.optimizer.int8_epochs)."


@dataclass(frozen=True)
class Check:
    """Result of running a written file by its format's own runtime."""

    runtime: str
    """The runtime, such as ``onnxruntime``."""
    difference: float | None
    """Largest difference of an action over the golden sequence. None: there are no actions to compare."""


@dataclass(frozen=True)
class Written:
    """A format that was written."""

    format: str
    files: tuple[Path, ...]
    """The first is what a user loads."""
    check: Check | None
    """None: not checked."""
    unchecked: str = ""
    """Why not."""

    def line(self) -> str:
        """Return one line for the console."""
        names = ", ".join(str(file) for file in self.files)
        if self.check is None:
            return f"{self.format}: {names} - NOT CHECKED: {self.unchecked}"
        if self.check.difference is None:
            return f"{self.format}: {names} - read back by {self.check.runtime}"
        return f"{self.format}: {names} - {self.check.runtime} agrees to {self.check.difference:.1e}"


class _NotCheckedError(Exception):
    """The runtime that would check a file is not installed."""


@dataclass(frozen=True)
class Format:
    """One format."""

    about: str
    """What reads it."""
    write: Callable[[Bundle, Path], list[str]]
    """Writes into a folder and returns the names of the files."""
    check: Callable[[Bundle, Path, list[str]], Check]
    """Reads the files back; raises a :class:`UserError` where they do not do what the policy does."""


# -- writers and checks ---------------------------------------------------------------------------------------------


def _write_npz(bundle: Bundle, folder: Path) -> list[str]:
    file = f"{bundle.description.name}.npz"
    with (folder / file).open("wb") as stream:
        write_npz(stream, bundle.program, bundle.description, bundle.golden)
    return [file]


def _check_npz(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    return Check(f"NumPy {numpy.__version__}", Policy(folder / files[0]).check(bundle.golden))


def _write_onnx(bundle: Bundle, folder: Path) -> list[str]:
    file = f"{bundle.description.name}.onnx"
    with (folder / file).open("wb") as stream:
        write_onnx(stream, bundle.program, bundle.description)
    return [file]


def _check_onnx(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    if find_spec("onnxruntime") is None:
        raise _NotCheckedError("the package onnxruntime is not installed (pip install -e '.[export]')")
    import onnxruntime  # an optional package

    return Check(f"onnxruntime {onnxruntime.__version__}", Policy(folder / files[0]).check(bundle.golden))


def _write_int8_onnx(bundle: Bundle, folder: Path) -> list[str]:
    description = _rounded(bundle.description)
    file = f"{description.name}.onnx"
    with (folder / file).open("wb") as stream:
        write_int8_onnx(stream, bundle.program, description)
    return [file]


def _rounded(description: Description) -> Description:
    return dataclasses.replace(description, name=f"{description.name}_int8", weight_bits=8)


def _check_int8_onnx(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    import onnxruntime  # an optional package, without which the file cannot be written

    difference = bundle.golden.difference(Policy(folder / files[0]))
    limit = bundle.golden.int8_tolerance
    if not difference <= limit:
        raise UserError(
            f"{files[0]} differs from the policy by {difference:.2g}, more than {limit:.2g}: the policy does not stand "
            f"8 bits: {_WITHOUT_8_BITS.format('onnx')}"
        )
    return Check(f"onnxruntime {onnxruntime.__version__}, dynamic 8 bits,", difference)


def _write_torchscript(bundle: Bundle, folder: Path) -> list[str]:
    file = "policy.pt" if bundle.description.name == "policy" else f"{bundle.description.name}_script.pt"
    with (folder / file).open("wb") as stream:
        write_torchscript(stream, bundle.program, bundle.description)
    return [file]


class _Script:
    """A TorchScript module as what a golden sequence is replayed by."""

    def __init__(self, path: Path) -> None:
        self._module = torch.jit.load(str(path), map_location="cpu").eval()

    @torch.no_grad()
    def step(self, obs: FloatArray) -> FloatArray:
        """Act. Shape: (num_envs, num_obs) to (num_envs, num_actions)."""
        return self._module(torch.from_numpy(obs)).numpy()

    def reset(self, mask: NDArray[numpy.bool_] | None = None) -> None:
        """Begin new episodes where ``mask``, or everywhere."""
        if mask is None:
            self._module.reset()
        else:
            self._module.reset_envs(torch.from_numpy(mask))


def _check_torchscript(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    difference = bundle.golden.difference(_Script(folder / files[0]))
    return Check(f"TorchScript of PyTorch {torch.__version__}", _small(difference, bundle.golden, files[0]))


def _write_torch_export(bundle: Bundle, folder: Path) -> list[str]:
    file = f"{bundle.description.name}.pt2"
    with (folder / file).open("wb") as stream:
        write_torch_export(stream, bundle.program, bundle.description)
    return [file]


def _check_torch_export(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    difference = bundle.golden.difference(read_torch_export(folder / files[0]))
    return Check(f"torch.export of PyTorch {torch.__version__}", _small(difference, bundle.golden, files[0]))


def _write_executorch(bundle: Bundle, folder: Path) -> list[str]:
    file = f"{bundle.description.name}.pte"
    with (folder / file).open("wb") as stream:
        write_executorch(stream, bundle.program, bundle.description)
    return [file]


def _check_executorch(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    difference = bundle.golden.difference(read_executorch(folder / files[0]))
    return Check("ExecuTorch's runtime", _small(difference, bundle.golden, files[0]))


def _write_leapp(bundle: Bundle, folder: Path) -> list[str]:
    return write_leapp(folder, bundle.program, bundle.description)


def _check_leapp(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    difference = bundle.golden.difference(read_leapp(folder / files[0], bundle.program))
    return Check("LEAPP's runtime", _small(difference, bundle.golden, files[0]))


def _write_c(bundle: Bundle, folder: Path) -> list[str]:
    return _write_texts(to_c(bundle.program, bundle.description, bundle.golden), bundle.description.name, folder)


def _write_int8_c(bundle: Bundle, folder: Path) -> list[str]:
    description = _rounded(bundle.description)
    return _write_texts(to_int8_c(bundle.program, description, bundle.golden), description.name, folder)


def _write_texts(texts: CFiles, policy: str, folder: Path) -> list[str]:
    name = c_name(policy)
    files = {f"{name}.h": texts.header, f"{name}.c": texts.library, f"{name}_test.c": texts.test}
    for file, text in files.items():
        (folder / file).write_text(text, encoding="utf-8")
    return list(files)


def _check_c(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    """Compile the test and run it; its tolerance is its own."""
    compiler = find_compiler()
    if compiler is None:
        raise _NotCheckedError("no C compiler is installed (cc, gcc or clang)")
    test = folder / "test.out"
    compile_c(compiler, folder / files[2], test)
    said = subprocess.run([str(test)], capture_output=True, text=True, timeout=_COMPILER_SECONDS, check=False)
    test.unlink()
    if said.returncode != 0 or not said.stdout.startswith("PASS"):
        rounded = files[2].endswith("_int8_test.c") and said.stdout.startswith("FAIL largest")
        advice = f" The policy does not stand 8 bits: {_WITHOUT_8_BITS.format('c')}" if rounded else ""
        found = said.stdout.strip() or said.returncode
        raise UserError(f"{files[2]} does not give the policy's actions: {found}.{advice}")
    return Check(f"C by {Path(compiler).name}", float(said.stdout.split()[-1]))


def _write_so(bundle: Bundle, folder: Path) -> list[str]:
    compiler = find_compiler()
    if compiler is None:
        raise UserError("format 'so' is compiled here and no C compiler is installed (cc, gcc or clang): take 'c'.")
    name = c_name(bundle.description.name)
    with tempfile.TemporaryDirectory() as place:
        _write_c(bundle, Path(place))
        compile_c(compiler, Path(place) / f"{name}.c", folder / f"{name}.so", shared=True)
    return [f"{name}.so"]


def _check_so(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    return Check("the compiled library", Policy(folder / files[0]).check(bundle.golden))


def _write_yaml(bundle: Bundle, folder: Path) -> list[str]:
    text = to_deploy_yaml(bundle.description, Path(bundle.info.path), bundle.info.joint_order)
    (folder / "deploy.yaml").write_text(text, encoding="utf-8")
    return ["deploy.yaml"]


def _check_yaml(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    read = yaml.safe_load((folder / files[0]).read_text(encoding="utf-8"))
    if read != deploy_values(bundle.description, Path(bundle.info.path), bundle.info.joint_order):
        raise UserError(f"{files[0]} reads back as something else than was written.")
    return Check("YAML", None)


def _write_rsl_rl(bundle: Bundle, folder: Path) -> list[str]:
    groups = bundle.description.obs_groups or ("policy",)
    clip = bundle.description.action_clip
    write_rsl_rl(bundle.network, folder / "rsl_rl" / "model_0.pt", obs_groups=groups, clip_actions=clip)
    return ["rsl_rl/model_0.pt", "rsl_rl/params/agent.yaml"]


def _check_rsl_rl(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    return Check("foundation's reader", _read_back(bundle, folder / files[0]))


def _write_rl_tools(bundle: Bundle, folder: Path) -> list[str]:
    file = f"{bundle.description.name}.h5"
    write_rl_tools(folder / file, bundle.program, bundle.golden, bundle.description.name)
    return [file]


def _check_rl_tools(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    return Check("foundation's reader", _read_back(bundle, folder / files[0]))


def _write_px4(bundle: Bundle, folder: Path) -> list[str]:
    file = f"{bundle.description.name}.tar"
    with (folder / file).open("wb") as stream:
        write_px4(stream, bundle.program, bundle.golden, bundle.description.name)
    return [file]


def _check_px4(bundle: Bundle, folder: Path, files: list[str]) -> Check:
    """Act by the weights that are in the archive."""
    read = read_px4(folder / files[0])
    replay = ArchivedPolicy(read, bundle.description.action_clip)
    difference = _small(bundle.golden.difference(replay), bundle.golden, files[0])
    return Check("the tensors read back from the archive", difference)


class _Network:
    """A policy that was read back, as what a golden sequence is replayed by."""

    def __init__(self, network: PolicyNetwork, clip: float | None) -> None:
        self._network = network
        self._clip = clip
        self._state: torch.Tensor | None = None

    @torch.no_grad()
    def step(self, obs: FloatArray) -> FloatArray:
        """Act. Shape: (num_envs, num_obs) to (num_envs, num_actions)."""
        output, self._state = self._network.step(torch.from_numpy(obs), self._state)
        mean = output.mean if self._clip is None else output.mean.clamp(-self._clip, self._clip)
        return mean.numpy()

    def reset(self, mask: NDArray[numpy.bool_] | None = None) -> None:
        """Begin new episodes where ``mask``, or everywhere."""
        self._state = None if mask is None else self._network.reset_state(self._state, torch.from_numpy(mask))


def _read_back(bundle: Bundle, path: Path) -> float:
    policy = load_policy(path, Overrides())
    clip = policy.info.clip_actions or bundle.description.action_clip  # rl-tools' files have no bound
    difference = bundle.golden.difference(_Network(policy.network, clip))
    return _small(difference, bundle.golden, path.name)


def _small(difference: float, golden: Golden, file: str) -> float:
    if not difference <= golden.tolerance:
        raise UserError(f"{file} gives other actions than the policy: they differ by {difference:.2g}.")
    return difference


FORMATS: Mapping[str, Format] = {
    "onnx": Format("onnxruntime, TensorRT, OpenVINO; memory in and out", _write_onnx, _check_onnx),
    "torchscript": Format("Isaac Lab's and unitree's runners: forward(obs), reset()", _write_torchscript,
                          _check_torchscript),
    "torch_export": Format("PyTorch, AOTInductor: a .pt2 program, memory in and out", _write_torch_export,
                           _check_torch_export),
    "executorch": Format("ExecuTorch on phones and microcontrollers: a .pte program", _write_executorch,
                         _check_executorch),
    "leapp": Format("LEAPP's runtime and NVIDIA's deployment tools: YAML and ONNX", _write_leapp, _check_leapp),
    "npz": Format("foundation.deploy with NumPy alone", _write_npz, _check_npz),
    "c": Format("any C99 compiler: a header without dependencies, and its test", _write_c, _check_c),
    "c_int8": Format("the same with 8-bit weights, in integers", _write_int8_c, _check_c),
    "onnx_int8": Format("onnxruntime: 8-bit weights, inputs of products rounded as they come", _write_int8_onnx,
                        _check_int8_onnx),
    "so": Format("foundation.deploy and whoever loads a shared library", _write_so, _check_so),
    "yaml": Format("controllers: deploy.yaml with names, sizes, units, rates", _write_yaml, _check_yaml),
    "rsl_rl": Format("RSL-RL 5's runner and Isaac Lab's play.py", _write_rsl_rl, _check_rsl_rl),
    "px4": Format("PX4's mc_raptor: raptor/policy.tar on the SD card", _write_px4, _check_px4),
    "rl_tools": Format("rl-tools and foundation-policy: HDF5", _write_rl_tools, _check_rl_tools),
}  # fmt: skip
"""Every format by the name that the user types."""
DEFAULT_FORMATS = ("onnx", "torchscript", "npz", "c", "yaml")
"""What is written where the user names none."""


# -- the C compiler -------------------------------------------------------------------------------------------------


def find_compiler() -> str | None:
    """Return a C compiler of this machine: ``$CC``, cc, gcc or clang."""
    named = os.environ.get("CC")
    return next((found for name in (named, "cc", "gcc", "clang") if name and (found := shutil.which(name))), None)


def compile_c(compiler: str, source: Path, output: Path, shared: bool = False) -> None:
    """Compile one file.

    Args:
        compiler: Its path.
        source: The file.
        output: The program, or with ``shared`` the library.
        shared: Whether to make a shared library.
    """
    kind = ["-fPIC", "-shared"] if shared else []
    command = [compiler, "-std=c99", "-O2", *kind, str(source), "-o", str(output), "-lm"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_COMPILER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{source.name} cannot be compiled by {compiler}: {one_line(error)}") from error
    if done.returncode != 0:
        raise UserError(f"{source.name} cannot be compiled by {compiler}: {one_line(done.stderr)}")


# -- all of it ------------------------------------------------------------------------------------------------------


def check_formats(names: Sequence[str]) -> list[str]:
    """Return the formats that a user names, each once; an unknown one is answered with the nearest.

    Args:
        names: As typed: each may hold several, separated by commas.
    """
    wanted = [part.strip().lower() for name in names for part in name.split(",") if part.strip()]
    for name in wanted:
        if name not in FORMATS:
            raise UserError(f"--formats: unknown format '{name[:60]}'. {suggest(name, FORMATS)}")
    if not wanted:
        raise UserError(f"--formats names no format. Valid are: {', '.join(FORMATS)}.")
    return list(dict.fromkeys(wanted))


def export(bundle: Bundle, folder: Path, formats: Sequence[str] = DEFAULT_FORMATS) -> Iterator[Written]:
    """Write a policy, each format after its check: what is there, is whole and does what the policy does.

    Args:
        bundle: The policy.
        folder: Where to; made if need be.
        formats: Names of :data:`FORMATS`.
    """
    golden = f"{bundle.description.name}_golden.npz"
    with _staging(folder) as stage:
        with _said_of_disk(folder), (stage / golden).open("wb") as stream:
            write_golden(stream, bundle.golden)
        for name in formats:
            with _said_of_disk(folder):
                files = FORMATS[name].write(bundle, stage)
            check = None
            why = ""
            try:
                check = FORMATS[name].check(bundle, stage, files)
            except _NotCheckedError as error:
                why = str(error)
            if (stage / golden).exists():
                _moved(stage, folder, golden)
            yield Written(name, tuple(_moved(stage, folder, file) for file in files), check, why)


@contextmanager
def _said_of_disk(folder: Path) -> Iterator[None]:
    """Name the folder where the system refuses to write, as a full disk does."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise UserError(f"'{folder}' cannot be written: {reason}. Name another folder (--output)") from error


def _moved(stage: Path, folder: Path, file: str) -> Path:
    target = folder / file
    target.parent.mkdir(parents=True, exist_ok=True)
    (stage / file).replace(target)
    return target


@contextmanager
def _staging(folder: Path) -> Iterator[Path]:
    """Make the folder and, in it, one for files that are not checked yet."""
    if folder.exists() and not folder.is_dir():
        raise UserError(f"'{folder}' is a file: name a folder to export to (--output)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        stage = tempfile.mkdtemp(prefix=".unchecked-", dir=folder)
    except OSError as error:
        raise UserError(f"'{folder}' cannot be written: {one_line(error)}. Name another folder (--output)") from error
    try:
        yield Path(stage)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if not any(folder.iterdir()):
            folder.rmdir()
