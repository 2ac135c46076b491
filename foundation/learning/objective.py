"""The objective of a run: its loss terms on one scale, the targets that they read, and what they need beside them."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from foundation.config.distillation_cfg import DistillationCfg
from foundation.core.distributed import ALONE, Ranks
from foundation.core.errors import UserError
from foundation.dataset.dataset import Batch, DistillationDataset
from foundation.learning.adapters import LayerAdapters, make_adapter, predictors
from foundation.learning.losses import LossParams, LossSpec, check_choices
from foundation.learning.mirror import Mirror
from foundation.learning.no_effect import without_effect
from foundation.learning.saliency import action_saliency
from foundation.learning.sample_weights import check_sample_weights, sample_weights
from foundation.learning.standardise import Predictor, Standardiser
from foundation.learning.terms import Term, make_terms
from foundation.policies.estimator import HIDDEN
from foundation.policies.mlp import build_mlp
from foundation.policies.output import PolicyOutput
from foundation.policies.policy_network import as_float
from foundation.students.base import Student

logger = logging.getLogger(__name__)

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
    estimate_names: Sequence[str] = ()
    """Name and unit of each column of the group that ``predict`` predicts, such as ``velocity_0 [m/s]``."""


class Objective:
    """What a student is to minimise: the terms of ``distill.loss``, each a mean over samples.

    Args:
        student: The student that is fitted.
        cfg: The run's loss, dataset and augmentation.
        sequence_length: 1 learns from single transitions, more from sequences.
        ranks: The processes that have the same objective, each on transitions of its own.
    """

    def __init__(self, student: Student, cfg: DistillationCfg, sequence_length: int, ranks: Ranks = ALONE):
        self.student = student
        self.cfg = cfg
        self.sequence_length = sequence_length
        self.ranks = ranks
        self.terms: list[Term] = make_terms(cfg)
        if cfg.loss.layers and "features" not in self.target_fields():
            raise UserError("distill.loss.layers is for loss feature: add distill.loss.auxiliary={feature: 0.1}")
        student.tap([own for own, _ in cfg.loss.layers], "distill.loss.layers")
        self.adapter: nn.Linear | LayerAdapters | None = None
        self.layer_sizes: tuple[int, ...] = ()
        """Sizes of the teacher's layers in ``features``, where there are several."""
        self.estimator: nn.Sequential | None = None
        """Predicts another observation group from the student's features, for training alone."""
        self.estimate_names: list[str] = []
        """Of each column that is predicted; empty where nothing is."""
        self.mirror: Mirror | None = None
        self.salient_columns: torch.Tensor | None = None
        """Observations that student and teacher see, where a loss reads saliencies. Shape: (num_shared,)."""
        self.standardiser = Standardiser(_standardised_fields(self.terms))
        self._own_units = list(self.standardiser.fields)
        """Fields that reach the losses in the teacher's units, and are standardised there."""
        self._loaded = False
        self._warned_of_scale = False

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
        self._check_choices()
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
        _check_outputs(specs, student, teacher)
        for term, params in zip(self.terms, self.loss_params(0), strict=True):
            if term.spec.optional:
                term.spec.function(student, teacher, params)  # refuses families without a divergence
        self._make_mirror(teacher, facts.groups)
        if "features" in self.target_fields() and self.adapter is None:
            self._make_adapter(student.features, teacher.features, list(facts.layer_sizes))
        if teacher.estimate is not None:
            self._make_estimator(student, teacher.estimate.shape[-1], list(facts.estimate_names))

    def _make_estimator(self, student: PolicyOutput, size: int, names: list[str]) -> None:
        """Make what predicts another observation group, unless the student does it itself."""
        self.estimate_names = names or [str(column) for column in range(size)]
        if student.estimate is None and self.estimator is None:
            assert student.features is not None
            head = build_mlp(student.features.shape[-1], [HIDDEN], size, "elu")
            self.estimator = head.to(student.features.device)

    def estimate(self, output: PolicyOutput) -> torch.Tensor:
        """Return the student's prediction of another observation group, in its units. Shape: (..., size)."""
        if self.estimator is None:
            assert output.estimate is not None
            return output.estimate
        assert output.features is not None
        return self.estimator(output.features)

    @property
    def learned_modules(self) -> list[nn.Module]:
        """What learns beside the student, in the order in which it was made."""
        return [module for module in (self.adapter, self.estimator) if module is not None]

    def _check_choices(self) -> None:
        """Refuse what is of one discrete action alone, where the student makes several."""
        count = len(self.student.choices)
        if count < 2:
            return
        cfg = self.cfg
        weighted = f"distill.loss.sample_weights={cfg.loss.sample_weights}"
        found = {
            weighted: cfg.loss.sample_weights != "none",
            f"distill.augment={cfg.augment}": cfg.augment is not None,
            "loss 'attention'": self.reads_saliency,
        }
        for what, is_set in found.items():
            if is_set:
                raise UserError(
                    f"{what} is for one discrete action, and this task takes {count} at once: leave it out."
                )

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

    # -- targets on one scale -------------------------------------------------------------------------------------

    def fit_standardiser(self, dataset: DistillationDataset, epoch: int, policies: Sequence[Student]) -> None:
        """Fit the moments before epochs 0, 1, 2, 4, 8, ...: first data may be narrow, and a fit reads all of it.

        Args:
            dataset: Holds the targets.
            epoch: Counted from 0.
            policies: The student and, where there is one, its average.
        """
        if not self.standardiser.fields or (self.standardiser.fitted and epoch & (epoch - 1)):
            return
        first = not self.standardiser.fitted
        self.standardiser.fit(dataset, self.ranks)
        if not first or self._loaded:
            return
        for name, several in self._predictors(policies).items():
            # New weights predict standardised numbers, trained ones the teacher's.
            if name in ("features", "estimate") or self.cfg.student.init_checkpoint is None:
                for predictor in several:
                    self.standardiser.to_own_units(name, predictor)
        if "estimate" in self.standardiser.fields:
            for policy in policies:
                if policy.estimator is not None:
                    policy.estimator.set_moments(
                        self.standardiser.mean["estimate"], self.standardiser.scale["estimate"]
                    )

    def _predictors(self, policies: Sequence[Student]) -> dict[str, list[Predictor]]:
        """Return the layers that predict each standardised field."""
        found: dict[str, list[Predictor]] = {}
        if "value" in self.standardiser.fields:
            heads = [getattr(policy, "value", None) for policy in policies]
            found["value"] = [Predictor(head) for head in heads if isinstance(head, nn.Linear)]
        if "features" in self.standardiser.fields and self.adapter is not None:
            found["features"] = predictors(self.adapter)
        if "estimate" in self.standardiser.fields and self.estimator is not None:
            head = self.estimator[-1]
            assert isinstance(head, nn.Linear)
            found["estimate"] = [Predictor(head)]
        # Whoever else reads the scores of the choices takes them as they are.
        if "logits" in self.standardiser.fields and all(
            term.spec.regresses_q for term in self.terms if term.spec.reads_choices
        ):
            found["logits"] = [Predictor(policy.mean) for policy in policies]
        return {name: several for name, several in found.items() if several}

    @contextmanager
    def standardised(self, policies: Sequence[Student]) -> Iterator[None]:
        """Let the layers that predict values, features and Q-values predict standardised ones while they learn."""
        found = self._predictors(policies)
        with self.standardiser.standardised(found):
            self._own_units = [name for name in self.standardiser.fields if name not in found]
            try:
                yield
            finally:
                self._own_units = list(self.standardiser.fields)

    # -- values -----------------------------------------------------------------------------------------------------

    def outputs(self, policy: Student, batch: Batch) -> PolicyOutput:
        """Return a student's outputs on a batch, with its saliency where a loss reads it."""
        if self.salient_columns is None:
            return forward(policy, batch)
        derived = torch.is_grad_enabled()
        with torch.enable_grad():
            obs = as_float(batch.obs).detach().requires_grad_()
            output = forward(policy, batch._replace(obs=obs))
            return output._replace(saliency=action_saliency(output, obs, self.salient_columns, create_graph=derived))

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
        if targets.estimate is not None:
            output = output._replace(estimate=self.estimate(output))
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

    def loss_params(self, epoch: int) -> list[LossParams]:
        """Return the numbers that each term reads in an epoch, counted from 0."""
        return [
            term.params(self.cfg.loss, epoch, self.cfg.n_epochs, self.layer_sizes, self.student.choices)
            for term in self.terms
        ]

    def term_weights(self, epoch: int) -> list[float]:
        """Return each term's weight in an epoch, counted from 0."""
        return [term.weight(epoch, self.cfg.n_epochs) for term in self.terms]

    def check_scale(self, means: list[float], weights: list[float], epoch: int) -> None:
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

    def state_dict(self) -> dict[str, Any]:
        """Return the moments of the targets and the adapters' weights, for an exact resume."""
        state = self.standardiser.state_dict()
        if self.adapter is not None:
            state["adapter_state_dict"] = self.adapter.state_dict()
        if self.estimator is not None:
            state["estimator_state_dict"] = self.estimator.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what :meth:`state_dict` returned."""
        if self.adapter is not None:
            self.adapter.load_state_dict(state["adapter_state_dict"])
        if self.estimator is not None:
            self.estimator.load_state_dict(state["estimator_state_dict"])
        self.standardiser.load_state_dict(state, next(self.student.parameters()).device)
        self._loaded = True


def forward(student: Student, batch: Batch) -> PolicyOutput:
    """Return a student's outputs on a batch, flat or of sequences."""
    if batch.resets is None:
        return student.step(batch.obs, None)[0]
    state = batch.state
    if state is None:
        state = student.initial_state(batch.obs.shape[1], batch.obs.device)
    return student.sequence(batch.obs, state, batch.resets)[0]


def _standardised_fields(terms: Sequence[Term]) -> set[str]:
    fields = {field for term in terms for field in term.spec.teacher if field != "logits"}
    return fields | {"logits"} if any(term.spec.regresses_q for term in terms) else fields


def _check_outputs(specs: Sequence[LossSpec], student: PolicyOutput, teacher: PolicyOutput) -> None:
    """Raise unless both have what the terms read, of which the first is the main one."""
    for spec in specs:
        for role, output, wanted in (("student", student, spec.student), ("teacher", teacher, spec.teacher)):
            missing = [name for name in wanted if getattr(output, name) is None]
            if output.logits is not None:  # takes the standard deviation's place
                missing = [name for name in missing if name != "std"]
            if missing:
                raise UserError(_missing_output(spec.name, role, missing[0], is_main=spec is specs[0]))


def _missing_output(loss: str, role: str, missing: str, *, is_main: bool) -> str:
    instead = "use loss=mse" if is_main else f"leave distill.loss.auxiliary.{loss} out"
    if role == "student":
        key = {"std": "distill.student.stochastic=true", "value": "distill.student.value_head=true"}.get(missing)
        hint = f"set {key}" if key else "choose another student"
    else:
        hint = "choose a teacher that has one"
    return f"Loss '{loss}' needs the {role}'s {missing}, which this {role} does not have: {hint}, or {instead}."
