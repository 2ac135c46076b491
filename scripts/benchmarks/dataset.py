"""A large dataset: its memory, its sampling, and saving that is killed half way.

python scripts/benchmarks/dataset.py FOLDER CHUNKS ENVS    # saves made-up chunks; what the benchmark kills
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from foundation.dataset.dataset import BufferSpec, DistillationDataset  # noqa: E402
from foundation.dataset.disk.format import DatasetLayout  # noqa: E402
from foundation.dataset.disk.load import fill  # noqa: E402
from foundation.dataset.disk.reader import SavedDataset  # noqa: E402
from foundation.dataset.disk.writer import DatasetWriter  # noqa: E402
from foundation.dataset.episodes import EpisodeTable  # noqa: E402

NUM_OBS, NUM_ACTIONS, CHUNK_STEPS = 26, 4, 32
BATCH_SIZES = (256, 4096, 65536)
BLOCKED = ("foundation.tasks.quadrotor.sim", "foundation.tasks", "foundation.engines", "gymnasium", "rsl_rl")
"""What offline training must do without."""


def made_up_chunk(number: int, num_envs: int) -> dict[str, torch.Tensor]:
    """Return the chunk of that number, always the same: a single episode of every environment begins in each."""
    generator = torch.Generator().manual_seed(number)
    shape = (1, CHUNK_STEPS, num_envs)
    rows = torch.rand(*shape, NUM_OBS + NUM_ACTIONS, generator=generator)
    resets = torch.zeros(shape, dtype=torch.bool)
    resets[:, 0] = True
    episode = (number * num_envs + torch.arange(num_envs, dtype=torch.int32)).expand(shape).contiguous()
    return {"rows": rows, "resets": resets, "episode": episode}


def save_chunks(folder: Path, chunks: int, num_envs: int) -> None:
    """Save the chunks, one epoch each, going on where an earlier call was stopped."""
    layout = DatasetLayout(
        "Made-Up-v0", ["policy"], None, NUM_OBS, {"mean": NUM_ACTIONS}, "float32", CHUNK_STEPS, num_envs
    )
    writer = DatasetWriter(folder, layout, "benchmark")
    writer.open()
    for number in range(sum(entry.chunks for entry in writer.files), chunks):
        chunk = made_up_chunk(number, num_envs)
        length = torch.full((num_envs,), CHUNK_STEPS, dtype=torch.int32)
        flags = torch.ones(num_envs, dtype=torch.bool)
        if number % 4 == 0:
            writer.flush(number)
        writer.add(chunk, EpisodeTable(chunk["episode"][0, -1], torch.rand(num_envs), length, flags, flags), number + 1)
    writer.flush(chunks)


def resident_bytes() -> int:
    """Return the memory that this process holds [bytes]."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kill_half_way(folder: Path, chunks: int, num_envs: int) -> int:
    """Start saving, kill it (SIGKILL) when half of the chunks are listed, and return how many were."""
    command = [sys.executable, str(Path(__file__).resolve()), str(folder), str(chunks), str(num_envs)]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
    listed = 0
    while process.poll() is None and listed < chunks // 2:
        time.sleep(0.002)
        if (folder / "dataset.json").exists():
            listed = sum(entry.chunks for entry in SavedDataset(folder).files)
    process.kill()
    process.wait()
    return sum(entry.chunks for entry in SavedDataset(folder).files)


def sampling(dataset: DistillationDataset, seconds: float) -> list[dict[str, float]]:
    """Measure minibatches against a bare ``index_select`` of as many rows, in turns [rows per CPU second]."""
    matrix = dataset.rows.view(-1, dataset.row_size)
    out = []
    for size in BATCH_SIZES:
        batches = max(1, 262_144 // size)
        times = {"minibatches": 0.0, "index_select": 0.0}
        drawn, end = 0, time.process_time() + seconds
        while time.process_time() < end:
            index = torch.randint(len(matrix), (batches, size))
            start = time.process_time()
            for row in index:
                batch = matrix.index_select(0, row)
            middle = time.process_time()
            for batch in dataset.flat_minibatches(size, batches):  # noqa: B007  (held, as by whoever learns from it)
                pass
            del batch
            times["index_select"] += middle - start
            times["minibatches"] += time.process_time() - middle
            drawn += batches * size
        speeds = {name: drawn / total for name, total in times.items()}
        out.append({"batch_size": size, **speeds, "share": speeds["minibatches"] / speeds["index_select"]})
    return out


def offline_seconds(folder: Path, work: Path) -> float:
    """Train from the saved dataset in a process that cannot import any simulator, and return its CPU seconds."""
    code = f"""
import sys, time
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if any(name == b or name.startswith(b + '.') for b in {BLOCKED!r}):
            raise ModuleNotFoundError('uninstalled: ' + name, name=name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, {str(ROOT)!r})
from foundation.cli.command import run_command
from foundation.rsl_rl.distillation import main
code = run_command(main, ['--offline', '--dataset', {str(folder)!r}, '--device', 'cpu', '--n_epochs', '2',
    '--batch_size', '4096', 'optimizer.updates_per_epoch=200'])
print('cpu', time.process_time())
sys.exit(code)
"""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=work, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"offline training failed: {done.stderr[-500:]}")
    return float(done.stdout.split()[-1])


def dataset(rows: int, num_envs: int, seconds: float) -> dict[str, Any]:
    """Measure everything.

    Args:
        rows: Rows of the dataset, rounded up to whole chunks.
        num_envs: Environments of a chunk.
        seconds: How long to measure each batch size [CPU s].
    """
    chunks = -(-rows // (CHUNK_STEPS * num_envs))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "saved"
        killed_at = kill_half_way(folder, chunks, num_envs)
        start = time.process_time()
        save_chunks(folder, chunks, num_envs)
        saving = time.process_time() - start
        saved = SavedDataset(folder)
        gc.collect()
        before = resident_bytes()
        loaded = DistillationDataset(
            BufferSpec(
                NUM_OBS, num_envs, chunks * CHUNK_STEPS * num_envs, {"mean": NUM_ACTIONS}, chunk_steps=CHUNK_STEPS
            )
        )
        start = time.process_time()
        fill(saved, [loaded])
        loading = time.process_time() - start
        gc.collect()
        held = resident_bytes() - before
        identical = all(
            torch.equal(loaded.rows[number], chunk["rows"][0])
            and torch.equal(loaded.resets[number], chunk["resets"][0])
            for number, chunk in ((number, made_up_chunk(number, num_envs)) for number in range(chunks))
        )
        result = {
            "rows": len(loaded),
            "announced_bytes": loaded.num_bytes,
            "resident_bytes": held,
            "resident_over_announced": held / loaded.num_bytes,
            "sampling": sampling(loaded, seconds),
            "chunks": chunks,
            "chunks_listed_when_killed": killed_at,
            "identical_after_kill_and_resume": identical,
            "rows_per_cpu_second": {
                "saving": (chunks - killed_at) * CHUNK_STEPS * num_envs / saving,
                "loading": len(loaded) / loading,
            },
        }
        del loaded
        gc.collect()
        result["offline_cpu_seconds"] = offline_seconds(folder, Path(name))
    return result


if __name__ == "__main__":
    torch.set_num_threads(1)
    save_chunks(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
