"""Which episode a row is of, how it ended, and the weight that it has for it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy_env import ConstantStudent, CountingEnv, LinearTeacher

from foundation.config.distillation_cfg import CollectionCfg, EpisodeFilterCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.dataset.episode_log import EpisodeLog
from foundation.dataset.episodes import EpisodeTable, FilterOutcome, filter_outcome, left_out, weigh
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.collector import Collector

LENGTHS = [[3, 6, 2], [6, 6, 1], [1, 5, 6]]
"""Lengths of the episodes of three environments; one of 6 steps ends by time-out, and so succeeds."""


def collect(
    mode: str = "episodes", epochs: int = 2, capacity: int = 300, **wanted
) -> tuple[Collector, DistillationDataset]:
    env = CountingEnv(LENGTHS, 6)
    dataset = DistillationDataset(
        BufferSpec(3, 3, capacity, {"mean": 2}, chunk_steps=4, track_episodes=True, weighted=True)
    )
    recorder = EpisodeLog(dataset, EpisodeFilterCfg(**wanted))
    select = ObsSelector(["policy"])
    teacher, student = LinearTeacher(torch.zeros(3, 2)), ConstantStudent(3, [0.0, 0.0])
    collector = Collector(
        env, teacher, student, dataset, select, select, CollectionCfg(staggered=False), mode=mode, num_episodes=6,
        recorder=recorder,
    )  # fmt: skip
    for epoch in range(epochs):
        collector.collect(epoch, 1.0)
    return collector, dataset


def rows(dataset: DistillationDataset) -> list[tuple[int, int, int, int, float]]:
    """Chunk, environment, episode as the environment counts it, number, weight: one for each row."""
    assert dataset.episode is not None and dataset.weights is not None
    found = []
    for slot in range(dataset.num_chunks):
        for step in range(4):
            for env in range(3):
                seen = dataset.rows[slot, step, env]
                number, weight = int(dataset.episode[slot, step, env]), float(dataset.weights[slot, step, env])
                found.append((slot, env, int(seen[1]), number, weight))
    return found


@pytest.mark.parametrize("mode", ["steps", "episodes"])
def test_rows_of_one_episode_and_no_others_share_a_number(mode):
    """Across chunks, environments and epochs: a number stands for one episode, and an episode has one number."""
    collector, dataset = collect(mode)
    first_of_epoch = 0
    if mode == "episodes":  # the environment counts anew after each reset
        first_of_epoch = next(slot for slot in range(1, dataset.num_chunks) if bool(dataset.resets[slot, 0].all()))
    names: dict[int, tuple] = {}
    for slot, env, episode, number, _ in rows(dataset):
        name = (mode == "episodes" and slot >= first_of_epoch, env, episode)
        assert names.setdefault(number, name) == name
    assert len(set(names.values())) == len(names)
    assert set(collector.recorder.table.number.tolist()) <= set(names)


def test_outcomes_are_those_of_the_environment():
    """Length L returns L (L + 1) / 2 and succeeds if L is 6; every episode that ended is in the table, once."""
    collector, dataset = collect("episodes", epochs=1)
    table = collector.recorder.table
    assert torch.equal(table.returns, (table.lengths * (table.lengths + 1) / 2).float())
    assert torch.equal(table.success, table.lengths == 6)
    assert bool(table.whole.all()), "also those beyond the number that was asked for"
    ended = {number for _, env, episode, number, _ in rows(dataset) if episode + 1 <= episodes_ended(dataset, env)}
    assert sorted(table.number.tolist()) == sorted(ended)


def episodes_ended(dataset: DistillationDataset, env: int) -> int:
    """How many episodes of an environment have ended after its last stored step."""
    steps, count = dataset.num_chunks * 4, 0
    lengths = [LENGTHS[env][i % 3] for i in range(99)]
    while sum(lengths[: count + 1]) <= steps:
        count += 1
    return count


@pytest.mark.parametrize(
    ("wanted", "keeps"),
    [
        ({"success": True}, lambda length: length == 6),
        ({"min_length": 5}, lambda length: length >= 5),
        ({"success": True, "min_length": 2}, lambda length: length == 6),
    ],
)
def test_rows_of_episodes_that_do_not_pass_keep_their_place_with_weight_0(wanted, keeps):
    """Every row of a finished episode weighs 1 or 0 by its episode; those of unfinished ones weigh 1."""
    _, dataset = collect("episodes", epochs=1, **wanted)
    weighed = set()
    for _, env, episode, _, weight in rows(dataset):
        known = episode < episodes_ended(dataset, env)
        expected = float(not known or keeps(LENGTHS[env][episode % 3]))
        assert weight == expected
        weighed.add((known, expected))
    assert weighed >= {(True, 0.0), (True, 1.0), (False, 1.0)}
    [batch] = dataset.flat_minibatches(len(dataset), 1)
    assert batch.weights is not None and len(batch.weights) == len(dataset)


@given(st.lists(st.floats(-50, 50, width=32), min_size=1, max_size=40), st.floats(0, 1))
def test_the_quantile_keeps_the_best_share(returns, quantile):
    """What is left out returned less than everything that is kept, and is at most that share of all."""
    numbers = torch.arange(len(returns), dtype=torch.int32)
    values, yes = torch.tensor(returns), torch.ones(len(returns), dtype=torch.bool)
    bad = left_out(EpisodeTable(numbers, values, numbers, yes, yes), EpisodeFilterCfg(return_quantile=quantile))
    kept = [returns[i] for i in range(len(returns)) if i not in bad.tolist()]
    assert kept, "the best is always kept"
    assert all(returns[i] < min(kept) for i in bad.tolist())
    assert len(bad) <= quantile * len(returns)
    if quantile == 1.0:
        assert min(kept) == max(returns)


def test_cut_episodes_are_judged_by_success_alone():
    """The return and the length of an episode that a phase has cut say nothing."""
    number, yes, no = torch.tensor([0, 1], dtype=torch.int32), torch.tensor([True, True]), torch.tensor([False, False])
    table = EpisodeTable(number, torch.tensor([-9.0, 5.0]), torch.tensor([1, 1]).int(), torch.tensor([False, True]), no)
    assert left_out(table, EpisodeFilterCfg(min_length=3, return_quantile=0.9)).tolist() == []
    assert left_out(table, EpisodeFilterCfg(success=True)).tolist() == [0]
    assert left_out(table._replace(whole=yes), EpisodeFilterCfg(min_length=3)).tolist() == [0, 1]


def test_a_slot_that_is_written_again_forgets_its_weights():
    """A row that takes the place of one with weight 0 does not inherit it."""
    _, dataset = collect("episodes", epochs=1, capacity=36, success=True)
    assert dataset.weights is not None and bool((dataset.weights == 0).any())
    assert dataset.num_chunks == dataset.max_chunks
    slot = dataset.begin_chunk()
    assert bool((dataset.weights[slot] == 1).all())


def test_nothing_left_to_learn_from_is_an_error():
    """Where all rows have weight 0 the filter is named."""
    with pytest.raises(UserError, match=r"no episode passes distill\.dataset\.filter"):
        collector, dataset = collect("episodes", epochs=1)
        collector.recorder.filter = EpisodeFilterCfg(min_length=7)
        assert dataset.episode is not None
        known = torch.isin(dataset.episode, collector.recorder.table.number)
        dataset.episode[~known] = -1
        collector.recorder.apply_filter()


def tracked(*chunks: list[list[int]]) -> DistillationDataset:
    """A dataset of two envs and two steps a chunk, whose rows belong to these episodes."""
    dataset = DistillationDataset(
        BufferSpec(1, 2, 4 * len(chunks), {"mean": 1}, chunk_steps=2, track_episodes=True, weighted=True)
    )
    for episodes in chunks:
        slot = dataset.begin_chunk()
        assert dataset.episode is not None
        dataset.episode[slot] = torch.tensor(episodes, dtype=torch.int32)
        dataset.commit_chunk()
    return dataset


def test_what_a_filter_did_is_counted_and_told():
    """Unfinished episodes pass and are counted over all datasets once, and so are those without their beginning."""
    numbers = torch.tensor([0, 1, 2, 9], dtype=torch.int32)  # 9 has no row
    success, whole = torch.tensor([True, False, False, False]), torch.tensor([True, True, False, True])
    table = EpisodeTable(numbers, numbers.float(), numbers, success, whole)
    datasets = [tracked([[0, 1], [0, 1]], [[0, 2], [3, 2]]), tracked([[3, -1], [4, -1]])]
    outcome = filter_outcome(datasets, table, torch.tensor([1, 9], dtype=torch.int32))
    assert outcome == FilterOutcome(finished=(3, 7), left_out=(1, 2), unfinished=(2, 3), cut=(1, 2))
    line = outcome.line(EpisodeFilterCfg(success=True))
    assert line == (
        "Filter: 1 of 3 finished episodes are left out (2 of 7 transitions); 2 unfinished ones (3 transitions) are "
        "kept, as their outcome is not known"
    )
    assert outcome.line(EpisodeFilterCfg(min_length=2)) == line + "; 1 without their beginning (2 transitions) are kept"
    judged = outcome.line(EpisodeFilterCfg(success=True, return_quantile=0.5))
    assert judged.endswith("; 1 without their beginning (2 transitions) are judged by success alone")
    assert not outcome.nothing_known_passes
    assert filter_outcome(datasets, table, numbers).nothing_known_passes


def test_an_empty_dataset_has_nothing_to_filter():
    """No chunk, no count."""
    outcome = filter_outcome([tracked()], EpisodeTable.empty(), torch.empty(0, dtype=torch.int32))
    assert outcome == FilterOutcome((0, 0), (0, 0), (0, 0), (0, 0)) and not outcome.nothing_known_passes


def test_a_run_tells_what_its_filter_did(caplog):
    """Every collection says how many episodes were left out, and how many transitions of unfinished ones were kept."""
    caplog.set_level("INFO", "foundation")
    collector, dataset = collect("steps", epochs=2, success=True)
    assert dataset.episode is not None
    numbers = dataset.episode[: dataset.num_chunks]
    left = numbers[(numbers >= 0) & ~torch.isin(numbers, collector.recorder.table.number)]
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("Filter: ")]
    assert len(told) == 2 and len(left) > 0
    assert f"{len(left.unique())} unfinished ones ({len(left)} transitions) are kept" in told[-1]


def test_weights_decide_what_is_learned():
    """Rows of weight 0 do not move the student: with them and without, the same gradient."""
    from foundation.config.distillation_cfg import DistillationCfg
    from foundation.learning.learner import Learner
    from foundation.students import StudentPolicy

    _, dataset = collect("episodes", epochs=1, success=True)
    gradients = []
    for spoil in (False, True):
        torch.manual_seed(0)
        student = StudentPolicy(3, 2, hidden_dims=(4,))
        learner = Learner(student, DistillationCfg(), 1)
        assert dataset.weights is not None
        if spoil:
            dataset.rows[..., 3:][dataset.weights == 0] = 1e3
        [batch] = dataset.flat_minibatches(len(dataset), 1, shuffle=False)
        learner.losses(batch, learner.objective.loss_params(0))[0].backward()
        gradients.append(student.mean.bias.grad.clone())
    assert torch.equal(*gradients)


def test_an_exact_resume_goes_on_numbering():
    """Numbers and outcomes after a restored state are those of the rollouts that were not interrupted."""
    whole, all_rows = collect("episodes", epochs=2)
    stopped, some_rows = collect("episodes", epochs=1)
    again, _ = collect("episodes", epochs=0)
    again.load_state_dict(stopped.state_dict())
    again.dataset = some_rows
    again.actor.dataset = some_rows
    again.recorder.dataset = some_rows
    again.collect(1, 1.0)
    assert all(torch.equal(a, b) for a, b in zip(whole.recorder.table, again.recorder.table, strict=True))
    assert all_rows.episode is not None and some_rows.episode is not None
    kept = all_rows.num_chunks
    assert torch.equal(all_rows.episode[:kept], some_rows.episode[:kept])


def test_weighing_handles_numbers_beyond_the_rows():
    """Episodes without any row left, and an empty dataset, are no trouble."""
    _, dataset = collect("episodes", epochs=1)
    weigh(dataset, torch.tensor([10_000], dtype=torch.int32))
    assert dataset.weights is not None and bool((dataset.weights[: dataset.num_chunks] == 1).all())
    weigh(
        DistillationDataset(BufferSpec(3, 3, 12, {"mean": 2}, chunk_steps=4, track_episodes=True, weighted=True)),
        torch.empty(0),
    )
