"""Several discrete actions at once (MultiDiscrete): losses against torch.distributions, a run, a teacher's file."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch.distributions import Categorical, kl_divergence

from foundation.config.distillation_cfg import CollectionCfg, DistillationCfg, LossCfg
from foundation.core.errors import UserError
from foundation.core.registry import forget_typed
from foundation.learning.learner import Learner
from foundation.learning.losses import LossParams, loss_spec
from foundation.policies.choices import best_choices, draw_choices
from foundation.policies.output import PolicyOutput
from foundation.rollout.mixture import PolicyMixture
from foundation.rsl_rl import distillation
from foundation.students import StudentPolicy
from foundation.teachers import TeacherPolicyWrapper

SIZES = (3, 2)


class Dials(gymnasium.Env):
    """Two dials of three and two positions; the reward counts how many are where the observation says."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.MultiDiscrete(SIZES)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.obs = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.obs, {}

    def step(self, action):
        wanted = [int(np.searchsorted([-0.3, 0.3], self.obs[0])), int(self.obs[1] > 0.0)]
        reward = float(sum(int(a) == b for a, b in zip(action, wanted, strict=True)))
        self.obs = self.np_random.uniform(-1.0, 1.0, 2).astype(np.float32)
        return self.obs, reward, False, False, {}


def dials(obs: torch.Tensor) -> torch.Tensor:
    """Logits of the right positions: 8 for it, 0 for the others."""
    first = torch.bucketize(obs[:, 0].contiguous(), torch.tensor([-0.3, 0.3]))
    second = (obs[:, 1] > 0.0).long()
    one_hot = [torch.nn.functional.one_hot(part, size) for part, size in zip((first, second), SIZES, strict=True)]
    return 8.0 * torch.cat(one_hot, dim=-1).float()


def positions(obs: torch.Tensor) -> torch.Tensor:
    return best_choices(dials(obs), SIZES)


@pytest.fixture
def module():
    """The environment's id, and teachers in a module that the command line names."""
    made = ModuleType("dials_of_a_test")
    made.dials, made.positions = dials, positions  # pyright: ignore[reportAttributeAccessIssue]
    sys.modules[made.__name__] = made
    gymnasium.register("Dials-v0", Dials, max_episode_steps=20)
    yield made
    gymnasium.registry.pop("Dials-v0")
    del sys.modules[made.__name__]
    forget_typed()


def outputs(seed: int, steps: int = 0) -> PolicyOutput:
    generator = torch.Generator().manual_seed(seed)
    lead = (steps, 6) if steps else (6,)
    logits = 2.0 * torch.randn(*lead, sum(SIZES), generator=generator, dtype=torch.float64)
    return PolicyOutput(best_choices(logits, SIZES), logits=logits)


def categoricals(output: PolicyOutput, temperature: float = 1.0) -> list[Categorical]:
    assert output.logits is not None
    return [Categorical(logits=part / temperature) for part in output.logits.split(SIZES, dim=-1)]


@pytest.mark.parametrize("steps", [0, 4])
def test_losses_are_those_of_independent_categoricals(steps):
    """KL both ways, cross-entropy and likelihood of the best choices, each the sum over the actions, to 1e-9."""
    student, teacher = outputs(1, steps), outputs(2, steps)
    own, wanted = categoricals(student), categoricals(teacher, 2.0)
    entropy = sum(part.entropy() for part in wanted)
    forward = sum(kl_divergence(*pair) for pair in zip(wanted, own, strict=True))
    reverse = sum(kl_divergence(*pair) for pair in zip(own, wanted, strict=True))
    likelihood = sum(part.log_prob(teacher.mean[..., index]) for index, part in enumerate(own))
    cases = {
        ("kl", "forward"): forward,
        ("kl", "reverse"): reverse,
        ("soft_cross_entropy", "forward"): forward + entropy,
        ("nll", "forward"): -likelihood,
    }
    for (name, direction), expected in cases.items():
        params = LossParams(temperature=2.0, direction=direction, choices=SIZES)  # pyright: ignore[reportArgumentType]
        found = loss_spec(name).function(student, teacher, params)
        assert found.shape == teacher.mean.shape[:-1]
        assert torch.allclose(found, expected, atol=1e-9), name


def test_advantages_are_those_within_each_action():
    """Q-values of the second action that are all off by 5 have the right advantages; those of half of it have not."""
    teacher = outputs(3)
    assert teacher.logits is not None
    params = LossParams(choices=SIZES)
    off = torch.tensor([0.0, 0.0, 0.0, 5.0, 5.0], dtype=torch.float64)
    moved = teacher._replace(logits=teacher.logits + off)
    assert loss_spec("advantage_mse").function(moved, teacher, params).abs().max() < 1e-12
    wrong = teacher._replace(logits=teacher.logits + torch.tensor([0.0, 0.0, 0.0, 0.0, 5.0], dtype=torch.float64))
    assert loss_spec("advantage_mse").function(wrong, teacher, params).tolist() == pytest.approx([2 * 2.5**2 / 5] * 6)


def test_draws_are_of_each_actions_own_distribution():
    """Frequencies of 20,000 draws are within 4 standard errors of the probabilities; best choices are the largest."""
    logits = torch.tensor([1.0, 0.0, -1.0, 0.0, 2.0])
    drawn = draw_choices(logits.expand(20_000, 5), SIZES, torch.Generator().manual_seed(0))
    assert drawn.shape == (20_000, 2)
    for index, part in enumerate(logits.split(SIZES)):
        for choice, p in enumerate(part.softmax(-1).tolist()):
            share = (drawn[:, index] == choice).float().mean().item()
            assert abs(share - p) < 4.0 * (p * (1.0 - p) / 20_000) ** 0.5
    assert best_choices(logits, SIZES).tolist() == [0.0, 1.0]


def test_exploration_draws_among_the_choices_of_each_action():
    """``epsilon=1``: the first dial takes 0, 1, 2, the second 0 and 1, each about as often."""
    cfg = CollectionCfg(epsilon=1.0)
    mixture = PolicyMixture(StudentPolicy(2, 2, num_choices=[3, 2]), cfg, 6000, 2, choices=SIZES)
    output = PolicyOutput(torch.zeros(6000, 2), logits=torch.zeros(6000, 5))
    actions = mixture.actions(output, None, 1.0)
    for index, size in enumerate(SIZES):
        counts = torch.bincount(actions[:, index].long(), minlength=size)
        assert len(counts) == size and (counts - 6000 / size).abs().max() < 200


@pytest.mark.parametrize(("teacher", "loss"), [("dials", "kl"), ("dials", "q_mse"), ("positions", "nll")])
def test_a_run_distils_several_choices(module, teacher, loss, tmp_path, monkeypatch):
    """Of logits, of Q-values and of the positions alone; the student is read again with both actions, and plays."""
    monkeypatch.chdir(tmp_path)
    outputs_of = [] if teacher == "positions" else ["distill.teacher.outputs=logits"]
    arguments = [
        *("--task", "Dials-v0", "--teacher_checkpoint", f"dials_of_a_test:{teacher}", "--num_envs", "8"),
        *("--n_epochs", "8", "--num_episodes", "32", "--epoch_teacher_forcing", "2", "--learning_rate", "1e-2"),
        *("--num_eval_episodes", "8", "distill.final_eval_episodes=32", "distill.student.hidden_dims=[32,32]"),
        *("distill.collection.epsilon=0.05", f"loss={loss}", "--device", "cpu", "distill.optimizer.update_ratio=4"),
        *outputs_of,
    ]
    assert distillation.main(arguments) == 0
    [run] = (tmp_path / "logs" / "distillation").glob("*/*")
    summary = json.loads((run / "summary.json").read_text())
    assert summary["teacher_return"] == 40.0 and summary["normalized_score"] >= 0.95
    student = TeacherPolicyWrapper(run / "best_student.pt")
    assert student.num_choices == [3, 2] and student.num_actions == 2
    obs = torch.rand(500, 2, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    assert (student.act(obs) == positions(obs)).float().mean() > 0.93


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"loss": LossCfg("kl", sample_weights="action_gap")}, "distill.loss.sample_weights=action_gap is for one"),
        ({"loss": LossCfg("kl", auxiliary={"attention": 0.1})}, "loss 'attention' is for one discrete action"),
        ({"augment": "dials_of_a_test:dials"}, "distill.augment=dials_of_a_test:dials is for one discrete action"),
    ],
)
def test_what_is_of_one_action_is_refused(changed, words):
    """One line that says what to leave out."""
    learner = Learner(StudentPolicy(2, 2, num_choices=[3, 2]), DistillationCfg(**{"loss": LossCfg("kl"), **changed}), 1)
    output = PolicyOutput(torch.zeros(1, 2), logits=torch.zeros(1, 5))
    with pytest.raises(UserError, match=words):
        learner.prepare(learner.student.step(torch.zeros(1, 2))[0], output)


@pytest.mark.parametrize("num_choices", [[3, 2, 2], [3], 5])
def test_a_student_of_other_choices_than_the_tasks_actions_is_refused(num_choices):
    """Two actions need two numbers of choices."""
    with pytest.raises(UserError, match="one action for each number"):
        StudentPolicy(2, 2, num_choices=num_choices)


def test_stable_baselines3_with_several_choices_is_read(tmp_path):
    """PPO on MultiDiscrete: the same best choices and logits as its own ``predict``."""
    library = pytest.importorskip("stable_baselines3")
    model = library.PPO("MlpPolicy", Dials(), n_steps=8, batch_size=8, policy_kwargs={"net_arch": [16]}, seed=3)
    model.save(tmp_path / "model.zip")
    teacher = TeacherPolicyWrapper(tmp_path / "model.zip")
    obs = np.random.default_rng(0).uniform(-1.0, 1.0, (50, 2)).astype(np.float32)
    assert teacher.num_choices == [3, 2]
    expected = model.predict(obs, deterministic=True)[0]
    assert np.array_equal(teacher.act(torch.from_numpy(obs)).numpy(), expected)
    logits = torch.cat([part.logits for part in model.policy.get_distribution(torch.from_numpy(obs)).distribution], -1)
    found = teacher.step(torch.from_numpy(obs), None)[0].logits
    assert found is not None
    parts = zip(found.split(SIZES, -1), logits.split(SIZES, -1), strict=True)
    assert all(torch.allclose(one.softmax(-1), other.softmax(-1), atol=1e-6) for one, other in parts)
