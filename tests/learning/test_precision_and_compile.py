"""Lower precision, compilation and the number of updates: the same learning, or a clear refusal."""

from __future__ import annotations

import copy
import functools
import logging

import pytest
import torch
from test_learner import filled, same, weights

from foundation.config.distillation_cfg import DistillationCfg, OptimizerCfg
from foundation.core.errors import UserError
from foundation.dataset.dataset import Batch
from foundation.learning import precision as precision_module
from foundation.learning.learner import Learner
from foundation.learning.precision import Precision
from foundation.students import make_student, student_cfg_class

WINDOWS = {"mlp": 1, "gru": 4, "lstm": 4, "history": 4, "tcn": 4}


def learner(name: str = "mlp", **optimizer) -> Learner:
    cfg = DistillationCfg(batch_size=16, learning_rate=1e-2, optimizer=OptimizerCfg(**optimizer))
    torch.manual_seed(0)
    return Learner(make_student(student_cfg_class(name)(name=name), 3, 2), cfg, WINDOWS[name])


def one_batch(name: str) -> Batch:
    dataset = filled(window=WINDOWS[name])
    draw = dataset.flat_minibatches if WINDOWS[name] == 1 else dataset.sequence_minibatches
    return next(iter(draw(16, 1)))


@pytest.mark.parametrize("name", WINDOWS)
def test_bfloat16_is_the_same_loss_to_its_rounding_and_leaves_weights_in_float32(name):
    """On one batch the loss and the gradient agree within 2 %; the products were computed in bfloat16."""
    batch, found = one_batch(name), {}
    for precision in ("float32", "bfloat16"):
        made = learner(name, precision=precision)
        seen = []
        made.student.mean.register_forward_hook(lambda module, args, out, seen=seen: seen.append(out.dtype))
        [loss] = made.losses(batch, made.objective.loss_params(0))
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in made.student.parameters() if p.grad is not None])
        found[precision] = (float(loss.detach()), gradient)
        assert seen == [getattr(torch, precision)] and loss.dtype == torch.float32
        assert all(p.dtype == torch.float32 for p in made.student.parameters())
    (full, exact), (half, rough) = found["float32"], found["bfloat16"]
    assert half == pytest.approx(full, rel=0.02) and half != full
    assert float((rough - exact).norm() / exact.norm()) < 0.02


def test_a_teacher_is_learned_in_bfloat16():
    """The loss falls by an order of magnitude."""
    made, dataset = learner(precision="bfloat16"), filled(20)
    losses = [made.learn(dataset, 640, epoch).mean_loss for epoch in range(8)]
    assert losses[-1] < losses[0] / 10, losses


def test_float16_without_cuda_is_refused():
    """Its gradients are scaled on CUDA only; the line says what to take."""
    with pytest.raises(UserError, match=r"precision=float16 needs a CUDA device, and this is cpu: take bfloat16"):
        learner(precision="float16")


class Scaler:
    """Scales by 1024, as torch's own does on CUDA."""

    def __init__(self) -> None:
        self.calls: list[str] = []

    def scale(self, loss: torch.Tensor) -> torch.Tensor:
        self.calls.append("scale")
        return loss * 1024.0

    def unscale_(self, optimizer: torch.optim.Optimizer) -> None:
        self.calls.append("unscale")
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad /= 1024.0

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        if "unscale" not in self.calls:
            self.unscale_(optimizer)
        optimizer.step()

    def update(self) -> None:
        self.calls.clear()


@pytest.mark.parametrize("norm", [None, 1e-3])
def test_gradients_are_unscaled_before_they_are_clipped(norm):
    """With a scaler the step is that without one: clipped to the same norm, and not to a thousandth of it."""
    dataset, moved = filled(), []
    for scaler in (None, Scaler()):
        made = learner(name="mlp", max_grad_norm=norm)
        made.optimizer = torch.optim.SGD(made.student.parameters(), lr=1.0)
        made.precision.scaler = scaler  # type: ignore[assignment]
        dataset.generator.manual_seed(1)
        made.learn(dataset, 16, 0)
        moved.append(weights(made.student))
    assert all(torch.allclose(one, two, atol=1e-6) for one, two in zip(*(m.values() for m in moved), strict=True))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_restored_learner_goes_on_bit_for_bit_in_either_precision(precision):
    """What is saved is enough, in bfloat16 too."""
    dataset, first, second = filled(), learner(precision=precision), learner(precision=precision)
    first.learn(dataset, 128, 0)
    second.load_state_dict(*copy.deepcopy((first.policy.state_dict(), first.state_dict())))
    draws = dataset.generator.get_state()
    first.learn(dataset, 128, 1)
    dataset.generator.set_state(draws)
    second.learn(dataset, 128, 1)
    assert same(weights(first.student), weights(second.student))


@pytest.mark.slow
def test_a_compiled_learner_is_repeatable_and_goes_on_bit_for_bit(monkeypatch):
    """The same seed gives the same bits twice; what was saved after an epoch goes on as if nothing had stopped it."""
    monkeypatch.setattr(precision_module.torch, "compile", functools.partial(torch.compile, backend="aot_eager"))
    whole, again, resumed = (learner(compile=True) for _ in range(3))
    for one in (whole, again):
        dataset = filled()
        for epoch in range(2):
            one.learn(dataset, 128, epoch)
    assert same(weights(whole.student), weights(again.student))
    dataset, stopped = filled(), learner(compile=True)
    stopped.learn(dataset, 128, 0)
    resumed.load_state_dict(*copy.deepcopy((stopped.policy.state_dict(), stopped.state_dict())))
    resumed.learn(dataset, 128, 1)
    assert same(weights(whole.student), weights(resumed.student))


def test_the_scale_of_the_gradients_is_saved():
    """A run that goes on in float16 goes on with its scale."""
    one, two = (Precision("float32", torch.device("cpu")) for _ in range(2))
    assert one.state_dict() == {}
    one.scaler, two.scaler = (torch.amp.GradScaler("cpu", init_scale=scale) for scale in (512.0, 8.0))
    two.load_state_dict(one.state_dict())
    assert two.scaler.state_dict()["scale"] == 512.0


@pytest.mark.parametrize("rows", [1, 10_000])
def test_updates_can_be_given_as_a_number(rows):
    """``optimizer.updates_per_epoch`` stands whatever was collected, and that many are made."""
    made = learner(updates_per_epoch=7)
    assert made.num_updates(rows) == 7
    polls: list[int] = []
    assert made.learn(filled(), rows, 0, lambda: polls.append(1)).num_updates == len(polls) == 7


@pytest.mark.slow
@pytest.mark.parametrize(("name", "backend"), [("mlp", "inductor"), ("gru", "aot_eager"), ("tcn", "aot_eager")])
def test_compiled_learning_equals_eager_learning(name, backend, monkeypatch, caplog):
    """The same loss and the same weights after eight updates, to 1e-6; without a warning."""
    monkeypatch.setattr(precision_module.torch, "compile", functools.partial(torch.compile, backend=backend))
    found = []
    for compile_it in (False, True):
        made, dataset = learner(name, compile=compile_it), filled(window=WINDOWS[name])
        found.append((made.learn(dataset, 64 * WINDOWS[name], 0).mean_loss, weights(made.student)))
    assert found[0][0] == pytest.approx(found[1][0], abs=1e-6)
    for one, two in zip(found[0][1].values(), found[1][1].values(), strict=True):
        assert torch.allclose(one, two, atol=1e-6)
    assert not [record for record in caplog.records if record.name == precision_module.__name__]


def test_without_a_compiler_one_line_warns_and_learning_goes_on_as_it_is(monkeypatch, caplog):
    """Whatever the compiler raises, the result is the eager one, bit for bit, and the warning comes once."""

    def broken(function, **options):
        def fail(*args):
            raise RuntimeError("no C++ compiler found\nand a long trace")

        return fail

    monkeypatch.setattr(precision_module.torch, "compile", broken)
    found = []
    with caplog.at_level(logging.WARNING):
        for compile_it in (False, True):
            made = learner(compile=compile_it)
            made.learn(filled(), 64, 0)
            made.learn(filled(), 64, 1)
            found.append(weights(made.student))
    assert same(*found)
    [record] = [record for record in caplog.records if record.name == precision_module.__name__]
    assert "no C++ compiler found" in record.getMessage() and "\n" not in record.getMessage()
