"""Small datasets on disk whose every number says where it came from."""

from __future__ import annotations

from pathlib import Path

import torch

from foundation.dataset.disk.format import DatasetLayout
from foundation.dataset.disk.writer import DatasetWriter
from foundation.dataset.episodes import EpisodeTable


def layout(num_envs: int = 3, chunk_steps: int = 4, **changes) -> DatasetLayout:
    values = {"task": "Toy", "obs_groups": ["policy"], "obs_slice": None, "num_obs": 2, "targets": {"mean": 1}}
    return DatasetLayout(**{**values, "dtype": "float32", "chunk_steps": chunk_steps, "num_envs": num_envs, **changes})


def chunk(number: int, made: DatasetLayout, run: int = 0) -> dict[str, torch.Tensor]:
    """Observation (time, env) and a mean made of both and of the run; every episode is as long as a chunk."""
    steps, envs = made.chunk_steps, made.num_envs
    time = (number * steps + torch.arange(steps)).view(1, -1, 1).expand(1, steps, envs).float()
    env = torch.arange(envs).float().expand(1, steps, envs)
    extra = made.row_size - 3
    rows = torch.stack([time, env, 1e4 * run + 100.0 * time + env, *[time] * extra], dim=-1)
    resets = (time.long() % steps) == 0
    episode = ((run * 1000 + number) * envs + env).int()
    return {"rows": rows.to(getattr(torch, made.dtype)), "resets": resets, "episode": episode}


def episodes(number: int, made: DatasetLayout, run: int = 0) -> EpisodeTable:
    """Episodes return their number, succeed in even environments, and are whole."""
    ids = chunk(number, made, run)["episode"][0, -1]
    lengths = torch.full_like(ids, made.chunk_steps)
    return EpisodeTable(ids, ids.float(), lengths, torch.arange(made.num_envs) % 2 == 0, torch.ones_like(ids).bool())


def save(folder: Path, made: DatasetLayout, chunks: int, run: int = 0, per_file: int = 2) -> DatasetWriter:
    """Save chunks, an epoch a file, going on after what is there of this run."""
    writer = DatasetWriter(folder, made, f"run {run}", {"format": "made up"})
    writer.open()
    done = sum(entry.chunks for entry in writer.files if entry.run == f"run {run}")
    for number in range(done, chunks):
        writer.add(chunk(number, made, run), episodes(number, made, run), number // per_file + 1)
        if (number + 1) % per_file == 0 or number + 1 == chunks:
            writer.flush(number // per_file + 1)
    return writer
