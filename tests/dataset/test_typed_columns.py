"""Columns that are stored as they are: images of bytes, indices, numbers of a type of their own."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.disk.chunks import check_chunks, export_chunks, import_chunks
from foundation.dataset.disk.format import DatasetLayout
from foundation.dataset.disk.load import fill
from foundation.dataset.disk.reader import SavedDataset
from foundation.dataset.disk.writer import DatasetWriter
from foundation.dataset.episode_log import EpisodeLog
from foundation.dataset.episodes import EpisodeTable
from foundation.dataset.prefetch import Prefetcher
from foundation.dataset.transition import Column
from foundation.policies.output import PolicyOutput

ENVS, STEPS = 3, 4
IMAGE, CHOICE = Column((3, 8, 6), "uint8"), Column((1,), "int64")
TYPED = {"image": IMAGE, "mean": CHOICE}


def spec(chunks: int = 5, **options) -> BufferSpec:
    """Observations of 2 numbers and an image, a label that is an index, logits of 4 choices."""
    values = {"targets": {"logits": 4}, "chunk_steps": STEPS, "sequence_length": 2, "typed": TYPED, **options}
    return BufferSpec(2, ENVS, chunks * STEPS * ENVS, **values)


def transition(time: int) -> tuple[torch.Tensor, PolicyOutput, torch.Tensor]:
    """Everything is made of (time, env), so that what belongs together can be told."""
    env = torch.arange(ENVS)
    code = time * ENVS + env
    image = (code.view(-1, 1, 1, 1) * 7 + torch.arange(3 * 8 * 6).view(3, 8, 6)) % 256
    index = (2**40 + code).unsqueeze(-1)  # more than a float32 tells apart
    logits = code.unsqueeze(-1) / 8.0 + torch.arange(4.0)
    return torch.stack([torch.full((ENVS,), float(time)), env.float()], -1), PolicyOutput(index, logits=logits), image


def filled(chunks: int = 5, dtype: str = "float32", **options) -> DistillationDataset:
    dataset = DistillationDataset(spec(chunks, dtype=dtype, **options), seed=0)
    for chunk in range(chunks):
        dataset.begin_chunk()
        for step in range(STEPS):
            obs, targets, image = transition(chunk * STEPS + step)
            dataset.write(step, obs, targets, torch.zeros(ENVS).bool(), extra={"image": image.to(torch.uint8)})
        dataset.commit_chunk()
    return dataset


def check(obs: torch.Tensor, mean: torch.Tensor, image: torch.Tensor) -> None:
    """Image and index are those of the observation that they come with, bit for bit."""
    code = (obs[..., 0] * ENVS + obs[..., 1]).long()
    assert image.dtype == torch.uint8 and mean.dtype == torch.int64
    assert torch.equal(mean.squeeze(-1), 2**40 + code)
    expected = (code.reshape(-1, 1, 1, 1) * 7 + torch.arange(3 * 8 * 6).view(3, 8, 6)) % 256
    assert torch.equal(image.reshape(-1, 3, 8, 6).long(), expected)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_batches_have_each_column_in_its_own_type(dtype):
    """Images stay bytes of shape (N, C, H, W), indices stay integers; other numbers are float32."""
    dataset = filled(dtype=dtype)
    [batch] = dataset.flat_minibatches(len(dataset), 1)
    assert batch.extra is not None and batch.extra["image"].shape == (60, 3, 8, 6)
    assert batch.obs.dtype == torch.float32 and batch.targets.logits is not None
    assert batch.targets.logits.dtype == torch.float32
    check(batch.obs, batch.targets.mean, batch.extra["image"])
    assert len(torch.unique(batch.targets.mean)) == 60


def test_sequences_have_them_too():
    """Shape (sequence, batch, C, H, W), each step with its own image."""
    [batch] = filled().sequence_minibatches(30, 1)
    assert batch.extra is not None and batch.extra["image"].shape == (2, 30, 3, 8, 6)
    check(batch.obs, batch.targets.mean, batch.extra["image"])


def test_an_observation_that_is_an_image_alone_is_a_column():
    """``obs`` itself may be of a type of its own; nothing of it is in the matrix."""
    made = BufferSpec(0, 2, 4, {"mean": 1}, chunk_steps=2, typed={"obs": Column((1, 2, 2), "uint8")})
    dataset = DistillationDataset(made)
    dataset.begin_chunk()
    for step in range(2):
        image = torch.full((2, 1, 2, 2), 10 * step, dtype=torch.uint8)
        dataset.write(step, image, PolicyOutput(torch.full((2, 1), float(step))), torch.zeros(2).bool())
    dataset.commit_chunk()
    [batch] = dataset.flat_minibatches(4, 1)
    assert batch.obs.dtype == torch.uint8 and batch.extra is None
    assert torch.equal(batch.obs[:, 0, 0, 0].float(), 10.0 * batch.targets.mean[:, 0])


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (spec(), (2 + 4) * 4 + 3 * 8 * 6 + 8 + 1),
        (spec(dtype="float16", weighted=True, track_episodes=True), (2 + 4) * 2 + 3 * 8 * 6 + 8 + 1 + 4 + 4),
        (spec(state_size=10, num_teachers=2), (2 + 4) * 4 + 3 * 8 * 6 + 8 + 1 + 4 + 4 * 10 / 2),
    ],
)
def test_memory_is_known_before_it_is_allocated(made, expected):
    """Bytes of a transition, counted by hand; all tensors together have what was announced."""
    assert made.transition_bytes == expected
    dataset = DistillationDataset(made)
    tensors = [dataset.rows, dataset.resets, dataset.teacher_index, dataset.episode, dataset.weights, dataset.states]
    allocated = sum(tensor.nbytes for tensor in [*tensors, *dataset.typed.values()] if tensor is not None)
    assert allocated == made.num_bytes == 60 * expected


def test_another_device_gets_all_columns():
    """What is fetched ahead includes the columns of their own type."""
    dataset = filled()
    [batch] = Prefetcher(dataset.flat_minibatches(60, 1), torch.device("cpu"))
    assert batch.extra is not None
    check(batch.obs, batch.targets.mean, batch.extra["image"])


def test_a_resumed_run_gets_them_back():
    """Chunks that were written for ``--resume`` have every column, bit for bit."""
    dataset, again = filled(), DistillationDataset(spec())
    shard = export_chunks(dataset, [3, 1])
    check_chunks(again, shard)
    import_chunks(again, shard)
    for slot in (1, 3):
        assert torch.equal(again.typed["image"][slot], dataset.typed["image"][slot])
        assert torch.equal(again.typed["mean"][slot], dataset.typed["mean"][slot])
    with pytest.raises(UserError, match="'image' of each chunk"):
        check_chunks(DistillationDataset(spec(typed={"mean": CHOICE, "image": Column((3, 8, 7), "uint8")})), shard)


def saved(folder: Path) -> DatasetLayout:
    dataset = filled(track_episodes=True)
    typed = dict(dataset.spec.typed)
    layout = DatasetLayout("Toy", ["policy"], None, 2, {"logits": 4}, "float32", STEPS, ENVS, typed=typed)
    writer = DatasetWriter(folder, layout, "run")
    log = EpisodeLog(dataset, writer=writer)
    log.begin(0)
    ended = torch.zeros(STEPS, ENVS).bool()
    names = ("returns", "lengths", "success", "whole")
    for slot in range(dataset.num_chunks):
        log.chunk(slot, {"ended": ended, **{name: torch.zeros(STEPS, ENVS) for name in names}}, 0)
    log.end(0)
    log.close()
    return layout


def test_on_disk_they_keep_their_types_and_shapes(tmp_path):
    """Saved and loaded, into chunks of the same and of other sizes: bit for bit."""
    layout = saved(tmp_path)
    index = json.loads((tmp_path / "dataset.json").read_text())
    assert index["version"] == 2 and index["typed"]["image"] == {"shape": [3, 8, 6], "dtype": "uint8"}
    opened = SavedDataset(tmp_path)
    assert opened.layout == layout and opened.layout.difference(layout) == ""
    for steps, envs in ((STEPS, ENVS), (2, 5)):
        made = BufferSpec(2, envs, 60, {"logits": 4}, chunk_steps=steps, typed=TYPED)
        dataset = DistillationDataset(made)
        assert isinstance(fill(opened, [dataset]), EpisodeTable)
        [batch] = dataset.flat_minibatches(60, 1)
        assert batch.extra is not None
        check(batch.obs, batch.targets.mean, batch.extra["image"])


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ({"shape": [3, 8, 7], "dtype": "uint8"}, r"'image' is \(5, 4, 3, 3, 8, 6\), dataset.json has"),
        ({"shape": [3, 8, 6], "dtype": "int16"}, "'image' is torch.uint8, dataset.json has int16"),
        ({"shape": [3, 8, 6], "dtype": "float8"}, "type float8"),
        ({"shape": [], "dtype": "uint8"}, "of shape"),
        ({"shape": [True, 8, 6], "dtype": "uint8"}, "of shape"),
        ({"shape": [-1, 8, 6], "dtype": "uint8"}, "of shape"),
        ({"shape": [3, 8, 6]}, "dtype"),
        (None, "corrupt"),
        ([3, 8, 6], "corrupt"),
    ],
)
def test_an_index_that_says_something_else_is_refused(tmp_path, entry, says):
    """One line each, before anything is taken for what it is not."""
    saved(tmp_path)
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["typed"]["image"] = entry
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=says):
        list(SavedDataset(tmp_path).contents())


@pytest.mark.parametrize("name", ["rows", "resets", "episode", "logits"])
def test_a_name_that_is_taken_is_refused(name):
    """A column of its own must not stand in the way of another tensor."""
    with pytest.raises(UserError, match=f"typed column '{name}'"):
        spec(typed={"mean": CHOICE, name: IMAGE})


def test_a_step_without_a_column_is_refused():
    """Else an older transition's image would be taken for it."""
    dataset = DistillationDataset(spec())
    dataset.begin_chunk()
    obs, targets, _ = transition(0)
    with pytest.raises(ValueError, match="'image', which this step does not have"):
        dataset.write(0, obs, targets, torch.zeros(ENVS).bool())
