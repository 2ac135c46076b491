"""The learner, with data whose teacher is known."""

from __future__ import annotations

import copy

import pytest
import torch
from linear_teacher import GAIN, filled

from foundation.config.distillation_cfg import DistillationCfg, LossCfg, OptimizerCfg, ScheduleCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import Batch, BufferSpec, DistillationDataset
from foundation.learning.learner import Learner
from foundation.learning.objective import forward
from foundation.policies.output import PolicyOutput
from foundation.students import StudentPolicy, make_student, student_cfg_class
from foundation.students.mlp import MLPStudentCfg


def config(update_ratio: float = 1.0, **options) -> DistillationCfg:
    cfg = DistillationCfg(**{"batch_size": 16, "learning_rate": 1e-2, "n_epochs": 10, **options})
    cfg.optimizer.update_ratio = update_ratio
    return cfg


def student(seed: int = 0, **options) -> StudentPolicy:
    torch.manual_seed(seed)
    return StudentPolicy(3, 2, hidden_dims=(16,), **options)


def weights(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("rows", "batch", "sequence", "ratio", "updates"),
    [
        (1000, 256, 1, 1.0, 4),
        (1024, 256, 1, 1.0, 4),
        (1, 256, 1, 1.0, 1),
        (1000, 100, 1, 2.5, 25),
        (1000, 4, 50, 1.0, 5),
    ],
)
def test_updates_are_in_proportion_to_the_new_rows(rows, batch, sequence, ratio, updates):
    """ceil(new rows / batch size) * update_ratio, sequences counted as sequences."""
    cfg = config(batch_size=batch, update_ratio=ratio)
    learner = Learner(student(), cfg, sequence)
    assert learner.num_updates(rows) == updates


@pytest.mark.parametrize("key", ["updates_per_epoch", "update_ratio"])
def test_batches_that_no_memory_holds_are_refused_before_they_are_drawn(key):
    """10**13 updates of 16 rows are an index of 1.3 PB: one line with the key, and not an end by the system."""
    cfg = config()
    setattr(cfg.optimizer, key, 10**13)
    with pytest.raises(UserError, match=rf"0 updates in an epoch \(distill.optimizer.{key}\) would take at least"):
        Learner(student(), cfg, 1).learn(filled(4), 256, 0)


def test_the_cost_of_an_epoch_does_not_grow_with_the_dataset():
    """With ten times the rows stored, as many updates are made for as many new rows."""
    for chunks in (4, 40):
        polls = []
        stats = Learner(student(), config(), 1).learn(filled(chunks), 256, 0, lambda polls=polls: polls.append(1))
        assert stats.num_updates == len(polls) == 16


def test_the_student_changes_and_the_data_does_not():
    """Learning moves the student's parameters, leaves its normaliser alone, and never writes to the dataset."""
    dataset = filled()
    learner = Learner(student(), config(), 1)
    before, rows = weights(learner.student), dataset.rows[:4].clone()
    learner.learn(dataset, 256, 0)
    after = weights(learner.student)
    assert torch.equal(dataset.rows[:4], rows)
    for name in before:
        assert torch.equal(before[name], after[name]) == name.startswith("normalizer")


def test_a_linear_teacher_is_learned():
    """The loss falls by two orders of magnitude, and what is reported is the loss."""
    dataset, learner = filled(chunks=20), Learner(student(), config(), 1)
    losses = [learner.learn(dataset, 1280, epoch).mean_loss for epoch in range(10)]
    assert losses[-1] < losses[0] / 100
    [batch] = dataset.flat_minibatches(len(dataset), 1)
    error = (learner.student(batch.obs) - batch.targets.mean).square().mean().item()
    assert losses[-1] == pytest.approx(error, rel=0.5)


def test_one_step_of_gradient_descent_by_hand():
    """SGD on mse: w' = w - lr * dL/dw, with the gradient from autograd on the same batch."""
    dataset = filled(chunks=1)
    cfg = config(batch_size=64, learning_rate=0.1, shuffle=False, optimizer=OptimizerCfg(name="sgd"))
    learner, reference = Learner(student(), cfg, 1), student()
    obs = dataset.rows[0, ..., :3].reshape(-1, 3)
    (reference(obs) - obs @ GAIN).square().mean().backward()
    learner.learn(dataset, 64, 0)
    for moved, parameter in zip(learner.student.parameters(), reference.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(moved, parameter - 0.1 * parameter.grad, atol=1e-7)


def test_auxiliary_terms_are_added_with_their_weights():
    """The total is main + weight * auxiliary, the value in units of the teacher's spread; terms are unweighted."""
    cfg = config(loss=LossCfg("mse", auxiliary={"value": 0.25}), optimizer=OptimizerCfg(name="sgd"), learning_rate=0.0)
    dataset = filled(chunks=1, value=True)
    learner = Learner(student(value_head=True), cfg, 1)
    stats = learner.learn(dataset, 64, 0)
    output = learner.student.step(dataset.rows[0, ..., :3].reshape(-1, 3))[0]
    obs = dataset.rows[0, ..., :3].reshape(-1, 3)
    mse = (output.mean - obs @ GAIN).square().mean().item()
    spread = obs.sum(-1).std(correction=0)
    value = ((output.value - obs.sum(-1, keepdim=True)) / spread).square().mean().item()
    assert stats.terms == pytest.approx({"mse": mse, "value": value}, rel=1e-5)
    assert stats.mean_loss == pytest.approx(mse + 0.25 * value, rel=1e-5)
    assert learner.objective.target_fields() == {"mean", "value", "logits"}


@pytest.mark.parametrize(
    ("loss", "who", "message"),
    [
        ("kl", "student", r"needs the student's std.*distill\.student\.stochastic=true.*or use loss=mse"),
        ("kl", "teacher", r"needs the teacher's std.*choose a teacher that has one"),
        ("value", "student", r"distill\.student\.value_head=true, or leave distill\.loss\.auxiliary\.value out"),
    ],
)
def test_a_loss_without_what_it_reads_says_what_to_use(loss, who, message):
    """A deterministic policy has no KL: the error names the loss, what is missing and the way out."""
    whole = PolicyOutput(torch.zeros(1, 2), torch.ones(1, 2), torch.zeros(1, 1))
    bare = PolicyOutput(torch.zeros(1, 2))
    chosen = LossCfg("mse", auxiliary={"value": 0.5}) if loss == "value" else LossCfg(loss)
    learner = Learner(student(), config(loss=chosen), 1)
    with pytest.raises(UserError, match=message):
        learner.prepare(bare if who == "student" else whole, bare if who == "teacher" else whole)
    learner.prepare(whole, whole)


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_q_network_without_a_value_cannot_teach_one(who):
    """Scores of choices take the place of a standard deviation, and of nothing else."""
    choices = PolicyOutput(torch.zeros(1, 1), logits=torch.zeros(1, 3))
    whole = choices._replace(value=torch.zeros(1, 1))
    chooser = StudentPolicy(3, 1, hidden_dims=(16,), num_choices=3, value_head=True)
    learner = Learner(chooser, config(loss=LossCfg("kl", auxiliary={"value": 0.5})), 1)
    with pytest.raises(UserError, match=rf"Loss 'value' needs the {who}'s value.*auxiliary\.value out"):
        learner.prepare(choices if who == "student" else whole, choices if who == "teacher" else whole)
    learner.prepare(whole, whole)


def test_a_nan_loss_is_an_error_that_names_the_learning_rate():
    """What became NaN stops the run."""
    dataset = filled()
    cfg = config(learning_rate=1e30, optimizer=OptimizerCfg(name="sgd"))
    with pytest.raises(
        UserError, match=r"training loss 'mse' became (nan|inf) in epoch 4.*--learning_rate \(now 1e\+30\)"
    ):
        Learner(student(), cfg, 1).learn(dataset, 512, 3)


def test_the_learning_rate_follows_its_schedule():
    """Each epoch's rate is learning_rate times the schedule's value."""
    cfg = config(optimizer=OptimizerCfg(lr_schedule=ScheduleCfg("linear", 1.0, 0.0)), n_epochs=5)
    learner, dataset = Learner(student(), cfg, 1), filled()
    rates = [learner.learn(dataset, 16, epoch).learning_rate for epoch in range(5)]
    assert rates == pytest.approx([1e-2, 7.5e-3, 5e-3, 2.5e-3, 0.0])
    before = weights(learner.student)
    learner.learn(dataset, 64, 4)
    assert same(before, weights(learner.student)), "at rate 0 nothing moves"


def test_gradients_are_clipped_to_the_norm_asked_for():
    """One SGD step with rate 1 moves all parameters together by at most the norm."""
    cfg = config(learning_rate=1.0, optimizer=OptimizerCfg(name="sgd", max_grad_norm=1e-3))
    learner = Learner(student(), cfg, 1)
    before = [parameter.detach().clone() for parameter in learner.student.parameters()]
    learner.learn(filled(), 16, 0)
    moved = torch.cat([(a.detach() - b).flatten() for a, b in zip(learner.student.parameters(), before, strict=True)])
    assert float(moved.norm()) == pytest.approx(1e-3, rel=1e-3)


def test_the_average_follows_the_student_exponentially():
    """After each update: average = decay * average + (1 - decay) * student, by hand over four updates.

    The decay of update n is (1 + n) / (10 + n) until that is ``ema_decay``.
    """
    cfg = config(optimizer=OptimizerCfg(ema_decay=0.2))
    learner, dataset = Learner(student(), cfg, 1), filled()
    expected = [parameter.detach().clone() for parameter in learner.student.parameters()]

    decays = iter([1 / 10, 2 / 11, 0.2, 0.2])

    def follow() -> None:
        decay = next(decays)
        for average, parameter in zip(expected, learner.student.parameters(), strict=True):
            average.mul_(decay).add_((1.0 - decay) * parameter.detach())

    learner.learn(dataset, 64, 0, follow)
    assert next(decays, None) is None
    assert learner.policy is not learner.student
    for average, by_hand in zip(learner.policy.parameters(), expected, strict=True):
        assert torch.allclose(average, by_hand, atol=1e-6)


def test_the_average_of_a_checkpoint_without_a_count_goes_on_at_its_decay():
    """As one of before the count was kept: the average moves by ``1 - ema_decay`` from the first update on."""
    learner, other = (Learner(student(), config(optimizer=OptimizerCfg(ema_decay=0.9)), 1) for _ in range(2))
    state = learner.state_dict()
    del state["num_averaged"]
    with torch.no_grad():
        state["training_state_dict"] = {name: value + 1.0 for name, value in learner.student.state_dict().items()}
    model = copy.deepcopy(learner.policy.state_dict())
    other.load_state_dict(model, state)
    other.update_average()
    for name, parameter in other.policy.named_parameters():
        torch.testing.assert_close(parameter, model[name] + 0.1)


def test_an_average_that_begins_with_the_resumed_run_forgets_the_first_weights_soon():
    """A run without one was saved: the first update moves the new average by nine tenths."""
    without = Learner(student(), config(), 1)
    learner = Learner(student(), config(optimizer=OptimizerCfg(ema_decay=0.999)), 1)
    model = copy.deepcopy(without.policy.state_dict())
    learner.load_state_dict(model, without.state_dict())
    with torch.no_grad():
        for parameter in learner.student.parameters():
            parameter.add_(1.0)
    learner.update_average()
    for name, parameter in learner.policy.named_parameters():
        torch.testing.assert_close(parameter, model[name] + 0.9)


@pytest.mark.parametrize(("epochs", "kept"), [(None, {0, 1, 2, 3}), (1, {2, 3}), (2, {1, 2, 3}), (9, {0, 1, 2, 3})])
def test_only_the_newest_epochs_are_learned_from_where_that_is_asked_for(epochs, kept):
    """Of an epoch of two chunks and two of one before it: the chunks whose observations the batches had.

    How many transitions count as new, which the number of updates follows, has nothing to do with it.
    """
    cfg = config(batch_size=4)
    cfg.dataset.newest_epochs = epochs
    learner, dataset = Learner(student(), cfg, 1), filled(chunks=4, begins=[0, 1, 2])
    rows = [dataset.chunk_obs(chunk) for chunk in range(4)]
    for new_transitions in (8, 256):
        seen: set[int] = set()
        draw = type(dataset).flat_minibatches

        def watched(*args, seen=seen, draw=draw):
            for batch in draw(dataset, *args):
                seen.update(number for number, own in enumerate(rows) if bool(torch.isin(batch.obs, own).any()))
                yield batch

        dataset.flat_minibatches = watched
        learner.learn(dataset, new_transitions, 0)
        assert seen <= kept and (new_transitions == 8 or seen == kept)


def test_the_normaliser_is_fitted_over_all_rows_and_shared_with_the_average():
    """Mean and variance of everything seen, however it was divided."""
    learner = Learner(student(), config(optimizer=OptimizerCfg(ema_decay=0.9)), 1)
    data = torch.randn(64, 5, 3, generator=torch.Generator().manual_seed(2)) * 3.0 + 1.0
    for part in data.split([10, 50, 4]):
        learner.fit_normalizer(part)
    flat = data.reshape(-1, 3)
    for policy in (learner.student, learner.policy):
        assert torch.allclose(policy.normalizer.mean, flat.mean(0), atol=1e-5)
        assert torch.allclose(policy.normalizer.var, flat.var(0, correction=0), rtol=1e-4)


@pytest.mark.parametrize("ema", [None, 0.9])
@pytest.mark.parametrize("name", ["mlp", "gru"])
def test_a_restored_learner_goes_on_bit_for_bit(ema, name):
    """Weights, optimiser and average put back make the updates that the first learner made."""
    window = 4 if name == "gru" else 1
    cfg = config(batch_size=4, optimizer=OptimizerCfg(ema_decay=ema))

    def fresh(seed: int) -> Learner:
        torch.manual_seed(seed)
        options = student_cfg_class(name)(name=name)
        return Learner(make_student(options, 3, 2), cfg, window)

    dataset = filled(window=window)
    first = fresh(0)
    first.learn(dataset, 128, 0)
    model, state = copy.deepcopy((first.policy.state_dict(), first.state_dict()))
    draws = dataset.generator.get_state()
    first.learn(dataset, 128, 1)
    dataset.generator.set_state(draws)
    second = fresh(1)
    second.load_state_dict(model, state)
    second.learn(dataset, 128, 1)
    assert same(weights(first.student), weights(second.student))
    assert same(weights(first.policy), weights(second.policy))


def test_burn_in_steps_carry_no_loss_unless_the_episode_began_inside():
    """Of a window of 5 with 2 to warm up: steps 0 and 1 do not count, but all do from an episode's start on."""
    cfg = config()
    cfg.dataset.burn_in = 2
    learner = Learner(make_student(student_cfg_class("gru")(name="gru"), 3, 2), cfg, 5)
    resets = torch.tensor([[0, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0], [0, 0, 0]], dtype=torch.bool)
    batch = Batch(torch.zeros(5, 3, 3), PolicyOutput(torch.zeros(5, 3, 2)), None, resets)
    counted = learner.objective.weights(batch)
    assert counted is not None
    assert counted.T.tolist() == [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1], [0, 1, 1, 1, 1]]


def test_the_loss_of_a_sequence_restarts_its_memory_at_an_episodes_start():
    """What came before an episode's start has no influence on what comes after it."""
    torch.manual_seed(0)
    policy = make_student(student_cfg_class("gru")(name="gru"), 3, 2)
    obs = torch.randn(4, 2, 3)
    obs[2:, 1] = obs[2:, 0]
    resets = torch.tensor([[True] * 2, [False] * 2, [True] * 2, [False] * 2])
    mean = forward(policy, Batch(obs, PolicyOutput(torch.zeros(4, 2, 2)), None, resets)).mean
    assert not torch.equal(mean[:2, 0], mean[:2, 1])
    assert torch.equal(mean[2:, 0], mean[2:, 1])


def test_an_unknown_optimiser_is_named():
    """A misspelt optimiser is answered with the nearest."""
    with pytest.raises(UserError, match=r"'adamm'\. Did you mean"):
        Learner(student(), config(optimizer=OptimizerCfg(name="adamm")), 1)


def test_a_feature_loss_learns_through_an_adapter():
    """Sizes of the hidden layers may differ: a linear adapter is between, learned with the student."""
    dataset = DistillationDataset(BufferSpec(3, 8, 1000, {"mean": 2, "features": 5}, chunk_steps=8))
    generator = torch.Generator().manual_seed(0)
    dataset.begin_chunk()
    for step in range(8):
        obs = torch.randn(8, 3, generator=generator)
        features = torch.cat([obs, obs[:, :2]], dim=-1)
        dataset.write(step, obs, PolicyOutput(obs @ GAIN, features=features), torch.zeros(8, dtype=torch.bool))
    dataset.commit_chunk()
    learner = Learner(student(), config(loss=LossCfg("mse", auxiliary={"feature": 1.0})), 1)
    learner.prepare(
        learner.student.step(torch.zeros(1, 3))[0], PolicyOutput(torch.zeros(1, 2), features=torch.zeros(1, 5))
    )
    assert learner.objective.adapter is not None
    terms = [learner.learn(dataset, 64, 0).terms["feature"] for _ in range(100)]
    assert terms[-1] < terms[0] / 5


def test_stochastic_student_is_a_config_away():
    """``kl`` pulls a learned std towards the teacher's."""
    torch.manual_seed(0)
    policy = make_student(MLPStudentCfg(stochastic=True, hidden_dims=[16]), 3, 2)
    learner, dataset = Learner(policy, config(loss=LossCfg("kl"), learning_rate=3e-2), 1), filled(20)
    for epoch in range(10):
        learner.learn(dataset, 1280, epoch)
    std = policy.step(torch.zeros(4, 3))[0].std
    assert std is not None
    assert torch.allclose(std, torch.full((4, 2), 0.3), atol=0.06)


@pytest.mark.parametrize(("length", "batch"), [(1, 256), (16, 16), (50, 8), (500, 8)])
def test_a_minibatch_holds_256_rows_by_default(length, batch):
    """Without a batch size a minibatch has 256 rows, in sequences as many as hold them, and never fewer than 8."""
    cfg = config(batch_size=None)
    learner = Learner(student(), cfg, length)
    assert learner.batch_size == batch
    assert learner.num_updates(10 * batch * length) == 10
