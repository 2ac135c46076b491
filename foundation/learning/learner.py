"""The learner: batches from the dataset, one loss, one optimiser step each."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.errors import UserError, suggest
from foundation.core.memory import refuse_beyond_memory
from foundation.dataset.dataset import Batch, DistillationDataset
from foundation.learning.adapters import LayerAdapters, make_adapter, predictors
from foundation.learning.losses import LossParams, check_choices
from foundation.learning.mirror import Mirror
from foundation.learning.no_effect import without_effect
from foundation.learning.precision import Precision, compiled
from foundation.learning.saliency import action_saliency
from foundation.learning.sample_weights import check_sample_weights, sample_weights
from foundation.learning.schedules import value_at
from foundation.learning.standardise import Predictor, Standardiser
from foundation.learning.terms import Term, make_terms
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import as_float
from foundation.students.base import Student

logger = logging.getLogger(__name__)

OPTIMIZERS = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "sgd": torch.optim.SGD,
}
FUSED = ("adam", "adamw", "sgd")

DEFAULT_TRANSITIONS = 256
FEWEST_SEQUENCES = 8
"""Size of a batch where ``batch_size`` is not given: transitions, or as many sequences as hold them, at least 8."""
MAX_RATIO = 100.0
"""Ratio of a loss term to all others together from which there is a warning."""


@dataclass(frozen=True)
class RunFacts:
    """What is known of a run's teacher and observations beside the outputs."""

    groups: Mapping[str, int] | None = None
    """Sizes of the student's observation groups, in order, which ``distill.augment`` mirrors."""
    layer_sizes: Sequence[int] = ()
    """Sizes of the teacher's layers that ``distill.loss.layers`` names."""
    shared_columns: torch.Tensor | None = None
    """The student's observations that the teacher sees too. Shape: (num_shared,)."""


@dataclass
class LearningStats:
    """Result of an epoch of learning."""

    mean_loss: float
    num_updates: int
    learning_rate: float
    terms: dict[str, float] = field(default_factory=dict)
    """Mean of each loss term, unweighted."""


class Learner:
    """Fits a student by minibatch gradient descent.

    Args:
        student: The module to fit; its ``normalizer`` is fitted by :meth:`fit_normalizer`.
        cfg: Loss, optimiser, batch size and shuffling.
        sequence_length: 1 learns from single transitions, more from sequences.
    """

    def __init__(self, student: Student, cfg: DistillationCfg, sequence_length: int = 1):
        self.student = student
        self.cfg = cfg
        self.sequence_length = sequence_length
        self._check_batch()
        self.terms: list[Term] = make_terms(cfg)
        self.optimizer = _make_optimizer(student, cfg)
        if cfg.loss.layers and "features" not in self.target_fields():
            raise UserError("distill.loss.layers is for loss feature: add distill.loss.auxiliary={feature: 0.1}")
        student.tap([own for own, _ in cfg.loss.layers], "distill.loss.layers")
        self.adapter: nn.Linear | LayerAdapters | None = None
        self.layer_sizes: tuple[int, ...] = ()
        """Sizes of the teacher's layers in ``features``, where there are several."""
        self.mirror: Mirror | None = None
        self.salient_columns: torch.Tensor | None = None
        """Observations that student and teacher see, where a loss reads saliencies. Shape: (num_shared,)."""
        self.standardiser = Standardiser(_standardised_fields(self.terms))
        self._own_units = list(self.standardiser.fields)
        """Fields that reach the losses in the teacher's units, and are standardised there."""
        self._loaded = False
        self._warned_of_scale = False
        self._nothing_to_watch = False
        self._first_watch = True
        self.average = copy.deepcopy(student).requires_grad_(False) if cfg.optimizer.ema_decay else None
        self.precision = Precision(cfg.optimizer.precision, next(student.parameters()).device)
        self.losses = compiled(self._losses, student) if cfg.optimizer.compile else self._losses

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

    @property
    def policy(self) -> Student:
        """The student to evaluate and to save: the averaged one where ``optimizer.ema_decay`` is set."""
        return self.average if self.average is not None else self.student

    def target_fields(self) -> set[str]:
        """Return which of the teacher's outputs the losses read; of a discrete teacher the logits always."""
        return {"mean", "logits"}.union(*(term.spec.targets for term in self.terms))

    def prepare(
        self,
        student: PolicyOutput,
        teacher: PolicyOutput,
        facts: RunFacts | None = None,
    ) -> None:
        """Check once that student and teacher have what the losses read; make what the losses need beside them.

        Args:
            student: The student's output for some observations.
            teacher: The teacher's.
            facts: What is known of the teacher and the observations; None: nothing.

        Raises:
            UserError: Naming the loss, what is missing, and what to use instead.
        """
        facts = facts or RunFacts()
        specs = [term.spec for term in self.terms]
        check_choices(specs, student, teacher)
        check_sample_weights(self.cfg.loss, teacher)
        unused = without_effect(
            self.cfg,
            specs,
            discrete=teacher.logits is not None,
            sequences=self.sequence_length > 1,
            memory=self.student.state_size > 0,
        )
        if unused:
            logger.warning("Settings without effect: %s.", "; ".join(unused))
        if self.reads_saliency:
            student = self._with_columns(student, facts.shared_columns)
        for spec in specs:
            for role, output, wanted in (("student", student, spec.student), ("teacher", teacher, spec.teacher)):
                missing = [name for name in wanted if getattr(output, name) is None]
                if missing and output.logits is None:
                    raise UserError(_missing_output(spec.name, role, missing[0]))
        for term, params in zip(self.terms, self.loss_params(0), strict=True):
            if term.spec.optional:
                term.spec.function(student, teacher, params)  # refuses families without a divergence
        self._make_mirror(teacher, facts.groups)
        if "features" in self.target_fields() and self.adapter is None:
            self._make_adapter(student.features, teacher.features, list(facts.layer_sizes))

    def _make_adapter(self, student: torch.Tensor | None, teacher: torch.Tensor | None, layer_sizes: list[int]) -> None:
        assert student is not None and teacher is not None
        wanted = layer_sizes or [teacher.shape[-1]]
        own = self.student.tapped_sizes() or [student.shape[-1]]
        if len(own) != len(wanted):
            raise UserError(
                f"distill.loss.layers names {len(own)} layers, and the teacher's features are of one whose parts are "
                "not known: name one."
            )
        self.layer_sizes = tuple(wanted) if len(wanted) > 1 else ()
        self.adapter = make_adapter(list(zip(own, wanted, strict=True)), student.device)
        self.optimizer.add_param_group({"params": list(self.adapter.parameters())})

    @property
    def reads_saliency(self) -> bool:
        """Whether a loss compares saliencies."""
        return "saliency" in self.target_fields()

    def _with_columns(self, student: PolicyOutput, columns: torch.Tensor | None) -> PolicyOutput:
        """Keep the observations that both see, and return the student's output as if it had a saliency."""
        if self.student.state_size:
            raise UserError("Loss 'attention' is for students without memory: leave it out, or use student=mlp.")
        if columns is None:
            raise UserError("Loss 'attention' needs the teacher, and --offline has none: leave it out.")
        self.salient_columns = columns
        return student._replace(saliency=student.mean[..., :1].expand(*student.mean.shape[:-1], len(columns)))

    def outputs(self, policy: Student, batch: Batch) -> PolicyOutput:
        """Return a student's outputs on a batch, with its saliency where a loss reads it."""
        if self.salient_columns is None:
            return forward(policy, batch)
        derived = torch.is_grad_enabled()
        with torch.enable_grad():
            obs = as_float(batch.obs).detach().requires_grad_()
            output = forward(policy, batch._replace(obs=obs))
            return output._replace(saliency=action_saliency(output, obs, self.salient_columns, create_graph=derived))

    def _make_mirror(self, teacher: PolicyOutput, groups: Mapping[str, int] | None) -> None:
        cfg = self.cfg
        if cfg.augment is None:
            return
        where = f"distill.augment={cfg.augment}"
        if groups is None or cfg.student.obs_slice is not None:
            raise UserError(f"{where} mirrors whole observation groups of known sizes: unset distill.student.obs_slice")
        stored = cfg.dataset.sequence_start == "stored"
        if self.student.state_size and self.sequence_length > 1 and stored:
            raise UserError(
                f"{where}: the stored memory of a student has no mirror image: set distill.dataset.sequence_start=zero"
            )
        self.mirror = Mirror(cfg.augment, groups, teacher)
        self.mirror.check_losses(self.target_fields())

    @torch.no_grad()
    def fit_normalizer(self, obs: torch.Tensor) -> None:
        """Take more observations into the student's normaliser. Shape: (..., num_obs), or without images."""
        self.student.update_normalizer(obs)
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
        rescaled = {column for chunk in chunks for column in normalizer.rescale_outliers(dataset.chunk_obs(chunk))}
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
        params = self.loss_params(epoch)
        weights = self.term_weights(epoch)
        draw = dataset.flat_minibatches if self.sequence_length == 1 else dataset.sequence_minibatches
        num_updates = self.num_updates(new_transitions)
        # Losses are summed on the device: reading each one would make the host wait for every update.
        totals = torch.zeros(len(self.terms), device=next(self.student.parameters()).device)
        self._fit_standardiser(dataset, epoch)
        self.student.train()
        with self._standardised():
            for batch in draw(self.batch_size, num_updates, self.cfg.shuffle):
                doubled = batch if self.mirror is None else self.mirror.doubled(batch)
                totals += self._update(doubled, params, weights)
                if poll is not None:
                    poll()
                yield
        self.student.eval()
        means = (totals / num_updates).tolist()
        terms = {term.name: mean for term, mean in zip(self.terms, means, strict=True)}
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
                f"student: check loss '{self.terms[0].name}' or lower --learning_rate (now {rate:g}). "
                "The last good checkpoint is kept."
            )
        total = sum(weight * mean for weight, mean in zip(weights, means, strict=True))
        self._check_scale(means, weights, epoch)
        return LearningStats(total, num_updates, rate, terms)

    def _check_scale(self, means: list[float], weights: list[float], epoch: int) -> None:
        """Warn once of a term that is so much larger than another one that the student learns little of that."""
        if self._warned_of_scale:
            return
        every = zip(self.terms, means, weights, strict=True)
        sizes = [(abs(weight * mean), term) for term, mean, weight in every if weight > 0.0]
        if len(sizes) < 2:
            return
        large, small = (choose(sizes, key=lambda entry: entry[0]) for choose in (max, min))
        if large[0] <= MAX_RATIO * small[0]:
            return
        self._warned_of_scale = True
        logger.warning(
            "The loss term '%s' is %.3g in epoch %d and '%s' %.3g: the student learns little of the latter. "
            "Lower %s or raise %s.",
            large[1].name,
            large[0],
            epoch + 1,
            small[1].name,
            small[0],
            large[1].key,
            small[1].key,
        )

    def _update(self, batch: Batch, params: list[LossParams], weights: list[float]) -> torch.Tensor:
        values = self.losses(batch, params)
        weighted = [weight * value for value, weight in zip(values, weights, strict=True)]
        total = torch.stack(weighted).sum() if len(weighted) > 1 else weighted[0]
        self.precision.step(total, self.optimizer, self.student, self.cfg.optimizer.max_grad_norm)
        if self.average is not None:
            self._update_average()
        return torch.stack([value.detach() for value in values])

    def _fit_standardiser(self, dataset: DistillationDataset, epoch: int) -> None:
        """Fit the moments before epochs 0, 1, 2, 4, 8, ...: first data may be narrow, and a fit reads all of it."""
        if not self.standardiser.fields or (self.standardiser.fitted and epoch & (epoch - 1)):
            return
        first = not self.standardiser.fitted
        self.standardiser.fit(dataset)
        if not first or self._loaded:
            return
        for name, several in self._predictors().items():
            # New weights predict standardised numbers, trained ones the teacher's.
            if name == "features" or self.cfg.student.init_checkpoint is None:
                for predictor in several:
                    self.standardiser.to_own_units(name, predictor)

    def _predictors(self) -> dict[str, list[Predictor]]:
        """Return the layers that predict each standardised field."""
        found: dict[str, list[Predictor]] = {}
        if "value" in self.standardiser.fields:
            heads = [getattr(policy, "value", None) for policy in (self.student, self.average) if policy is not None]
            found["value"] = [Predictor(head) for head in heads if isinstance(head, nn.Linear)]
        if "features" in self.standardiser.fields and self.adapter is not None:
            found["features"] = predictors(self.adapter)
        # Whoever else reads the scores of the choices takes them as they are.
        if "logits" in self.standardiser.fields and all(
            term.spec.regresses_q for term in self.terms if term.spec.reads_choices
        ):
            heads = [policy.mean for policy in (self.student, self.average) if policy is not None]
            found["logits"] = [Predictor(head) for head in heads]
        return {name: several for name, several in found.items() if several}

    @contextmanager
    def _standardised(self) -> Iterator[None]:
        """Let the layers that predict values, features and Q-values predict standardised ones while they learn."""
        found = self._predictors()
        with self.standardiser.standardised(found):
            self._own_units = [name for name in self.standardiser.fields if name not in found]
            try:
                yield
            finally:
                self._own_units = list(self.standardiser.fields)

    def _losses(self, batch: Batch, params: list[LossParams]) -> list[torch.Tensor]:
        """Return each term's mean over the batch, unweighted."""
        with self.precision.autocast():
            output = self.outputs(self.student, batch)
        values = self.per_sample(self.precision.full(output), batch.targets, params)
        weights = self.weights(batch)
        if weights is None:
            return [value.mean() for value in values]
        # By the sum of the weights and not by the number of samples: samples of weight 0 must not shrink the step.
        total = weights.sum().clamp_min(1e-8)
        return [(value * weights).sum() / total for value in values]

    def per_sample(self, output: PolicyOutput, targets: PolicyOutput, params: list[LossParams]) -> list[torch.Tensor]:
        """Return each term for each sample, unweighted.

        Values and features reach the losses standardised, and Q-values those that regress on them.

        Args:
            output: The student's. Shape of each field: (..., size).
            targets: The teacher's, as stored.
            params: Of this epoch, one for each term.

        Returns:
            One tensor per term. Shape: (...).
        """
        if self.adapter is not None and output.features is not None:
            output = output._replace(features=self.adapter(output.features))
        if self.salient_columns is not None and output.saliency is not None and targets.saliency is not None:
            normalizer = self.student.normalizer
            deviation = (normalizer.var.sqrt() + normalizer.eps)[self.salient_columns].to(output.saliency.dtype)
            output = output._replace(saliency=output.saliency * deviation)
            targets = targets._replace(saliency=targets.saliency * deviation)
        if not self.standardiser.fields:
            return [term.spec.function(output, targets, own) for term, own in zip(self.terms, params, strict=True)]
        scaled_output, scaled_targets = self.standardiser(output, self._own_units), self.standardiser(targets)
        values = []
        for term, own in zip(self.terms, params, strict=True):
            pair = scaled_output, scaled_targets
            if not term.spec.regresses_q:
                pair = pair[0]._replace(logits=output.logits), pair[1]._replace(logits=targets.logits)
            values.append(term.spec.function(*pair, own))
        return values

    def weights(self, batch: Batch) -> torch.Tensor | None:
        """Return the weight of each sample; None where all are 1. Shape: (...)."""
        known = self._known_weights(batch)
        own = sample_weights(self.cfg.loss, batch.targets)
        if known is None or own is None:
            return own if known is None else known
        return known * own

    def _known_weights(self, batch: Batch) -> torch.Tensor | None:
        """Return the weights of the dataset, 0 where a student's memory is not yet warmed up. Shape: (...)."""
        burn_in = self.cfg.dataset.burn_in
        if batch.resets is None or burn_in == 0:
            return batch.weights
        weights = torch.ones_like(batch.resets, dtype=batch.obs.dtype) if batch.weights is None else batch.weights
        # Steps whose memory was warmed up for fewer than burn_in steps do not count, unless the episode began inside.
        # After a reset the memory is exactly that of an episode's start, so that nothing has to be warmed up.
        known = batch.resets.cumsum(dim=0) > 0
        steps = torch.arange(weights.shape[0], device=weights.device).unsqueeze(1)
        return weights * (known | (steps >= burn_in))

    @torch.no_grad()
    def _update_average(self) -> None:
        assert self.average is not None
        decay = self.cfg.optimizer.ema_decay or 0.0
        for averaged, current in zip(self.average.parameters(), self.student.parameters(), strict=True):
            averaged.lerp_(current, 1.0 - decay)

    def _set_learning_rate(self, epoch: int) -> float:
        schedule = self.cfg.optimizer.lr_schedule
        factor = 1.0 if schedule is None else value_at(schedule, epoch, self.cfg.n_epochs)
        rate = self.cfg.learning_rate * factor
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        return rate

    def loss_params(self, epoch: int) -> list[LossParams]:
        """Return the numbers that each term reads in an epoch, counted from 0."""
        return [term.params(self.cfg.loss, epoch, self.cfg.n_epochs, self.layer_sizes) for term in self.terms]

    def term_weights(self, epoch: int) -> list[float]:
        """Return each term's weight in an epoch, counted from 0."""
        return [term.weight(epoch, self.cfg.n_epochs) for term in self.terms]

    def state_dict(self) -> dict[str, Any]:
        """Return the optimiser's state, and the training weights where the saved student is an average."""
        state: dict[str, Any] = {"optimizer_state_dict": self.optimizer.state_dict(), **self.precision.state_dict()}
        state |= self.standardiser.state_dict()
        if self.average is not None:
            state["training_state_dict"] = self.student.state_dict()
        if self.adapter is not None:
            state["adapter_state_dict"] = self.adapter.state_dict()
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
        if self.adapter is not None:
            self.adapter.load_state_dict(state["adapter_state_dict"])
        self.optimizer.load_state_dict(state["optimizer_state_dict"])
        self.precision.load_state_dict(state)
        self.standardiser.load_state_dict(state, next(self.student.parameters()).device)
        self._loaded = True


def _standardised_fields(terms: Sequence[Term]) -> set[str]:
    fields = {field for term in terms for field in term.spec.teacher if field != "logits"}
    return fields | {"logits"} if any(term.spec.regresses_q for term in terms) else fields


def shorten(columns: list[int], most: int = 12) -> str:
    """List columns, the first ones where there are many."""
    shown = ", ".join(str(column) for column in columns[:most])
    return shown if len(columns) <= most else f"{shown}, ... ({len(columns)} in all)"


def forward(student: Student, batch: Batch) -> PolicyOutput:
    """Return a student's outputs on a batch, flat or of sequences."""
    if batch.resets is None:
        return student.step(batch.obs, None)[0]
    state = batch.state
    if state is None:
        state = student.initial_state(batch.obs.shape[1], batch.obs.device)
    return student.sequence(batch.obs, state, batch.resets)[0]


def _missing_output(loss: str, role: str, missing: str) -> str:
    if role == "student":
        key = {"std": "distill.student.stochastic=true", "value": "distill.student.value_head=true"}.get(missing)
        hint = f"set {key}" if key else "choose another student"
    else:
        hint = "choose a teacher that has one"
    return f"Loss '{loss}' needs the {role}'s {missing}, which this {role} does not have: {hint}, or use loss=mse."


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
