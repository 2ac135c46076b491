"""The dataset: rows are told apart by their contents, so that every draw can be traced to the step it came from."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.disk.chunks import export_chunks, import_chunks
from foundation.dataset.memory import check_memory
from foundation.dataset.sampling import draw_minibatches, draw_without_replacement
from foundation.policies.output import PolicyOutput

shapes = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 3), st.integers(1, 4), st.integers(1, 9))
"""(envs, windows per chunk, steps per window, chunks that fit, chunks written)."""


def make(envs: int, windows: int, window: int, fit: int, seed: int = 0, **options) -> DistillationDataset:
    steps = windows * window
    targets = {"mean": 1, "std": 1}
    spec = BufferSpec(2, envs, fit * steps * envs, targets, chunk_steps=steps, sequence_length=window, **options)
    return DistillationDataset(spec, seed=seed)


def fill(dataset: DistillationDataset, chunks: int, first: int = 0, state_size: int = 0) -> list[int]:
    """Write chunks whose observation is (time, env), whose mean is a code of both; every 5th step is a reset."""
    slots = []
    envs = torch.arange(dataset.num_envs).float()
    for chunk in range(first, first + chunks):
        slots.append(dataset.begin_chunk())
        for step in range(dataset.chunk_steps):
            time = float(chunk * dataset.chunk_steps + step)
            obs = torch.stack([torch.full_like(envs, time), envs], dim=-1)
            code = (time * 100.0 + envs).unsqueeze(-1)
            state = code.expand(-1, state_size) if state_size else None
            resets = (torch.full_like(envs, time) + envs) % 5 == 0
            dataset.write(step, obs, PolicyOutput(code, -code), resets, torch.full_like(envs, chunk).int(), state)
        dataset.commit_chunk()
    return slots


def codes(obs: torch.Tensor) -> torch.Tensor:
    return obs[..., 0] * 100.0 + obs[..., 1]


def written(dataset: DistillationDataset, first_chunk: int, last_chunk: int) -> set[float]:
    steps = range(first_chunk * dataset.chunk_steps, last_chunk * dataset.chunk_steps)
    return {100.0 * time + env for time in steps for env in range(dataset.num_envs)}


@given(shapes, st.booleans())
def test_one_pass_returns_every_row_once_with_its_own_target(shape, shuffle):
    """One pass over the dataset loses no row and repeats none; each row keeps its own targets."""
    envs, windows, window, fit, chunks = shape
    dataset = make(envs, windows, window, fit)
    fill(dataset, chunks)
    [batch] = dataset.flat_minibatches(len(dataset), 1, shuffle)
    kept = written(dataset, max(0, chunks - fit), chunks)
    assert Counter(codes(batch.obs).tolist()) == Counter(kept)
    assert torch.equal(batch.targets.mean.squeeze(-1), codes(batch.obs))
    assert batch.targets.std is not None
    assert torch.equal(batch.targets.std.squeeze(-1), -codes(batch.obs))
    assert batch.targets.value is None


def fill_epochs(dataset: DistillationDataset, sizes: list[int], first: int = 0) -> list[int]:
    """Write as many chunks as each epoch has."""
    slots = []
    for size in sizes:
        dataset.begin_epoch()
        slots += fill(dataset, size, first + len(slots))
    return slots


@given(shapes, st.lists(st.integers(1, 3), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 2), st.booleans())
def test_the_newest_epochs_alone_are_drawn_where_that_is_asked_for(shape, sizes, newest, loaded, filtered):
    """One pass has each of their rows once, however long they were and wherever the ring begins, and no other.

    Chunks that were there before the first epoch are drawn while fewer epochs have begun. All are drawn from again
    where none are asked for.
    """
    envs, windows, window, half, _ = shape
    fit = 2 * half
    dataset = make(envs, windows, window, fit)
    fill(dataset, loaded)
    slots = fill_epochs(dataset, sizes, loaded)
    if filtered:  # environments chosen for each chunk are numbered another way
        dataset.activate(slots[-1:], torch.ones(envs, dtype=torch.uint8))
    dataset.draw_newest(newest)
    chunks = loaded + sum(sizes)
    asked = chunks if newest > len(sizes) else sum(sizes[-newest:])
    kept = written(dataset, chunks - min(fit, asked), chunks)
    for shuffle in (False, True):
        [batch] = dataset.flat_minibatches(len(kept), 1, shuffle)
        assert Counter(codes(batch.obs).tolist()) == Counter(kept)
    [batch] = dataset.sequence_minibatches(len(kept) // window, 1)
    assert Counter(codes(batch.obs).flatten().tolist()) == Counter(kept)
    restored = make(envs, windows, window, fit)
    restored.load_state_dict(dataset.state_dict())
    import_chunks(restored, export_chunks(dataset, list(range(dataset.num_chunks))))
    restored.draw_newest(newest)
    fill_epochs(restored, [1], chunks)
    asked = chunks + 1 if newest > len(sizes) + 1 else sum([*sizes, 1][-newest:])
    [batch] = restored.flat_minibatches(min(fit, asked) * dataset.rows_per_chunk, 1)
    assert Counter(codes(batch.obs).tolist()) == Counter(written(dataset, chunks + 1 - min(fit, asked), chunks + 1))
    dataset.draw_newest(None)
    [batch] = dataset.flat_minibatches(len(dataset), 1)
    assert Counter(codes(batch.obs).tolist()) == Counter(written(dataset, max(0, chunks - fit), chunks))


def test_epochs_of_an_emptied_dataset_are_forgotten():
    """What is drawn after is of the epochs since."""
    dataset = make(2, 1, 1, 8)
    fill_epochs(dataset, [3, 2])
    dataset.clear()
    fill_epochs(dataset, [1, 2], 5)
    for newest, chunks in ((1, 2), (2, 3), (3, 3)):
        dataset.draw_newest(newest)
        [batch] = dataset.flat_minibatches(2 * chunks, 1)
        assert Counter(codes(batch.obs).tolist()) == Counter(written(dataset, 8 - chunks, 8))


def test_no_more_epochs_are_remembered_than_the_ring_holds():
    """And the one whose last chunk the next one replaces, however many there have been."""
    dataset = make(2, 1, 1, 4)
    fill_epochs(dataset, [1] * 50)
    assert dataset.state_dict()["epoch_starts"] == [45, 46, 47, 48, 49]


def test_where_random_chunks_make_room_all_are_drawn():
    """Their ages are not known."""
    dataset = make(2, 2, 1, 8, eviction="reservoir", seed=3)
    fill_epochs(dataset, [1] * 20)
    dataset.draw_newest(1)
    [batch] = dataset.flat_minibatches(len(dataset), 1)
    assert len(set(codes(batch.obs).tolist())) == len(dataset)


@given(shapes)
def test_eviction_of_the_oldest_is_exact(shape):
    """A full ring keeps exactly the newest chunks that fit, and counts the others as evicted."""
    envs, windows, window, fit, chunks = shape
    dataset = make(envs, windows, window, fit)
    fill(dataset, chunks)
    assert len(dataset) == min(chunks, fit) * dataset.rows_per_chunk <= dataset.capacity
    assert dataset.chunks_evicted == max(0, chunks - fit)


@given(shapes)
def test_sequences_are_contiguous_steps_of_one_environment(shape):
    """A window is consecutive in time within one environment and carries the episode starts that were stored."""
    envs, windows, window, fit, chunks = shape
    dataset = make(envs, windows, window, fit, state_size=3)
    fill(dataset, chunks, state_size=3)
    count = len(dataset) // window
    [batch] = dataset.sequence_minibatches(count, 1)
    time, env = batch.obs[..., 0], batch.obs[..., 1]
    assert batch.obs.shape == (window, count, 2)
    assert torch.equal(time - time[:1], torch.arange(float(window)).unsqueeze(1).expand(-1, count))
    assert torch.equal(env, env[:1].expand(window, -1))
    assert batch.resets is not None
    assert torch.equal(batch.resets, (time + env) % 5 == 0)
    assert batch.state is not None
    assert torch.equal(batch.state, codes(batch.obs[0]).unsqueeze(-1).expand(-1, 3))
    assert Counter(codes(batch.obs).flatten().tolist()) == Counter(written(dataset, max(0, chunks - fit), chunks))


def test_reservoir_makes_room_at_random_and_keeps_whole_chunks():
    """With ``reservoir`` old chunks survive sometimes; what is kept are whole chunks."""
    dataset = make(2, 2, 1, 8, eviction="reservoir", seed=3)
    fill(dataset, 60)
    [batch] = dataset.flat_minibatches(len(dataset), 1)
    by_chunk = Counter((batch.obs[:, 0] // dataset.chunk_steps).long().tolist())
    assert len(by_chunk) == 8
    assert set(by_chunk.values()) == {dataset.rows_per_chunk}
    assert min(by_chunk) < 60 - 8, "the oldest kept chunk is one that 'oldest' would have evicted"


def test_teacher_index_stays_with_its_row():
    """The stored teacher index is the one written with the row, after eviction too."""
    dataset = make(3, 2, 1, 2, num_teachers=10)
    fill(dataset, 5)
    assert dataset.teacher_index is not None
    time = dataset.rows[..., 0]
    assert torch.equal(dataset.teacher_index, (time // dataset.chunk_steps).int())


@given(st.integers(1, 60), st.integers(1, 200), st.integers(0, 1000))
def test_no_row_comes_twice_before_all_have_come(rows, draws, seed):
    """Drawing more than there is gives whole passes and a rest without repetition."""
    index = draw_without_replacement(rows, draws, torch.Generator().manual_seed(seed))
    counts = torch.bincount(index, minlength=rows)
    assert len(index) == draws
    assert int(counts.sum()) == draws
    assert int(counts.max()) - int(counts.min()) <= 1


@pytest.mark.parametrize(("rows", "draws"), [(10, 3), (23, 7), (16, 16)])
def test_every_row_and_every_position_is_equally_likely(rows, draws):
    """Chi-square of 6000 draws against the uniform distribution, over rows and over the first position."""
    generator = torch.Generator().manual_seed(11)
    drawn = torch.stack([draw_without_replacement(rows, draws, generator) for _ in range(6000)])
    for sample in (drawn[:, 0], drawn[:, -1], drawn.flatten()):
        observed = torch.bincount(sample, minlength=rows).double()
        expected = len(sample) / rows
        chi_square = float(((observed - expected).square() / expected).sum())
        freedom = rows - 1
        # 99.9 % quantile of chi-square, Wilson and Hilferty's approximation.
        limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3
        assert chi_square < limit


@given(st.integers(1, 200), st.integers(1, 12), st.integers(1, 12), st.integers(0, 1000))
def test_minibatches_hold_no_row_twice_before_all_have_come(rows, batches, size, seed):
    """Also where there are fewer draws than rows; and the row numbers are those of rows."""
    index = draw_minibatches(rows, batches, size, torch.Generator().manual_seed(seed))
    assert index.shape == (batches, size) and index.dtype == torch.int64
    counts = torch.bincount(index.flatten(), minlength=rows)
    assert len(counts) == rows
    assert int(counts.max()) - int(counts.min()) <= 1


@pytest.mark.parametrize("rows", [2**24 + 1, 20_054_017, 2**31 + 11])
def test_row_numbers_beyond_single_precision_are_exact(rows):
    """Strata cover all rows, the first and the last one too, and none overlaps another."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        index = draw_minibatches(rows, 8, 512, generator).flatten().sort().values
        assert int(index[0]) >= 0 and int(index[-1]) < rows
        assert len(index.unique()) == 4096
        gaps = torch.cat([index[1:] - index[:-1], index[:1] + rows - index[-1:]])
        assert int(gaps.max()) < 2 * rows / 4096 + 2, "a stratum without a draw"
    assert len({int(row) % 2 for row in index}) == 2, "odd row numbers are drawn too"


@pytest.mark.parametrize(("rows", "batches", "size"), [(23, 3, 4), (40, 4, 5)])
def test_rows_and_pairs_of_rows_come_as_often_as_by_chance(rows, batches, size):
    """Chi-square over the rows of the first and the last minibatch, and over how far apart two of its rows are."""
    generator = torch.Generator().manual_seed(5)
    drawn = torch.stack([draw_minibatches(rows, batches, size, generator) for _ in range(4000)])
    for sample in (drawn[:, 0, 0], drawn[:, -1, -1], drawn[:, 1].flatten()):
        observed = torch.bincount(sample, minlength=rows).double()
        expected = len(sample) / rows
        assert float(((observed - expected).square() / expected).sum()) < 2.2 * rows
    apart = ((drawn[:, 0, 2] - drawn[:, 0, 0]) % rows).bincount(minlength=rows)
    assert int((apart > 0).sum()) >= rows // 3, "two of its rows are not always as far apart"


def test_a_minibatch_is_mixed_over_the_whole_dataset():
    """Each minibatch of a draw spreads over all rows: none is a stretch of neighbours in time."""
    generator = torch.Generator().manual_seed(3)
    for batch in draw_without_replacement(10_000, 1000, generator).split(100):
        assert bool((torch.bincount(batch // 1000, minlength=10) > 0).all())


def test_same_seed_draws_the_same_and_another_seed_does_not():
    """Minibatches are decided by the seed."""
    batches = []
    for seed in (5, 5, 6):
        dataset = make(4, 8, 1, 2, seed=seed)
        fill(dataset, 2)
        batches.append(torch.stack([batch.obs for batch in dataset.flat_minibatches(8, 3)]))
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_without_shuffle_the_next_call_goes_on_where_the_last_stopped():
    """In order of storage: time first, environments within; a second call does not start again."""
    dataset = make(2, 3, 1, 1)
    fill(dataset, 1)
    drawn = [codes(batch.obs).tolist() for _ in range(2) for batch in dataset.flat_minibatches(2, 2, shuffle=False)]
    assert drawn == [[0.0, 1.0], [100.0, 101.0], [200.0, 201.0], [0.0, 1.0]]


@given(shapes)
def test_export_and_import_rebuild_the_dataset(shape):
    """The shards and the state of a dataset make another one that draws the same minibatches."""
    envs, windows, window, fit, chunks = shape
    source, copy = (make(envs, windows, window, fit, state_size=2, num_teachers=3, seed=s) for s in (1, 2))
    shards = []
    for chunk in range(chunks):
        slots = fill(source, 1, chunk, state_size=2)
        shards.append(export_chunks(source, slots))
    copy.load_state_dict(source.state_dict())
    for shard in shards:
        import_chunks(copy, shard)
    for one, two in zip(source.sequence_minibatches(3, 2), copy.sequence_minibatches(3, 2), strict=True):
        for a, b in zip((one.obs, one.resets, one.state), (two.obs, two.resets, two.state), strict=True):
            assert torch.equal(a, b)
    assert source.teacher_index is not None and copy.teacher_index is not None
    kept = min(chunks, fit)
    assert torch.equal(source.teacher_index[:kept], copy.teacher_index[:kept])


def test_clear_forgets_every_row():
    """An emptied dataset draws only what was written after."""
    dataset = make(2, 2, 1, 4)
    fill(dataset, 3)
    dataset.clear()
    assert len(dataset) == 0
    fill(dataset, 1, first=7)
    [batch] = dataset.flat_minibatches(4, 1)
    assert set(codes(batch.obs).tolist()) == written(dataset, 7, 8)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_small_storage_types_round_the_stored_values_only(dtype):
    """Half precision halves the storage; minibatches are float32 of the rounded values."""
    exact, rounded = (
        DistillationDataset(BufferSpec(2, 1, 4, {"mean": 1}, chunk_steps=4, dtype=name), seed=0)
        for name in ("float32", dtype)
    )
    obs = torch.tensor([[1.0 / 3.0, -2.0 / 7.0]])
    for dataset in (exact, rounded):
        dataset.begin_chunk()
        for step in range(4):
            dataset.write(step, obs, PolicyOutput(obs[:, :1]), torch.zeros(1, dtype=torch.bool))
        dataset.commit_chunk()
    [batch] = rounded.flat_minibatches(4, 1)
    assert batch.obs.dtype == torch.float32
    assert torch.equal(batch.obs, obs.to(getattr(torch, dtype)).float().expand(4, -1))
    assert rounded.rows.nbytes * 2 == exact.rows.nbytes


def test_declared_size_is_the_allocated_size():
    """``num_bytes``, which is printed before allocation, is what the tensors take."""
    dataset = make(3, 4, 2, 5, state_size=7, num_teachers=2)
    assert dataset.teacher_index is not None and dataset.states is not None
    tensors = (dataset.rows, dataset.resets, dataset.teacher_index, dataset.states)
    assert dataset.num_bytes == sum(tensor.nbytes for tensor in tensors)


def test_a_dataset_larger_than_memory_is_refused_before_allocation():
    """A storage that cannot fit names its size and what to change."""
    with pytest.raises(UserError, match=r"4000000\.00 GB .* lower dataset\.size"):
        check_memory(4 * 10**15, torch.device("cpu"))
    with pytest.raises(UserError, match="GB free"):
        DistillationDataset(BufferSpec(100, 1000, 10**15, {"mean": 4}))


def test_chunks_hold_whole_windows():
    """A chunk that is not a multiple of the sequence is an error that names both."""
    with pytest.raises(UserError, match=r"chunk_steps=10 must be a multiple of sequence_length=4"):
        DistillationDataset(BufferSpec(2, 1, 100, {"mean": 1}, chunk_steps=10, sequence_length=4))


def test_state_of_another_shape_is_refused():
    """A resumed run with other sizes is told so instead of being filled with garbage."""
    with pytest.raises(UserError, match="3 instead of 2 environments: --num_envs"):
        make(2, 2, 1, 3).load_state_dict(make(3, 2, 1, 3).state_dict())


@pytest.mark.parametrize("change", [{"num_chunks": 4}, {"num_chunks": -1}, {"num_chunks": "x"}, {"cursor": 1 << 60}])
def test_a_state_that_counts_what_is_not_there_is_refused(change):
    """Rows beyond the buffer would be drawn, for ever where there are a million chunks of them."""
    dataset = make(2, 2, 1, 3)
    state = dataset.state_dict()
    dataset.load_state_dict(state)
    with pytest.raises(UserError, match="corrupt dataset"):
        dataset.load_state_dict(state | change)


@given(shapes, st.data())
def test_batches_of_chunks_hold_each_of_their_rows_once_and_no_other(shape, data):
    """Flat or as sequences, in order, with the row's own target; what minibatches draw next is not touched by it."""
    envs, windows, window, fit, chunks = shape
    dataset = make(envs, windows, window, fit)
    slots = fill(dataset, chunks)
    chosen = data.draw(st.lists(st.integers(max(0, chunks - fit), chunks - 1), min_size=1, unique=True))
    before = dataset.state_dict()
    batches = list(dataset.chunk_batches([slots[chunk] for chunk in chosen]))
    assert len(batches) == len(chosen)
    for chunk, batch in zip(chosen, batches, strict=True):
        assert torch.equal(codes(batch.obs), batch.targets.mean.squeeze(-1))
        found = codes(batch.obs).flatten().tolist()
        assert len(found) == len(set(found)) and set(found) == written(dataset, chunk, chunk + 1)
        assert batch.obs.dim() == (2 if window == 1 else 3)
        if window > 1:
            assert torch.equal(batch.obs[1:, :, 0] - batch.obs[:-1, :, 0], torch.ones(window - 1, envs * windows))
    after = dataset.state_dict()
    assert before["cursor"] == after["cursor"] and torch.equal(before["generator"], after["generator"])
