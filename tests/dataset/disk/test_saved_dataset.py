"""Datasets on disk: what was saved comes back bit for bit, whatever happened in between."""

from __future__ import annotations

import json
import os
import re
import zlib
from collections import Counter
from pathlib import Path

import crash_points
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_datasets import chunk, episodes, layout, save

from foundation.config.distillation_cfg import EpisodeFilterCfg
from foundation.core.errors import UserError
from foundation.dataset.build import first_episode
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.disk.load import chunks_of, count_chunks, fill, rechunk
from foundation.dataset.disk.reader import SavedDataset
from foundation.dataset.disk.writer import DatasetWriter
from foundation.dataset.episodes import left_out, weigh

DOCS = Path(__file__).resolve().parents[3] / "docs" / "reference" / "dataset_format.md"


def load(folder: Path, num_envs: int, chunk_steps: int, capacity: int | None = None, **options) -> DistillationDataset:
    saved = SavedDataset(folder)
    chunks, fills_up = chunks_of(saved, chunk_steps, num_envs)
    rows = chunks * chunk_steps * num_envs if capacity is None else capacity
    options = {"track_episodes": True, "weighted": fills_up, **options}
    dataset = DistillationDataset(BufferSpec(2, num_envs, rows, {"mean": 1}, chunk_steps=chunk_steps, **options))
    fill(saved, [dataset])
    if dataset.weights is not None:
        weigh(dataset, torch.empty(0, dtype=torch.int32))
    return dataset


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_was_saved_comes_back_bit_for_bit(tmp_path, dtype):
    """Rows, episode starts and episode numbers of two runs, in the order in which they were saved."""
    made = layout(dtype=dtype)
    save(tmp_path, made, 5).close()
    save(tmp_path, made, 3, run=1).close()
    loaded = load(tmp_path, 3, 4, dtype=dtype)
    expected = [chunk(n, made) for n in range(5)] + [chunk(n, made, 1) for n in range(3)]
    assert loaded.episode is not None and loaded.weights is None
    for slot, wanted in enumerate(expected):
        assert torch.equal(loaded.rows[slot], wanted["rows"][0])
        assert torch.equal(loaded.resets[slot], wanted["resets"][0])
        assert torch.equal(loaded.episode[slot], wanted["episode"][0])
    assert len(loaded) == 8 * 12 == SavedDataset(tmp_path).num_rows


def test_the_documented_example_reads_it(tmp_path):
    """The example of the format's page, which uses nothing of this project, finds observations and actions."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCS.read_text(), re.S)
    assert "foundation" not in code and len(code.splitlines()) <= 12
    made = layout()
    save(tmp_path, made, 5).close()
    found: dict = {}
    exec(code.replace('"PATH"', repr(str(tmp_path))), found)
    rows = torch.cat([chunk(n, made)["rows"] for n in range(5)]).reshape(-1, 3)
    assert torch.equal(torch.from_numpy(found["observations"]), rows[:, :2])
    assert torch.equal(torch.from_numpy(found["actions"]), rows[:, 2:])


def test_the_documented_tables_name_everything_that_is_there(tmp_path):
    """No key of ``dataset.json`` and no tensor of a file is missing from the format's page."""
    save(tmp_path, layout(), 2).close()
    index, text = json.loads((tmp_path / "dataset.json").read_text()), DOCS.read_text()
    from safetensors.torch import load_file

    names = [*index, *index["files"][0], *load_file(tmp_path / index["files"][0]["file"])]
    assert [name for name in names if f"`{name}`" not in text] == []


def saver(folder: Path, operation: int, writes: bool) -> int:
    """Save six chunks in a child that dies (SIGKILL) at one of its operations on files; return its signal."""
    pid = os.fork()
    if pid == 0:
        try:
            crash_points.die_at(operation, writes)
            save(folder, layout(), 6)
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_killed_at_any_moment_and_resumed_it_is_the_same(tmp_path):
    """Whichever write, sync, rename or deletion is the last: what is listed is whole, and saving goes on from there."""
    made, kills = layout(), 0
    for number in range(1, 26):
        folder = tmp_path / str(number)
        kills += saver(folder, 1 + number // 2, writes=bool(number % 2)) == -9
        if (folder / "dataset.json").exists():
            saved = SavedDataset(folder)
            listed = [saved.read(entry)["rows"] for entry in saved.files]
            assert all(torch.equal(rows[0], chunk(2 * i, made)["rows"][0]) for i, rows in enumerate(listed))
        save(folder, made, 6).close()
        loaded = load(folder, 3, 4)
        assert len(loaded) == 72
        assert all(torch.equal(loaded.rows[n], chunk(n, made)["rows"][0]) for n in range(6))
        assert sorted(path.name for path in folder.iterdir()) == [
            *(f"chunk_00000{n}.safetensors" for n in range(3)),
            "dataset.json",
        ]
    assert kills >= 15, "the operations that were meant to kill it happened"


def test_a_resumed_run_takes_back_the_epochs_that_come_again(tmp_path):
    """Nothing is there twice after an epoch was saved, its run stopped, and the epoch collected again."""
    made = layout()
    save(tmp_path, made, 6).close()
    save(tmp_path, made, 2, run=1).close()
    writer = DatasetWriter(tmp_path, made, "run 0")
    writer.begin_epoch(3)
    writer.add(chunk(4, made), episodes(4, made), 3)
    writer.flush(3)
    writer.close()
    saved = SavedDataset(tmp_path)
    assert [(entry.run, entry.epoch, entry.chunks) for entry in saved.files] == [
        ("run 0", 1, 2),
        ("run 0", 2, 2),
        ("run 1", 1, 2),
        ("run 0", 3, 1),
    ]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4
    assert saved.num_rows == len(load(tmp_path, 3, 4)) == 7 * 12


def test_what_waits_is_written_when_it_is_large(tmp_path, monkeypatch):
    """A long epoch does not pile up in memory: files of a bounded size are written before it ends."""
    monkeypatch.setattr("foundation.dataset.disk.writer.MAX_FILE_BYTES", 400)
    made = layout()
    writer = DatasetWriter(tmp_path, made, "run")
    writer.begin_epoch(1)
    for number in range(5):
        writer.add(chunk(number, made), episodes(number, made), 1)
    assert len(writer.files) == 2
    writer.flush(1)
    assert SavedDataset(tmp_path).num_rows == 60


@pytest.mark.parametrize("where", [10, 300, -1])
def test_a_flipped_byte_is_found_and_its_file_named(tmp_path, where):
    """In the header, in the numbers, at the end: the checksum tells."""
    save(tmp_path, layout(), 4).close()
    path = tmp_path / "chunk_000001.safetensors"
    data = bytearray(path.read_bytes())
    data[where] ^= 4
    path.write_bytes(data)
    with pytest.raises(UserError, match=r"chunk_000001\.safetensors' is corrupt"):
        load(tmp_path, 3, 4)


@pytest.mark.parametrize(
    ("key", "value", "says"),
    [
        ("version", 3, "version 3"),
        ("version", 2, "corrupt.*typed"),
        ("typed", {"image": {"shape": [2], "dtype": "uint8"}}, "corrupt.*typed"),
        ("format", "other", "not the index of a dataset"),
        ("num_obs", "many", "corrupt"),
        ("num_teachers", "2", "corrupt"),
        ("targets", {}, "corrupt"),
        ("columns", {"mean": [0, 1], "obs": [1, 3]}, r"corrupt.*have to be \{'obs': \[0, 2\]"),
        ("files", [{"file": "../x"}], "list of files"),
        ("files", 3, "not the index"),
    ],
)
def test_a_corrupt_index_is_refused(tmp_path, key, value, says):
    """One line for another version, another format, and for what is not as it should be."""
    save(tmp_path, layout(), 2).close()
    index = json.loads((tmp_path / "dataset.json").read_text())
    (tmp_path / "dataset.json").write_text(json.dumps(index | {key: value}))
    with pytest.raises(UserError, match=says):
        SavedDataset(tmp_path)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"task": "Other"}, "task is Toy there and Other here"),
        ({"obs_groups": ["policy", "more"]}, "obs_groups"),
        ({"targets": {"mean": 1, "std": 1}}, "targets"),
        ({"dtype": "float16"}, "dtype"),
        ({"num_envs": 2}, "num_envs is 3 there and 2 here"),
    ],
)
def test_another_layout_is_not_appended(tmp_path, changes, says):
    """Before anything is written, with the field that differs."""
    save(tmp_path, layout(), 2).close()
    before = sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=says):
        DatasetWriter(tmp_path, layout(**changes), "run 1")
    assert sorted(path.stat().st_mtime_ns for path in tmp_path.iterdir()) == before


def test_a_folder_with_other_things_is_left_alone(tmp_path):
    """Saving into a folder that is in use for something else is refused."""
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds other files"):
        DatasetWriter(tmp_path, layout(), "run")


def test_two_processes_cannot_save_to_one_folder(tmp_path):
    """The second one is told; when the first is done it may."""
    first = save(tmp_path, layout(), 2)
    with pytest.raises(UserError, match="another process is saving"):
        DatasetWriter(tmp_path, layout(), "run 1").open()
    first.close()
    DatasetWriter(tmp_path, layout(), "run 1").open()


shapes = st.tuples(st.integers(1, 4), st.integers(1, 5), st.lists(st.integers(1, 3), min_size=1, max_size=4))


@given(shapes, st.integers(1, 5), st.integers(1, 7))
def test_other_chunks_hold_the_same_rows_once_each(shape, envs, steps):
    """Cut into chunks of any size, no row is lost or there twice, neighbours in time stay so; the filling is told."""
    num_envs, chunk_steps, runs = shape
    made = layout(num_envs, chunk_steps)
    blocks = [(str(run), chunk(n, made, run)) for run, number in enumerate(runs) for n in range(number)]
    out = list(rechunk(blocks, (steps, envs)))
    lanes = torch.cat([part["rows"].transpose(1, 2).flatten(0, 1) for part in out])
    numbers = torch.cat([part["episode"].transpose(1, 2).flatten(0, 1) for part in out])
    resets = torch.cat([part["resets"].transpose(1, 2).flatten(0, 1) for part in out])
    real = numbers >= 0
    wanted = Counter(torch.cat([block["rows"][..., 2].flatten() for _, block in blocks]).tolist())
    assert Counter(lanes[..., 2][real].tolist()) == wanted
    assert set(wanted.values()) == {1}
    follows = real[:, 1:]  # a row that is real comes one step after the one before it, of the same run and environment
    assert bool((lanes[:, 1:, 2] - lanes[:, :-1, 2] == 100.0)[follows].all())
    changed = numbers[:, 1:] != numbers[:, :-1]
    assert torch.equal(resets[:, 1:][follows], changed[follows]), "no episode ends within a lane without its flag"
    chunks, fills_up = count_chunks([(run, 1) for run, _ in blocks], (chunk_steps, num_envs), (steps, envs))
    assert chunks == sum(len(part["rows"]) for part in out)
    assert fills_up == bool((~real).any())
    assert all(part["rows"].shape[1:3] == (steps, envs) for part in out)


def test_loaded_rows_that_only_fill_up_have_no_weight(tmp_path):
    """Six chunks of 4 steps and 3 environments in chunks of 5 and 2: 72 rows weigh 1, the copies nothing."""
    save(tmp_path, layout(), 6).close()
    loaded = load(tmp_path, 2, 5)
    assert loaded.weights is not None
    weights = loaded.weights[: loaded.num_chunks]
    assert float(weights.sum()) == 72.0 < weights.numel()
    assert set(weights.unique().tolist()) == {0.0, 1.0}


def test_a_smaller_dataset_keeps_the_newest_rows(tmp_path):
    """Where not all fit, the oldest chunks make room, as they do for rows that are collected."""
    save(tmp_path, layout(), 6).close()
    loaded = load(tmp_path, 3, 4, capacity=24)
    assert len(loaded) == 24 and loaded.chunks_evicted == 4
    assert sorted(loaded.rows[..., 0].unique().tolist()) == [16.0, 17.0, 18.0, 19.0, 20.0, 21.0, 22.0, 23.0]


def test_weights_of_other_programs_are_taken(tmp_path):
    """A folder that says ``weighted`` has a weight for each row, and they come with the rows."""
    made = layout(weighted=True)
    writer = DatasetWriter(tmp_path, made, "run")
    writer.begin_epoch(1)
    weights = torch.rand(1, 4, 3)
    writer.add({**chunk(0, made), "weights": weights}, episodes(0, made), 1)
    writer.flush(1)
    loaded = load(tmp_path, 3, 4, weighted=True)
    [batch] = loaded.flat_minibatches(12, 1, shuffle=False)
    assert batch.weights is not None
    assert torch.equal(batch.weights, weights.flatten())


def test_flags_of_other_programs_are_flags_whatever_their_type(tmp_path):
    """A table of 0 and 1, and tensors that this program does not know, as another program may write them."""
    made = layout()
    writer = DatasetWriter(tmp_path, made, "run")
    writer.begin_epoch(1)
    table = episodes(0, made)
    table = table._replace(success=table.success.to(torch.uint8), whole=table.whole.long())
    writer.add({**chunk(0, made), "note": torch.zeros(1)}, table, 1)
    writer.flush(1)
    [(_, tensors, found)] = SavedDataset(tmp_path).contents()
    assert tensors.keys() == {"rows", "resets", "episode"}
    assert left_out(found, EpisodeFilterCfg(success=True)).tolist() == [1], "env 1 fails, 0 and 2 succeed"


def test_new_episodes_are_numbered_beyond_those_that_are_there(tmp_path):
    """Also where the list of files does not say how far they go."""
    save(tmp_path, layout(), 4).close()
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["files"] = [{name: entry[name] for name in entry if name != "next_episode"} for entry in index["files"]]
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    dataset = DistillationDataset(BufferSpec(2, 3, 100, {"mean": 1}, chunk_steps=4, track_episodes=True))
    saved = SavedDataset(tmp_path)
    fill(saved, [dataset])
    assert first_episode(dataset, saved, None) > int(dataset.episode[: dataset.num_chunks].max())


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_rows_that_are_not_finite_are_refused(tmp_path, number):
    """In what is learned from they would be taken for a learning rate too high, in what is held out for a loss."""
    made = layout()
    writer = DatasetWriter(tmp_path, made, "run")
    writer.begin_epoch(1)
    spoiled = chunk(0, made)
    spoiled["rows"][0, 1, 2, 0] = number
    writer.add(spoiled, episodes(0, made), 1)
    writer.flush(1)
    with pytest.raises(UserError, match=r"chunk_000000\.safetensors' has NaN or infinite numbers"):
        load(tmp_path, 3, 4)


def test_a_header_of_a_hundred_thousand_tensors_is_refused(tmp_path):
    """Empty tensors take sixty bytes of a file and a kilobyte of memory each: refused by the header's length."""
    save(tmp_path, layout(), 4).close()
    header = json.dumps({str(i): {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)})
    data = len(header).to_bytes(8, "little") + header.encode()
    (tmp_path / "chunk_000001.safetensors").write_bytes(data)
    index = json.loads((tmp_path / "dataset.json").read_text())
    index["files"][1] |= {"bytes": len(data), "crc32": f"{zlib.crc32(data):08x}"}
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    with pytest.raises(UserError, match=r"chunk_000001\.safetensors' is corrupt: its header"):
        load(tmp_path, 3, 4)


def test_missing_and_empty_datasets_are_refused(tmp_path):
    """One line each."""
    with pytest.raises(UserError, match="no dataset at"):
        SavedDataset(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"holds no dataset\.json"):
        SavedDataset(tmp_path)
    save(tmp_path, layout(), 0).close()
    with pytest.raises(UserError, match="is empty"):
        SavedDataset(tmp_path).first(None)
