"""Properties of the dataset against a model of it made of Python lists, under any sequence of writes and evictions."""

from __future__ import annotations

from collections import Counter

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.output import PolicyOutput

sizes = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 4))
"""(envs, windows per chunk, steps per window, chunks that fit)."""


class Model:
    """What the dataset should hold: chunks of rows ``(time, env, teacher, reset, episode)`` by slot."""

    def __init__(self, size: tuple[int, int, int, int], eviction: str, lengths: list[int]):
        self.envs, windows, self.window, self.fit = size
        self.steps = windows * self.window
        self.dataset = DistillationDataset(
            BufferSpec(
                2,
                self.envs,
                self.fit * self.steps * self.envs,
                {"mean": 1},
                chunk_steps=self.steps,
                sequence_length=self.window,
                num_teachers=5,
                track_episodes=True,
                eviction=eviction,
            ),
            seed=1,
        )
        self.lengths, self.time = lengths, 0
        self.left, self.episode = [0] * self.envs, [-1] * self.envs
        self.chunks: dict[int, list[tuple]] = {}
        self.order: list[int] = []

    def write_chunk(self) -> None:
        dataset, rows = self.dataset, []
        slot = dataset.begin_chunk()
        for step in range(self.steps):
            resets = []
            for env in range(self.envs):
                resets.append(self.left[env] == 0)
                if self.left[env] == 0:
                    self.episode[env] += 1
                    self.left[env] = self.lengths[(self.episode[env] + env) % len(self.lengths)]
                self.left[env] -= 1
            teacher = [(self.time * 3 + env) % 5 for env in range(self.envs)]
            number = [env + self.envs * self.episode[env] for env in range(self.envs)]
            obs = torch.tensor([[self.time, env] for env in range(self.envs)]).float()
            code = obs[:, :1] * 100 + obs[:, 1:]
            dataset.write(step, obs, PolicyOutput(code), torch.tensor(resets), torch.tensor(teacher).int())
            assert dataset.episode is not None
            dataset.episode[slot, step] = torch.tensor(number).int()
            rows += [(self.time, env, teacher[env], resets[env], number[env]) for env in range(self.envs)]
            self.time += 1
        dataset.commit_chunk()
        self.chunks[slot] = rows
        self.order.append(slot)

    def rows(self) -> list[tuple]:
        return [row for slot in sorted(self.chunks) for row in self.chunks[slot]]


def stored(dataset: DistillationDataset) -> list[tuple]:
    """Everything that the dataset says, row by row in order of storage."""
    kept = slice(0, dataset.num_chunks)
    assert dataset.teacher_index is not None and dataset.episode is not None
    columns = [dataset.rows[kept, ..., 0], dataset.rows[kept, ..., 1], dataset.teacher_index[kept]]
    columns += [dataset.resets[kept], dataset.episode[kept]]
    return [tuple(map(int, row)) for row in zip(*(column.flatten().tolist() for column in columns), strict=True)]


histories = st.tuples(
    sizes, st.sampled_from(["oldest", "reservoir"]), st.lists(st.integers(1, 6), min_size=1, max_size=4)
)


@given(histories, st.integers(1, 12))
def test_rows_teachers_resets_and_episodes_stay_together(history, chunks):
    """After any writes and evictions each row has its own teacher, flag and episode, and no row is lost."""
    model = Model(*history)
    for _ in range(chunks):
        model.write_chunk()
    assert stored(model.dataset) == [tuple(map(int, row)) for row in model.rows()]
    assert len(model.dataset) == min(chunks, model.fit) * model.steps * model.envs


@given(histories, st.integers(1, 12))
def test_eviction_is_exact(history, chunks):
    """A chunk goes only when all slots are taken, one at a time; ``oldest`` takes the oldest, ``reservoir`` any."""
    model = Model(*history)
    for number in range(chunks):
        before = {row[0] for row in model.rows()}
        model.write_chunk()
        gone = before - {row[0] for row in model.rows()}
        assert len(gone) == (model.steps if number >= model.fit else 0)
        if gone and history[1] == "oldest":
            assert gone == set(range(min(before), min(before) + model.steps))
    assert model.dataset.chunks_evicted == max(0, chunks - model.fit)


@given(histories, st.integers(1, 8), st.booleans())
def test_no_row_twice_and_none_missing_in_a_pass(history, chunks, shuffle):
    """One epoch's shuffle over everything, in flat minibatches and in sequences: each row once."""
    model = Model(*history)
    for _ in range(chunks):
        model.write_chunk()
    wanted = Counter((row[0], row[1]) for row in model.rows())
    size = model.steps * model.envs
    flat = list(model.dataset.flat_minibatches(size, len(model.dataset) // size, shuffle))
    windows = len(model.dataset) // model.window
    sequences = list(model.dataset.sequence_minibatches(windows, 1, shuffle))
    for batches in (flat, sequences):
        seen = torch.cat([batch.obs.reshape(-1, 2) for batch in batches])
        assert Counter(tuple(map(int, row)) for row in seen.tolist()) == wanted
        assert all(
            torch.equal(batch.targets.mean[..., 0], batch.obs[..., 0] * 100 + batch.obs[..., 1]) for batch in batches
        )


@given(histories, st.integers(1, 8))
def test_no_sequence_crosses_an_episodes_boundary_without_its_flag(history, chunks):
    """Within a window, a new episode begins where the flag says so and nowhere else."""
    model = Model(*history)
    for _ in range(chunks):
        model.write_chunk()
    episode = {(row[0], row[1]): row[4] for row in model.rows()}
    [batch] = model.dataset.sequence_minibatches(len(model.dataset) // model.window, 1)
    assert batch.resets is not None
    for window in range(batch.obs.shape[1]):
        names = [episode[(int(time), int(env))] for time, env in batch.obs[:, window].tolist()]
        for step in range(1, len(names)):
            assert bool(batch.resets[step, window]) == (names[step] != names[step - 1])


@settings(max_examples=40)
@given(histories, st.integers(1, 8), st.integers(0, 3))
def test_minibatches_of_any_size_carry_the_weights_of_their_rows(history, chunks, extra):
    """Weights, whose value names the row, come with their rows whatever the sizes of minibatch and dataset are."""
    model = Model(*history)
    for _ in range(chunks):
        model.write_chunk()
    dataset = model.dataset
    dataset.weights = dataset.rows[..., 2].clone()
    for batch in dataset.flat_minibatches(1 + extra, 5):
        assert batch.weights is not None
        assert torch.equal(batch.weights, batch.targets.mean[:, 0])
    for batch in dataset.sequence_minibatches(1 + extra, 3):
        assert batch.weights is not None
        assert torch.equal(batch.weights, batch.targets.mean[..., 0])
