"""The learner: batches from the dataset, one loss, one optimiser step each."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import ALONE, Ranks
from foundation.core.errors import UserError, suggest
from foundation.core.memory import refuse_beyond_memory
from foundation.dataset.dataset import Batch, DistillationDataset
from foundation.learning.image_augmentation import ImageAugmentation
from foundation.learning.losses import LossParams
from foundation.learning.objective import Objective, RunFacts
from foundation.learning.optimizers import FUSED, OPTIMIZERS
from foundation.learning.precision import Precision, compiled
from foundation.learning.rounded_weights import RoundedWeights
from foundation.learning.schedules import value_at
from foundation.policies.output import PolicyOutput
from foundation.students.base import Student

logger = logging.getLogger(__name__)

DEFAULT_TRANSITIONS = 256
FEWEST_SEQUENCES = 8
"""Size of a batch where ``batch_size`` is not given: transitions, or as many sequences as hold them, at least 8."""
LONG_AVERAGE = 10**6
"""Updates after which an average's decay is ``ema_decay``."""


@dataclass
class LearningStats:
    """Result of an epoch of learning."""

    mean_loss: float
    num_updates: int
    learning_rate: float
    terms: dict[str, float] = field(default_factory=dict)
    """Mean of each loss term, unweighted."""
    unseen: dict[str, float] = field(default_factory=dict)
    """Mean of each loss term on the epoch's transitions before they were learned from, where that was measured."""


class Learner:
    """Fits a student by minibatch gradient descent.

    Args:
        student: The module to fit; its ``normalizer`` is fitted by :meth:`fit_normalizer`.
        cfg: Loss, optimiser, batch size and shuffling.
        sequence_length: 1 learns from single transitions, more from sequences.
        ranks: The processes that fit the same student, each to transitions of its own.
    """

    def __init__(self, student: Student, cfg: DistillationCfg, sequence_length: int = 1, ranks: Ranks = ALONE):
        self.student = student
        self.cfg = cfg
        self.sequence_length = sequence_length
        self.ranks = ranks
        self._check_batch()
        self.objective = Objective(student, cfg, sequence_length, ranks)
        self.optimizer = _make_optimizer(student, cfg)
        device = next(student.parameters()).device
        self.augmentation = ImageAugmentation.of(cfg.augment_images, student, cfg.seed, device)
        self._nothing_to_watch = False
        self._first_watch = True
        self.average = copy.deepcopy(student).requires_grad_(False) if cfg.optimizer.ema_decay else None
        # Listed once: to walk a module's tree in every update costs as much as a layer of a small student.
        self._averaged = [] if self.average is None else list(self.average.parameters())
        self._current = list(student.parameters())
        self._num_averaged = 0
        self.rounded: list[RoundedWeights] = []
        """Float weights of :attr:`policies` in the epochs of ``optimizer.int8_epochs``; before them none."""
        self.precision = Precision(cfg.optimizer.precision, next(student.parameters()).device, ranks)
        self.losses = compiled(self._losses, student, ranks) if cfg.optimizer.compile else self._losses

    @property
    def batch_size(self) -> int:
        """Transitions, or sequences, in a batch."""
        return self.cfg.batch_size or max(DEFAULT_TRANSITIONS // self.sequence_length, FEWEST_SEQUENCES)

    def _check_batch(self) -> None:
        """Refuse a minibatch that no memory holds: indices, columns, and activations with their gradients."""
        student = self.student
        # A rough lower bound is enough: the mistake that it catches, a batch of 10**9, is off by orders of magnitude.
        numbers = student.num_obs + 2 * student.num_actions + 2 * sum(student.hidden_dims)
        rows = self.batch_size * self.sequence_length
        device = next(student.parameters()).device
        refuse_beyond_memory(rows * (8 + 4 * numbers), device, f"--batch_size {self.batch_size}", "give a smaller one")

    def _check_draws(self, num_updates: int, device: torch.device) -> None:
        """Refuse an epoch whose batches, which are drawn before its first update, no memory holds."""
        key = "update_ratio" if self.cfg.optimizer.updates_per_epoch is None else "updates_per_epoch"
        what = f"{num_updates} updates in an epoch (distill.optimizer.{key})"
        refuse_beyond_memory(8 * num_updates * self.batch_size, device, what, "give fewer")

    @property
    def policies(self) -> list[Student]:
        """The student and, where ``optimizer.ema_decay`` is set, its average."""
        return [self.student] if self.average is None else [self.student, self.average]

    @property
    def policy(self) -> Student:
        """The student to evaluate and to save: the averaged one where ``optimizer.ema_decay`` is set."""
        return self.average if self.average is not None else self.student

    def prepare(self, student: PolicyOutput, teacher: PolicyOutput, facts: RunFacts | None = None) -> None:
        """Prepare the objective (:meth:`Objective.prepare`), and learn the adapters that it has made."""
        before = self.objective.learned_modules
        self.objective.prepare(student, teacher, facts)
        for module in self.objective.learned_modules:
            if module not in before:
                self.optimizer.add_param_group({"params": list(module.parameters())})
        self.ranks.share_modules([*self.policies, *self.objective.learned_modules])

    def fit_normalizer(self, obs: torch.Tensor) -> None:
        """Take more observations into the student's normaliser. Shape: (..., num_obs), or without images."""
        self.fit_normalizer_to([obs])

    @torch.no_grad()
    def fit_normalizer_to(self, parts: Iterable[torch.Tensor]) -> None:
        """Take observations of all processes into the student's normaliser, which stays the same in all of them.

        Args:
            parts: This process's. Shape of each: (..., num_obs), or without images.
        """
        normalizer = self.student.normalizer
        if not normalizer.mean.numel():  # a student that reads images alone
            return
        own = [normalizer.moments(self.student.normalizer_inputs(obs)) for obs in parts]
        for moments in self.ranks.gather(own):
            for number, mean, var in moments:
                normalizer.merge(number, mean.to(normalizer.mean.device), var.to(normalizer.var.device))
        # The averaged student reads by the same moments: the same weights on other inputs are another policy.
        if self.average is not None:
            self.average.normalizer.load_state_dict(self.student.normalizer.state_dict())

    def watch_normalizer(self, dataset: DistillationDataset, chunks: list[int]) -> None:
        """Look after observations that hardly varied while the normaliser was fitted; call it from then on.

        Args:
            dataset: Holds the observations.
            chunks: Places of the chunks that are new.
        """
        if self._nothing_to_watch:
            return
        normalizer = self.student.normalizer
        if self._first_watch:
            self._first_watch = False
            unvaried = normalizer.unvaried.nonzero().flatten().tolist()
            # One host sync now, so that the usual case, in which every observation varied, never has another.
            self._nothing_to_watch = not bool((normalizer.unvaried | (normalizer.var < normalizer.eps**2)).any())
            if unvaried:
                logger.warning(
                    "The student's observation column(s) %s did not vary in the data that its normaliser was fitted "
                    "on: they are not divided by their standard deviation.",
                    shorten(unvaried),
                )
        squares = self.ranks.gather([normalizer.watched_squares(dataset.chunk_obs(chunk)) for chunk in chunks])
        device = normalizer.var.device
        rescaled = {column for own in squares for entry in own for column in normalizer.rescale(entry.to(device))}
        if not rescaled:
            return
        logger.warning(
            "The student's observation column(s) %s hardly varied in the data that its normaliser was fitted on, and "
            "do now: their standard deviation was fitted again.",
            shorten(sorted(rescaled)),
        )
        if self.average is not None:
            self.average.normalizer.load_state_dict(normalizer.state_dict())

    def num_updates(self, new_transitions: int) -> int:
        """Return the updates of an epoch: in proportion to the new transitions, or as given."""
        if self.cfg.optimizer.updates_per_epoch is not None:
            return self.cfg.optimizer.updates_per_epoch
        # In proportion to the new data and not to all of it, so that an epoch costs the same however large the dataset.
        samples = new_transitions / self.sequence_length
        return max(1, math.ceil(math.ceil(samples / self.batch_size) * self.cfg.optimizer.update_ratio))

    def learn(
        self, dataset: DistillationDataset, new_transitions: int, epoch: int, poll: Callable[[], None] | None = None
    ) -> LearningStats:
        """Learn for one epoch.

        Args:
            dataset: Where batches are drawn from.
            new_transitions: Transitions that this epoch collected.
            epoch: Counted from 0, for the schedules.
            poll: Called once per update; may raise to abandon the epoch.

        Returns:
            Mean loss and what was done.

        Raises:
            UserError: If the loss is NaN or infinite; the student's weights are then not to be kept.
        """
        updates = self.updates(dataset, new_transitions, epoch, poll)
        while True:
            try:
                next(updates)
            except StopIteration as end:
                return end.value

    def updates(
        self, dataset: DistillationDataset, new_transitions: int, epoch: int, poll: Callable[[], None] | None = None
    ) -> Generator[None, None, LearningStats]:
        """Learn for one epoch as :meth:`learn` does, and stop after each update: another learner's may come between."""
        rate = self._set_learning_rate(epoch)
        if epoch >= self.cfg.n_epochs - self.cfg.optimizer.int8_epochs and not self.rounded:
            self._round_weights()
        params = self.objective.loss_params(epoch)
        weights = self.objective.term_weights(epoch)
        draw = dataset.flat_minibatches if self.sequence_length == 1 else dataset.sequence_minibatches
        num_updates = self.num_updates(new_transitions)
        self._check_draws(num_updates, torch.device(dataset.device))
        dataset.draw_newest(self.cfg.dataset.newest_epochs)
        if self.augmentation is not None:
            self.augmentation.begin_epoch(epoch, self.ranks.rank)
        # Losses are summed on the device: reading each one would make the host wait for every update.
        totals = torch.zeros(len(self.objective.terms), device=next(self.student.parameters()).device)
        self.objective.fit_standardiser(dataset, epoch, self.policies)
        self.student.train()
        with self.objective.standardised(self.policies):
            for batch in draw(self.batch_size, num_updates, self.cfg.shuffle):
                totals += self._update(self._augmented(batch), params, weights)
                if poll is not None:
                    poll()
                yield
        self.student.eval()
        means = (self.ranks.mean_(totals) / num_updates).tolist()
        terms = {term.name: mean for term, mean in zip(self.objective.terms, means, strict=True)}
        bad = [(name, mean) for name, mean in terms.items() if not math.isfinite(mean)]
        if bad:
            raise UserError(
                f"The training loss '{bad[0][0]}' became {bad[0][1]} in epoch {epoch + 1}: lower --learning_rate "
                f"(now {rate:g}) or set distill.optimizer.max_grad_norm=1. The last good checkpoint is kept."
            )
        # A finite loss can have an infinite gradient (a square root at 0), which shows in the weights alone.
        finite = torch.stack([torch.isfinite(parameter).all() for parameter in self.student.parameters()])
        if not bool(finite.all()):
            raise UserError(
                f"The gradient of the training loss became NaN or infinite in epoch {epoch + 1}, and so did the "
                f"student: check loss '{self.objective.terms[0].name}' or lower --learning_rate (now {rate:g}). "
                "The last good checkpoint is kept."
            )
        total = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
        self.objective.check_scale(means, weights, epoch)
        return LearningStats(total, num_updates, rate, terms)

    def _augmented(self, batch: Batch) -> Batch:
        """Return a batch as it is learned from: with its mirror image beside it, and other images."""
        if self.objective.mirror is not None:
            batch = self.objective.mirror.doubled(batch)
        return batch if self.augmentation is None else self.augmentation(batch)

    def _update(self, batch: Batch, params: list[LossParams], weights: list[float]) -> torch.Tensor:
        values = self.losses(batch, params)
        weighted = [weight * value for value, weight in zip(values, weights, strict=True)]
        total = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
        self.precision.step(total, self.optimizer, self.student, self.cfg.optimizer.max_grad_norm)
        if self.average is not None:
            self.update_average()
        return torch.stack([value.detach() for value in values])

    def _losses(self, batch: Batch, params: list[LossParams]) -> list[torch.Tensor]:
        """Return each term's mean over the batch, unweighted."""
        with self.precision.autocast():
            output = self.objective.outputs(self.student, batch)
        values = self.objective.per_sample(self.precision.full(output), batch.targets, params)
        weights = self.objective.weights(batch)
        if weights is None:
            return [value.mean() for value in values]
        # By the sum of the weights and not by the number of samples: samples of weight 0 must not shrink the step.
        # So is the mean over all processes: each one's share of the step is that of the weights that it has drawn.
        total = self.ranks.mean_(weights.sum()).clamp_min(1e-8)
        return [(value * weights).sum() / total for value in values]

    @torch.no_grad()
    def _round_weights(self) -> None:
        """Begin to compute with rounded weights, from what was evaluated and saved until now."""
        if self.average is not None:
            for current, averaged in zip(self.student.parameters(), self.average.parameters(), strict=True):
                current.copy_(averaged)
        self._make_rounded()

    def _make_rounded(self) -> None:
        self.rounded = [RoundedWeights(policy) for policy in self.policies]
        self.rounded[0].follow(self.optimizer)

    @torch.no_grad()
    def update_average(self) -> None:
        """Move the averaged weights towards the student's, after a step of the optimiser.

        The decay grows to ``ema_decay`` as (1 + n) / (10 + n) over n updates, as TensorFlow's ExponentialMovingAverage
        has it: weights that nothing was learned in yet are soon forgotten.
        """
        assert self.average is not None
        decay = min(self.cfg.optimizer.ema_decay or 0.0, (1 + self._num_averaged) / (10 + self._num_averaged))
        self._num_averaged += 1
        for averaged, current in zip(self._averaged, self._current, strict=True):
            averaged.lerp_(current, 1.0 - decay)
        if self.rounded:  # matrices are averaged before they are rounded
            self.rounded[1].average(self.rounded[0], decay)

    def _set_learning_rate(self, epoch: int) -> float:
        schedule = self.cfg.optimizer.lr_schedule
        factor = 1.0 if schedule is None else value_at(schedule, epoch, self.cfg.n_epochs)
        rate = self.cfg.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, and the training weights where the saved student is an average."""
        state: dict[str, Any] = {"optimizer_state_dict": self.optimizer.state_dict(), **self.precision.state_dict()}
        state |= self.objective.state_dict()
        if self.average is not None:
            state["training_state_dict"] = self.student.state_dict()
            state["num_averaged"] = self._num_averaged
        if self.rounded:
            state["float_weights"] = [part.weights for part in self.rounded]
        return state

    def load_state_dict(self, model: dict[str, torch.Tensor], state: dict[str, Any]) -> None:
        """Restore student and optimiser.

        Args:
            model: ``model_state_dict`` of the checkpoint.
            state: What :meth:`state_dict` returned.
        """
        self.student.load_state_dict(state.get("training_state_dict", model))
        if self.average is not None:  # of a run that had none, the average begins here
            self.average.load_state_dict(model)
            # Checkpoints of before this count are taken as of long runs.
            self._num_averaged = state.get("num_averaged", LONG_AVERAGE) if "training_state_dict" in state else 0
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.precision.load_state_dict(state)
        self.objective.load_state_dict(state)
        saved = state.get("float_weights", [])
        if len(saved) == len(self.policies):
            self._make_rounded()
            for part, weights in zip(self.rounded, saved, strict=True):
                part.load(weights)


def shorten(columns: list[int], most: int = 12) -> str:
    """List columns, the first ones where there are many."""
    shown = ", ".join(str(column) for column in columns[:most])
    return shown if len(columns) <= most else f"{shown}, ... ({len(columns)} in all)"


def _make_optimizer(student: nn.Module, cfg: DistillationCfg) -> torch.optim.Optimizer:
    name = cfg.optimizer.name
    if name not in OPTIMIZERS:
        raise UserError(f"Unknown distill.optimizer.name '{name}'. {suggest(name, OPTIMIZERS)}")
    parameters = [parameter for parameter in student.parameters() if parameter.requires_grad]
    options: dict[str, Any] = {"lr": cfg.learning_rate, "weight_decay": cfg.optimizer.weight_decay}
    if name in FUSED:
        # One kernel for all parameters: on the CPU the per-parameter loop costs more than the arithmetic.
        options["fused"] = True
    return OPTIMIZERS[name](parameters, **options)
