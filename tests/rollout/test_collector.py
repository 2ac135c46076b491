"""Collection, in an environment whose every row says where it comes from."""

from __future__ import annotations

import pytest
import torch
from toy_env import REGULATOR_GAIN, ConstantStudent, CountingEnv, CountingPolicy, LinearTeacher, RegulatorEnv

from foundation.config.distillation_cfg import CollectionCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.collector import Collector, collect_episodes
from foundation.rollout.episodes import CollectionStats, EpisodeTracker, mean_log

LENGTHS = [[2, 7, 4], [7, 3, 3], [5, 5, 6], [1, 2, 7]]
GAIN = torch.tensor([[10.0, 1.0], [1.0, -2.0], [0.5, 3.0]])
POLICY = ObsSelector(["policy"])


def make(env=None, *, student=None, teacher=None, std=None, chunk=4, window=1, cfg=None, **options):
    env = env or CountingEnv(LENGTHS, 7)
    student = student or ConstantStudent(3, [-1.0, -1.0])
    teacher = teacher or LinearTeacher(GAIN, 0.25, std)
    targets = {"mean": env.num_actions} | ({"std": env.num_actions} if std else {})
    dataset = DistillationDataset(
        BufferSpec(
            student.num_obs,
            env.num_envs,
            10_000,
            targets,
            chunk_steps=chunk,
            sequence_length=window,
            state_size=student.state_size,
        )
    )
    cfg = cfg or CollectionCfg(staggered=False)
    collector = Collector(env, teacher, student, dataset, POLICY, POLICY, cfg, **options)
    return collector, env, dataset, teacher


def rows(dataset: DistillationDataset, name: str) -> torch.Tensor:
    """Return a column of all stored rows, in the order of time. Shape: (steps, envs, size)."""
    stored = dataset.rows[: dataset.num_chunks, ..., dataset.columns[name]]
    return stored.reshape(-1, dataset.num_envs, stored.shape[-1])


def triangle(length: float) -> float:
    return length * (length + 1) / 2


@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("mode", ["steps", "episodes"])
def test_labels_are_the_teachers_whoever_acts(beta, mode):
    """In every phase and with noise on the actions, the stored target is the teacher's output at the visited state."""
    noisy = CollectionCfg(epsilon=0.3, noise_std=0.5, staggered=False)
    collector, env, dataset, _ = make(cfg=noisy, mode=mode, num_episodes=12, std=0.1, teacher_deterministic=False)
    collector.collect(0, beta)
    assert torch.equal(rows(dataset, "mean"), rows(dataset, "obs") @ GAIN + 0.25)
    assert torch.equal(rows(dataset, "std"), torch.full_like(rows(dataset, "mean"), 0.1))
    played = torch.stack(env.actions)
    assert not torch.allclose(played, rows(dataset, "mean")), "the noise reached the environment"


def test_the_student_acts_in_the_student_phase_and_the_teacher_before():
    """Without noise the executed actions are exactly the teacher's, then exactly the student's."""
    collector, env, dataset, _ = make(num_episodes=4)
    collector.collect(0, 1.0)
    assert torch.equal(torch.stack(env.actions), rows(dataset, "mean"))
    env.actions.clear()
    collector.collect(1, 0.0)
    assert torch.equal(torch.stack(env.actions), torch.full((len(env.actions), 4, 2), -1.0))


@pytest.mark.parametrize("mode", ["steps", "episodes"])
def test_what_one_collection_has_written_is_an_epoch(mode):
    """``draw_newest`` draws the last ones' transitions, of however many chunks each is."""
    collector, _, dataset, _ = make(num_episodes=4, mode=mode)
    written = []
    for epoch, episodes in enumerate((4, 40, 4)):
        collector.num_episodes = episodes
        collector.rounds = episodes // 4
        written.append(len(collector.collect(epoch, 1.0).slots))
    assert written[1] > written[0]
    for newest in (1, 2, 3, 4):
        dataset.draw_newest(newest)
        chunks = range(dataset.num_chunks)[-sum(written[-newest:]) :]
        [batch] = dataset.flat_minibatches(len(chunks) * dataset.rows_per_chunk, 1)
        expected = torch.cat([dataset.chunk_obs(chunk) for chunk in chunks])
        assert torch.equal(batch.obs.sort(dim=0)[0], expected.sort(dim=0)[0])


def test_stored_observations_and_episode_starts_are_the_visited_ones():
    """Every env step is stored once and in order; ``resets`` marks the first step of each episode."""
    collector, _, dataset, _ = make(num_episodes=9)
    stats = collector.collect(0, 1.0)
    obs = rows(dataset, "obs")
    assert stats.env_steps == len(dataset) == obs.shape[0] * 4
    starts = dataset.resets[: dataset.num_chunks].view(-1, 4)
    assert torch.equal(starts, obs[..., 2] == 0.0)
    for env, lengths in enumerate(LENGTHS):
        expected = [(float(e), float(s)) for e in range(20) for s in range(lengths[e % 3])]
        assert [tuple(row) for row in obs[:, env, 1:].tolist()] == expected[: obs.shape[0]]
        assert torch.equal(obs[:, env, 0], torch.full((obs.shape[0],), float(env)))


def test_one_policy_per_episode_drawn_with_probability_beta():
    """With beta 0.3, one policy acts in each episode from start to end, the teacher in 30 % of them."""
    env = CountingEnv([[3]] * 200, 3)
    collector, env, dataset, _ = make(env, num_episodes=2000, mode="steps")
    collector.collect(0, 0.3)
    by_teacher = (torch.stack(env.actions) == rows(dataset, "mean")).all(-1)
    by_student = (torch.stack(env.actions) == -1.0).all(-1)
    assert torch.equal(by_teacher, ~by_student)
    episodes = by_teacher[: by_teacher.shape[0] // 3 * 3].view(-1, 3, 200)
    assert torch.equal(episodes, episodes[:, :1].expand(-1, 3, -1))
    share, count = float(episodes[:, 0].double().mean()), episodes[:, 0].numel()
    assert abs(share - 0.3) < 3.3 * (0.3 * 0.7 / count) ** 0.5


def test_episodes_mode_counts_the_first_episodes_of_each_environment():
    """Two of each: never a third of a fast environment in place of the second of a slow one."""
    collector, env, _, _ = make(num_episodes=8, mode="episodes", seed=3)
    stats = collector.collect(2, 1.0)
    expected = [length for lengths in LENGTHS for length in lengths[:2]]
    assert sorted(stats.lengths.tolist()) == sorted(float(length) for length in expected)
    assert sorted(stats.returns.tolist()) == sorted(triangle(length) for length in expected)
    assert int(stats.success.sum()) == expected.count(7)
    assert sorted(stats.metrics["last_step"].tolist()) == sorted(stats.lengths.tolist())
    assert env.seeds[-1] == (3 * 1_000_003 + 2) % 2**31, "each epoch's resets are seeded by (seed, epoch)"


def test_steps_mode_goes_on_across_epochs():
    """Nothing is reset between epochs: an episode that began in one is finished and counted whole in the next."""
    collector, env, dataset, _ = make(num_episodes=3, chunk=4)
    seeds = len(env.seeds)
    stats = [collector.collect(epoch, 1.0) for epoch in range(6)]
    assert len(env.seeds) == seeds + 1
    steps = dataset.num_chunks * 4
    expected = []
    for lengths in LENGTHS:
        done, episode = 0, 0
        while (done := done + lengths[episode % 3]) <= steps:
            expected.append(triangle(lengths[episode % 3]))
            episode += 1
    assert sorted(torch.cat([s.returns for s in stats]).tolist()) == sorted(expected)


def test_cut_episodes_never_enter_a_statistic():
    """After a staggered start the first episode of each environment is no whole one; all later ones are."""
    cfg = CollectionCfg(staggered=True)
    collector, _, dataset, _ = make(CountingEnv([[7]] * 40, 7), cfg=cfg, num_episodes=100)
    stats = collector.collect(0, 1.0)
    starts = rows(dataset, "obs")[0, :, 2]
    assert starts.unique().numel() > 4, "the environments start at different times of their episodes"
    assert stats.returns.tolist() == [triangle(7)] * len(stats.returns)
    ended = (rows(dataset, "obs")[..., 2] == 6.0).sum()
    assert len(stats.returns) == int(ended) - 40


def test_episodes_begun_by_another_policy_are_not_counted():
    """Where teacher forcing ends, the episodes in progress belong to nobody."""
    collector, env, _, _ = make(CountingEnv([[6], [6]], 6), num_episodes=2, chunk=4)
    first = collector.collect(0, 1.0)
    assert len(first.returns) == 2
    assert env.episode_length_buf.tolist() == [2, 2], "the phase changes in the middle of an episode"
    second = collector.collect(1, 0.0)
    assert len(second.returns) == 0
    third = collector.collect(2, 0.0)
    assert third.returns.tolist() == [21.0, 21.0]


def test_a_stochastic_teacher_acts_with_its_std():
    """``teacher_deterministic=False`` changes the actions: they scatter around the mean with the teacher's std."""
    collector, env, dataset, _ = make(std=0.2, teacher_deterministic=False, num_episodes=2000)
    collector.collect(0, 1.0)
    error = torch.stack(env.actions) - rows(dataset, "mean")
    assert float(error.std()) == pytest.approx(0.2, rel=0.05)
    assert abs(float(error.mean())) < 0.02


def test_epsilon_is_the_rate_of_uniform_actions():
    """A quarter of the steps play something uniform in [-1, 1], the others the teacher's mean."""
    collector, env, dataset, _ = make(cfg=CollectionCfg(epsilon=0.25, staggered=False), num_episodes=2000)
    collector.collect(0, 1.0)
    played = torch.stack(env.actions)
    explored = (played != rows(dataset, "mean")).all(-1)
    assert float(explored.double().mean()) == pytest.approx(0.25, abs=0.03)
    uniform = played[explored]
    assert float(uniform.abs().max()) <= 1.0
    assert float(uniform.std()) == pytest.approx(3**-0.5, rel=0.05)


def test_labels_are_clipped_to_the_bound_only():
    """With a bound the stored mean is clamped, otherwise it is the teacher's own."""
    collector, env, dataset, _ = make(num_episodes=4, label_bound=5.0)
    collector.collect(0, 1.0)
    raw = rows(dataset, "obs") @ GAIN + 0.25
    assert float(raw.abs().max()) > 5.0
    assert torch.equal(rows(dataset, "mean"), raw.clamp(-5.0, 5.0))
    assert env.num_envs == 4


def test_the_memory_stored_at_a_window_is_the_students_own():
    """A counting student's memory at the start of each window is the number of steps since its episode began."""
    collector, _, dataset, _ = make(student=CountingPolicy(3), chunk=6, window=3, num_episodes=12, mode="episodes")
    collector.collect(0, 0.0)
    assert dataset.states is not None
    stored = dataset.states[: dataset.num_chunks].reshape(-1, 4)
    assert torch.equal(stored, rows(dataset, "obs")[::3, :, 2])


def test_the_teachers_memory_begins_anew_with_each_episode():
    """A counting teacher's labels are the number of steps since the episode began, across chunks and epochs."""
    collector, env, dataset, _ = make(teacher=CountingPolicy(3), num_episodes=6)
    for epoch in range(3):
        collector.collect(epoch, 1.0)
    assert torch.equal(rows(dataset, "mean")[..., 0], rows(dataset, "obs")[..., 2])
    assert torch.equal(torch.stack(env.actions), rows(dataset, "mean"))


class Spoiled(RegulatorEnv):
    """Passes NaN actions on into its state; can spoil one thing at one step itself."""

    def __init__(self, what: str, step: int):
        self.what, self.when, self.count = what, step, 0
        super().__init__(3)

    def step(self, actions):
        obs, rewards, dones, extras = super().step(actions)
        self.count += 1
        if self.count == self.when:
            if self.what == "obs":
                self.state[1] = torch.nan
                obs = self.get_observations()
            if self.what == "rewards":
                rewards[2] = torch.inf
        return obs, rewards, dones, extras


class SpoiledTeacher(LinearTeacher):
    def __init__(self, step: int):
        super().__init__(REGULATOR_GAIN)
        self.when, self.count = step, 0

    def step(self, obs, state=None):
        self.count += 1
        output = super().step(obs)[0]
        return (output._replace(mean=output.mean * torch.nan) if self.count == self.when else output), None


@pytest.mark.parametrize(
    ("env", "teacher", "message"),
    [
        (Spoiled("obs", 5), LinearTeacher(REGULATOR_GAIN), r"environment returned NaN.*observations.*policy"),
        (Spoiled("rewards", 5), LinearTeacher(REGULATOR_GAIN), "environment returned NaN or infinite rewards"),
        (Spoiled("", 0), SpoiledTeacher(3), "teacher's output 'mean' is NaN"),
    ],
)
def test_nan_is_named_after_where_it_came_from(env, teacher, message):
    """NaN stops the run and blames its source, though NaN actions of a teacher spoil the environment's state too."""
    collector, _, dataset, _ = make(
        env, teacher=teacher, student=ConstantStudent(2, [0.0, 0.0]), num_episodes=20, chunk=8
    )
    with pytest.raises(UserError, match=message):
        collector.collect(0, 1.0)
    assert torch.isfinite(rows(dataset, "mean")).all(), "what counts is finite"


def test_numbers_too_large_for_the_storage_are_not_blamed_on_the_environment_alone():
    """float16 ends at 65504: finite observations beyond it become infinite in the dataset."""

    class Far(RegulatorEnv):
        def get_observations(self):
            return super().get_observations().apply(lambda group: 1e5 * group)

    dataset = DistillationDataset(BufferSpec(2, 3, 1000, {"mean": 2}, chunk_steps=4, dtype="float16"))
    idle = ConstantStudent(2, [0.0, 0.0])
    with pytest.raises(UserError, match=r"65504.*dataset\.dtype=float16"):
        collect_episodes(Far(3), idle, dataset, 3, student=idle)


def test_an_environment_that_never_ends_is_named():
    """Collection stops with an error instead of running for ever."""
    env = CountingEnv([[10**6]], 10**6)
    env.max_episode_length = 5
    with pytest.raises(UserError, match="check the environment's time-outs"):
        make(env, num_episodes=2)[0].collect(0, 1.0)


@pytest.mark.parametrize("mode", ["steps", "episodes"])
def test_a_restored_collector_goes_on_exactly(mode):
    """A collector put back from its state makes the rollouts, bit for bit, that the first one made."""
    cfg = CollectionCfg(noise_std=0.3, epsilon=0.1)
    options = {"num_episodes": 15, "mode": mode, "cfg": cfg, "teacher": LinearTeacher(REGULATOR_GAIN)}
    student = ConstantStudent(2, [0.1, 0.2])
    first, _, data, _ = make(RegulatorEnv(5), student=student, **options)
    for epoch in range(3):
        first.collect(epoch, 0.5)
    state, chunks = first.state_dict(), data.num_chunks
    expected = first.collect(3, 0.5)
    second, _, other, _ = make(RegulatorEnv(5), student=student, **options)
    state["generator"] = state["generator"].clone()
    second.load_state_dict(state)
    got = second.collect(3, 0.5)
    assert torch.equal(got.returns, expected.returns)
    assert torch.equal(other.rows[: other.num_chunks], data.rows[chunks : data.num_chunks])


def test_a_state_taken_before_the_first_epoch_is_exact():
    """Nothing had begun: there is no environment state to restore, and none is missed."""
    first, *_ = make(RegulatorEnv(3), student=ConstantStudent(2, [0.0, 0.0]), teacher=LinearTeacher(REGULATOR_GAIN))
    second, *_ = make(RegulatorEnv(3), student=ConstantStudent(2, [0.0, 0.0]), teacher=LinearTeacher(REGULATOR_GAIN))
    assert second.load_state_dict(first.state_dict()) is True
    assert torch.equal(first.collect(0, 1.0).returns, second.collect(0, 1.0).returns)


def test_different_seeds_differ():
    """The collector's seed decides its resets and its noise."""
    found: list[CollectionStats] = []
    for seed in (1, 1, 2):
        student = ConstantStudent(2, [0.0, 0.0])
        collector, *_ = make(
            RegulatorEnv(4), student=student, teacher=LinearTeacher(REGULATOR_GAIN), num_episodes=4, seed=seed
        )
        found.append(collector.collect(0, 0.5))
    assert torch.equal(found[0].returns, found[1].returns)
    assert not torch.equal(found[0].returns[:3], found[2].returns[:3])


def test_collect_episodes_is_the_whole_thing_in_one_call():
    """The public function resets, collects and labels."""
    env, dataset = CountingEnv(LENGTHS, 7), DistillationDataset(BufferSpec(3, 4, 1000, {"mean": 2}, chunk_steps=4))
    stats = collect_episodes(env, LinearTeacher(GAIN), dataset, 4, student=ConstantStudent(3, [0.0, 0.0]))
    assert sorted(stats.lengths.tolist()) == [1.0, 2.0, 5.0, 7.0]
    assert stats.log == {"Metrics/two": 2.0}


def test_log_entries_are_averaged_and_what_is_not_finite_is_left_out():
    """``extras["log"]`` may hold numbers or one-element tensors."""
    merged = mean_log([{"a": 1.0, "b": torch.tensor(2.0)}, {"a": torch.tensor([3.0]), "c": float("nan")}])
    assert merged == {"a": 2.0, "b": 2.0}


def test_episodes_that_only_short_ones_could_be_are_marked():
    """In the first ``max_episode_length`` steps of a phase a mean return would be that of short episodes alone."""
    short = torch.rand(200, 60, generator=torch.Generator().manual_seed(0)) < 0.5
    env = CountingEnv(torch.where(short, 2, 10).tolist(), 10)
    collector, *_ = make(env, num_episodes=100, chunk=4, cfg=CollectionCfg(staggered=True))
    stats = [collector.collect(epoch, 1.0) for epoch in range(20)]
    early = torch.cat([s.returns[~s.settled] for s in stats if s.settled is not None])
    late = torch.cat([s.unbiased(s.returns) for s in stats])
    fair = (triangle(2) + triangle(10)) / 2
    assert len(early) > 100 and float(early.mean()) < fair / 2
    assert float(late.mean()) == pytest.approx(fair, rel=0.05)
    before = len(stats[-1].returns)
    assert before and bool(stats[-1].settled.all())
    assert not bool(collector.collect(20, 0.0).settled.any()), "another phase begins"


def test_a_step_that_says_nothing_of_time_outs_has_none():
    """An environment may leave ``time_outs`` out: those of the chunk before do not stand in for them."""
    tracker, nothing, everywhere = EpisodeTracker(1, 1, "cpu"), torch.zeros(1), torch.ones(1, dtype=torch.bool)
    seen = []
    for extras in ({"time_outs": everywhere}, {}):
        tracker.begin()
        tracker.after_step(nothing, everywhere, extras)
        tracker.drain()
        seen.append(tracker.stats().success.tolist())
    assert seen == [[True], [False]]


def test_every_counted_episode_of_a_reset_epoch_is_settled():
    """``episodes`` mode waits for the first episodes of every environment, long ones too."""
    collector, *_ = make(num_episodes=8, mode="episodes")
    stats = collector.collect(0, 1.0)
    assert stats.settled is None and torch.equal(stats.unbiased(stats.returns), stats.returns)
