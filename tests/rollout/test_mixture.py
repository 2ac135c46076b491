"""Which policy acts, with which noise; and how much of it reaches the labels (nothing)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy_env import REGULATOR_GAIN, ConstantStudent, CountingEnv, LinearTeacher, RegulatorEnv

from foundation.config.distillation_cfg import CollectionCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import BufferSpec, DistillationDataset
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.rollout.collector import Collector
from foundation.rollout.mixture import PolicyMixture, bound_of_labels
from foundation.students import make_student, student_cfg_class

POLICY = ObsSelector(["policy"])


def regulator(cfg: CollectionCfg, student: str = "mlp", num_envs: int = 16, **options) -> Collector:
    """A collector of a linear teacher and an untrained student, on the linear system."""
    torch.manual_seed(0)
    window = 4 if student == "gru" else 1
    policy = make_student(student_cfg_class(student)(name=student), 2, 2)
    dataset = DistillationDataset(
        BufferSpec(
            2, num_envs, 100_000, {"mean": 2}, chunk_steps=8, sequence_length=window, state_size=policy.state_size
        )
    )
    return Collector(
        RegulatorEnv(num_envs), LinearTeacher(REGULATOR_GAIN.clone()), policy, dataset, POLICY, POLICY, cfg, **options
    )


def drive(cfg: CollectionCfg, beta: float, steps: int = 200, num_envs: int = 500) -> torch.Tensor:
    """Return who played: 1 the teacher, 0 the student. Shape: (steps, num_envs)."""
    mixture = PolicyMixture(LinearTeacher(torch.zeros(1, 1)), cfg, num_envs, 1)
    ones, zeros = PolicyOutput(torch.ones(num_envs, 1)), PolicyOutput(torch.zeros(num_envs, 1))
    mixture.begin_episodes(mixture.everywhere, beta)
    return torch.stack([mixture.actions(ones, zeros, beta).squeeze(-1) for _ in range(steps)])


@pytest.mark.parametrize("beta", [0.2, 0.7])
def test_per_step_every_step_is_the_teachers_with_probability_beta(beta):
    """The share of teacher's steps is beta within 4 standard errors, and a step says nothing about the next."""
    played = drive(CollectionCfg(beta_per="step"), beta).double()
    error = (beta * (1 - beta) / played.numel()) ** 0.5
    assert abs(float(played.mean()) - beta) < 4 * error
    both = float((played[1:] * played[:-1]).mean())
    assert abs(both - beta**2) < 4 * (beta**2 * (1 - beta**2) / played[1:].numel()) ** 0.5
    assert ((played.mean(0) - beta).abs() < 6 * (beta * (1 - beta) / 200) ** 0.5).all(), "every environment alike"


def test_per_episode_the_acting_policy_stays():
    """Without an episode's end nobody is replaced."""
    played = drive(CollectionCfg(), 0.5)
    assert torch.equal(played, played[:1].expand_as(played))
    assert 0.4 < float(played.mean()) < 0.6


@pytest.mark.parametrize("beta_per", ["episode", "step"])
def test_at_the_ends_both_kinds_are_the_same(beta_per):
    """Beta 1 is the teacher alone and beta 0 the student alone."""
    cfg = CollectionCfg(beta_per=beta_per)
    assert bool((drive(cfg, 1.0, 5) == 1.0).all()) and bool((drive(cfg, 0.0, 5) == 0.0).all())


def test_in_an_environment_labels_are_the_teachers_at_every_step_whoever_played():
    """The two policies alternate within episodes, and each step's label is the teacher's output there."""
    cfg = CollectionCfg(beta_per="step", staggered=False)
    env = CountingEnv([[9]] * 50, 9)
    dataset = DistillationDataset(BufferSpec(3, 50, 10_000, {"mean": 2}, chunk_steps=9))
    gain = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.25, -1.0]])
    student = ConstantStudent(3, [-7.0, -7.0])
    Collector(env, LinearTeacher(gain), student, dataset, POLICY, POLICY, cfg, num_episodes=100).collect(0, 0.5)
    rows, played = dataset.rows[: dataset.num_chunks].reshape(-1, 50, 5), torch.stack(env.actions)
    assert torch.equal(rows[..., 3:], rows[..., :3] @ gain)
    by_student = (played == -7.0).all(-1)
    assert torch.equal(played[~by_student], rows[..., 3:][~by_student])
    per_episode = by_student.view(-1, 9, 50).float().mean(1)
    assert bool(((per_episode > 0) & (per_episode < 1)).float().mean() > 0.95), "both drove within an episode"


@pytest.mark.parametrize("student", ["mlp", "gru"])
def test_the_fitted_covariance_is_numpys_on_the_same_errors(student):
    """E[e e^T] of student less teacher over all rows of the chunks, the student's memory as it was stored."""
    collector = regulator(CollectionCfg(dart_alpha=2.0), student, num_episodes=30)
    stats = collector.collect(0, 0.5)
    collector.fit_noise(stats.slots)
    dataset, errors = collector.dataset, []
    for slot in stats.slots:
        obs, label = dataset.rows[slot][..., :2], dataset.rows[slot][..., 2:]
        state = None if dataset.states is None else dataset.states[slot, 0]
        for step in range(dataset.chunk_steps):
            if state is not None:
                state = collector.student.policy.reset_state(state, dataset.resets[slot, step])
            output, state = collector.student.policy.step(obs[step], state)
            errors.append((output.mean - label[step]).detach().numpy())
    flat = np.concatenate(errors).astype(np.float64)
    expected = np.einsum("ni,nj->ij", flat, flat) / len(flat)
    assert np.abs(expected).max() > 0.01
    np.testing.assert_allclose(collector.mixture.error_moment.numpy(), expected, rtol=1e-5)


def test_the_noise_has_alpha_times_the_fitted_covariance_and_only_the_teacher_plays_it():
    """Measured over 200,000 draws; a singular covariance (errors on one line) is one too."""
    mixture = PolicyMixture(LinearTeacher(torch.zeros(1, 2)), CollectionCfg(dart_alpha=0.5), 1000, 2)
    errors = torch.randn(64, 100, 1, generator=torch.Generator().manual_seed(0)) * torch.tensor([0.3, -0.6])
    label, student = PolicyOutput(torch.full((1000, 2), 2.0)), PolicyOutput(torch.full((1000, 2), -2.0))
    assert torch.equal(mixture.actions(label, student, 1.0), label.mean), "nothing is fitted yet"
    mixture.fit_noise(errors)
    flat = errors.reshape(-1, 2).numpy()
    played = torch.cat([mixture.actions(label, student, 1.0) for _ in range(200)]) - 2.0
    np.testing.assert_allclose(np.cov(played.numpy().T), 0.5 * flat.T @ flat / len(flat), rtol=0.03)
    np.testing.assert_allclose(played[:, 1].numpy(), -2.0 * played[:, 0].numpy(), atol=1e-5)
    mixture.begin_episodes(mixture.everywhere, 0.5)
    mixed = mixture.actions(label, student, 0.5)
    assert torch.equal(mixed[~mixture.teacher_acts], student.mean[~mixture.teacher_acts])
    assert bool((mixed[mixture.teacher_acts] != label.mean[mixture.teacher_acts]).all())


def test_the_stored_labels_know_nothing_of_the_noise():
    """With a large fitted noise the environment sees it, and the labels are the teacher's own."""
    collector = regulator(CollectionCfg(dart_alpha=4.0), num_episodes=20)
    collector.fit_noise(collector.collect(0, 1.0).slots)
    slots = collector.collect(1, 1.0).slots
    rows = collector.dataset.rows[slots]
    assert torch.equal(rows[..., 2:], rows[..., :2] @ REGULATOR_GAIN)
    noise = float(collector.mixture.log()["data_collection/dart_std"])
    assert noise == pytest.approx(float((4.0 * collector.mixture.error_moment.diagonal().mean()).sqrt()), rel=1e-4)


@pytest.mark.parametrize("mode", ["steps", "episodes"])
@pytest.mark.parametrize("beta_per", ["episode", "step"])
def test_a_restored_collector_goes_on_exactly_with_its_fitted_noise(mode, beta_per):
    """Noise, acting policies and the state of the random numbers come back: the next rollouts are the same bits."""
    cfg = CollectionCfg(dart_alpha=1.0, beta_per=beta_per, student_deterministic=False)
    options = {"num_episodes": 40, "mode": mode, "num_envs": 8}

    def fresh() -> Collector:
        collector = regulator(cfg, **options)
        policy = make_student(student_cfg_class("mlp")(stochastic=True), 2, 2)
        policy.load_state_dict(dict(collector.student.policy.state_dict()) | {"log_std": torch.full((2,), -1.0)})
        collector.student.policy = policy
        return collector

    first = fresh()
    for epoch in range(2):
        first.fit_noise(first.collect(epoch, 0.5).slots)
    state = first.state_dict()
    chunks = first.dataset.num_chunks
    expected = first.collect(2, 0.5)
    second = fresh()
    assert second.load_state_dict(state)
    assert torch.equal(second.collect(2, 0.5).returns, expected.returns)
    again = second.dataset.rows[: second.dataset.num_chunks]
    assert torch.equal(again, first.dataset.rows[chunks : first.dataset.num_chunks])


def test_a_stochastic_student_explores_with_its_own_deviation():
    """Its actions scatter around its mean with its std; the label stays the teacher's. Without a std: one line."""
    mixture = PolicyMixture(LinearTeacher(torch.zeros(1, 2)), CollectionCfg(student_deterministic=False), 50_000, 2)
    label = PolicyOutput(torch.zeros(50_000, 2))
    student = PolicyOutput(torch.ones(50_000, 2), torch.tensor([0.1, 0.5]).expand(50_000, 2))
    mixture.begin_episodes(mixture.everywhere, 0.0)
    played = mixture.actions(label, student, 0.0)
    assert played.mean(0).tolist() == pytest.approx([1.0, 1.0], abs=0.01)
    assert played.std(0).tolist() == pytest.approx([0.1, 0.5], rel=0.02)
    with pytest.raises(UserError, match=r"distill\.student\.stochastic=true"):
        mixture.actions(label, PolicyOutput(student.mean), 0.0)


@pytest.mark.parametrize(
    ("cfg", "agents", "bound"),
    [
        (CollectionCfg(), 1.0, 1.0),
        (CollectionCfg(), None, None),
        (CollectionCfg(label_bound=0.5), 1.0, 0.5),
        (CollectionCfg(label_bound=0.5), None, 0.5),
        (CollectionCfg(clip_labels=False), 1.0, None),
    ],
)
def test_labels_are_clipped_to_the_bound_that_was_asked_for(cfg, agents, bound):
    """By default the agent config's bound, if any; a bound of one's own, or none at all."""
    assert bound_of_labels(cfg, agents) == bound
    cfg.dart_alpha = 0.0
    collector = regulator(cfg, num_episodes=8, label_bound=agents)
    slots = collector.collect(0, 1.0).slots
    rows = collector.dataset.rows[slots]
    raw = rows[..., :2] @ REGULATOR_GAIN
    assert float(raw.abs().max()) > 1.0
    assert torch.equal(rows[..., 2:], raw if bound is None else raw.clamp(-bound, bound))
