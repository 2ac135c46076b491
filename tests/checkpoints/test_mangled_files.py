"""Every format that is read, with bits, lengths and records changed at random: one line, or a policy; never more."""

from __future__ import annotations

import io
import random
import resource
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy
import onnx
import pytest
import torch
from l2f_flights import PUBLISHED
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import Overrides
from foundation.core.errors import UserError
from foundation.core.files import load_json, load_yaml
from foundation.students import StudentPolicy

DATA = Path(__file__).resolve().parent / "data"
SEEDS = 40
MORE = 1 << 30
"""Address space that reading may take [B]: PyTorch's own code maps a part of it."""


def rsl_rl(path: Path) -> None:
    """Write a checkpoint of RSL-RL."""
    actor = nn.Sequential(nn.Linear(7, 8), nn.ELU(), nn.Linear(8, 3))
    weights = {f"actor.{name}": value for name, value in actor.state_dict().items()} | {"std": torch.ones(3)}
    torch.save({"model_state_dict": weights, "iter": 3, "infos": None, "optimizer_state_dict": {"state": {}}}, path)


def student(path: Path) -> None:
    """Write a student."""
    made = StudentPolicy(7, 3)
    torch.save({"student": made.describe(), "model_state_dict": made.state_dict(), "obs_groups": ["policy"]}, path)


def script(path: Path) -> None:
    """Write TorchScript."""
    torch.jit.script(nn.Sequential(nn.Linear(7, 8), nn.ELU(), nn.Linear(8, 3))).save(str(path))


def model(path: Path) -> None:
    """Write an ONNX model."""
    weights = {"w": (8, 7), "b": (8,), "v": (3, 8)}
    values = {name: numpy.full(shape, 0.1, "float32") for name, shape in weights.items()}
    nodes = [
        helper.make_node("Gemm", ["obs", "w", "b"], ["h"], transB=1),
        helper.make_node("Elu", ["h"], ["e"]),
        helper.make_node("Gemm", ["e", "v"], ["actions"], transB=1),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [1, s]) for n, s in (("obs", 7), ("actions", 3))]
    held = [numpy_helper.from_array(value, name) for name, value in values.items()]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], held)), str(path))


def text(content: str) -> Callable[[Path], None]:
    """Return a writer of text."""
    return lambda path: path.write_text(content) and None


def copied(source: Path) -> Callable[[Path], None]:
    """Return a writer of a copy, with what lies beside it."""

    def write(path: Path) -> None:
        for beside in source.parent.iterdir():
            if beside.is_file() and beside.name != "expected.pt":
                shutil.copy(beside, path.parent / beside.name)
        shutil.copy(source, path)

    return write


def policy(path: Path) -> None:
    """Read a policy and let it act."""
    network = load_policy(path, Overrides()).network
    with torch.no_grad():
        mean = network.step(torch.zeros(2, network.num_obs), network.initial_state(2))[0].mean
    assert mean.shape[0] == 2


YAML = (
    "policy: &p\n  class_name: ActorCritic\n  actor_hidden_dims: !!python/tuple [8, 8]\n  activation: elu\n"
    "again: *p\nobs_groups:\n  policy: [policy]\nf: !!python/name:torch.nn.ELU ''\nx: 1.5\n"
)
JSON = (
    '{"format": "x", "files": [{"rows": 3, "crc32": "00ff"}], "typed": {"image": [3, 64, 64]}, "t": [true, null, 1e3]}'
)
KINDS: dict[str, tuple[str, Callable[[Path], None], Callable[[Path], object]]] = {
    "rsl_rl": ("model_3.pt", rsl_rl, policy),
    "student": ("student.pt", student, policy),
    "torchscript": ("policy.pt", script, policy),
    "onnx": ("policy.onnx", model, policy),
    "hdf5": ("checkpoint.h5", copied(PUBLISHED), policy),
    "skrl": ("agent_8.pt", copied(DATA / "skrl-1.4.3/normalized/checkpoints/agent_8.pt"), policy),
    "rl_games": ("case.pth", copied(DATA / "rl_games-1.6.5/gru_first/nn/case.pth"), policy),
    "sb3": ("model.zip", copied(DATA / "stable-baselines3-2.9.2/ppo/model.zip"), policy),
    "sb3_contrib": ("model.zip", copied(DATA / "sb3-contrib-2.9.2/recurrent_deep/model.zip"), policy),
    "yaml": ("agent.yaml", text(YAML), load_yaml),
    "json": ("dataset.json", text(JSON), load_json),
}
"""File, who writes it, who reads it."""


def mangle(content: bytes, rng: random.Random) -> bytes:
    """Return content with bits flipped, a part cut out, doubled or moved, a length replaced, or its end cut off."""
    changed, place = bytearray(content), rng.randrange(len(content))
    size = rng.choice((1, 4, 40, 400))
    other = rng.randrange(len(content))
    match rng.randrange(6):
        case 0:
            for _ in range(rng.choice((1, 3, 20))):
                changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        case 1:
            del changed[place:]
        case 2:
            del changed[place : place + size]
        case 3:
            changed[place:place] = changed[other : other + size]
        case 4:
            changed[place : place + size] = changed[other : other + size]
        case _:
            number = rng.choice((0, 1, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 20))
            changed[place : place + 4] = struct.pack(rng.choice("<>") + "I", number)
    return bytes(changed)


def mangle_records(content: bytes, rng: random.Random) -> bytes:
    """Return a zip archive whose records are mangled, swapped, doubled, left out or deflated, with sound checksums."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    place, other = rng.randrange(len(records)), rng.randrange(len(records))
    name, record = records[place]
    match rng.randrange(4):
        case 0:
            records[place] = name, mangle(record, rng) if record else b"x"
        case 1:
            records[place], records[other] = (name, records[other][1]), (records[other][0], record)
        case 2:
            del records[place]
        case _:
            pickles = [index for index, (own, _) in enumerate(records) if own.endswith(("data.pkl", "data"))]
            place = rng.choice(pickles)
            records[place] = records[place][0], mangle(records[place][1], rng)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for name, record in records:
            archive.writestr(name, record)
    return out.getvalue()


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Let an allocation of gigabytes fail."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MORE, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.filterwarnings("ignore")
def test_mangled_files(kind, tmp_path):
    """Forty changed copies of a sound file: each is a UserError of one line that names the file, or is read."""
    name, write, read = KINDS[kind]
    path = tmp_path / name
    write(path)
    sound = path.read_bytes()
    read(path)
    refused = 0
    for seed in range(SEEDS):
        rng = random.Random(f"{kind}{seed}")
        packed = sound.startswith(b"PK") and seed % 2
        path.write_bytes(mangle_records(sound, rng) if packed else mangle(sound, rng))
        try:
            read(path)
        except UserError as error:
            line, cause = str(error), error.__cause__
            assert "\n" not in line and name in line and len(line) < 1000, (seed, line)
            assert not isinstance(cause, MemoryError) and "allocate" not in str(cause), (seed, line)
            refused += 1
        except Exception as error:
            raise AssertionError(f"seed {seed}: {type(error).__name__}: {error}") from error
    assert refused > SEEDS // 8
