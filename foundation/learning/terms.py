"""The terms of a run's loss: each is a loss with a weight and a temperature, which may follow a schedule."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from foundation.config.distillation_cfg import DistillationCfg, LossCfg, ScheduleCfg, TermCfg
from foundation.learning.losses import LossParams, LossSpec, check_main_loss, loss_spec, with_labels, with_own_params
from foundation.learning.schedules import value_at

_SMOOTHING = ScheduleCfg("exponential", 1.0, 0.01)
"""``loss.smoothing`` where it is not set."""


@dataclass(frozen=True)
class Term:
    """One term of a run's loss."""

    spec: LossSpec
    cfg: TermCfg
    """Its own settings; those of the main term are in ``distill.loss`` itself."""
    key: str
    """Config key of its weight, for messages."""

    @property
    def name(self) -> str:
        """The loss's name."""
        return self.spec.name

    def weight(self, epoch: int, num_epochs: int) -> float:
        """Return its factor in the loss in an epoch, counted from 0."""
        return value_at(self.cfg.weight, epoch, num_epochs)

    def params(
        self,
        loss: LossCfg,
        epoch: int,
        num_epochs: int,
        layer_sizes: tuple[int, ...] = (),
        choices: tuple[int, ...] = (),
    ) -> LossParams:
        """Return the parameters that it reads in an epoch.

        Args:
            loss: Settings of all terms.
            epoch: Counted from 0.
            num_epochs: Epochs of the run.
            layer_sizes: Sizes of the teacher's layers in ``features``, where there are several.
            choices: Choices of each of the student's discrete actions.
        """
        own = loss.temperature if self.cfg.temperature is None else self.cfg.temperature
        temperature = value_at(own, epoch, num_epochs)
        tempered = self.cfg.student_temperature or loss.student_temperature
        return LossParams(
            huber_delta=loss.huber_delta,
            min_std=loss.min_std,
            temperature=temperature,
            student_temperature=temperature if tempered == "same" else 1.0,
            direction=self.cfg.direction or loss.direction,
            smoothing=value_at(_SMOOTHING if loss.smoothing is None else loss.smoothing, epoch, num_epochs),
            labels=loss.labels,
            feature_distance=loss.feature_distance,
            feature_hints=loss.feature_hints,
            layer_sizes=layer_sizes,
            choices=choices,
        )


def make_terms(cfg: DistillationCfg) -> list[Term]:
    """Return the terms of a run's loss, the main one first.

    Raises:
        UserError: If there is no such loss, no loss has a parameter that is set, or the main loss trains no actions.
    """
    loss = cfg.loss
    # An auxiliary term is typed as its weight alone, or as a mapping with settings of its own.
    own = {name: term if isinstance(term, TermCfg) else TermCfg(term) for name, term in loss.auxiliary.items()}
    settings = {loss.name: TermCfg(loss.weight), **own}
    specs = with_own_params([loss_spec(name) for name in settings], loss.params)
    check_main_loss(specs[0])
    keys = [_weight_key(loss, name) for name in settings]
    bound = [_bound(spec, term.params) for spec, term in zip(specs, settings.values(), strict=True)]
    return [
        Term(with_labels(spec, loss.labels), term, key)
        for spec, term, key in zip(bound, settings.values(), keys, strict=True)
    ]


def _bound(spec: LossSpec, params: Mapping[str, float]) -> LossSpec:
    return with_own_params([spec], params)[0] if params else spec


def _weight_key(loss: LossCfg, name: str) -> str:
    if name == loss.name:
        return "distill.loss.weight"
    own = f"distill.loss.auxiliary.{name}"
    return f"{own}.weight" if isinstance(loss.auxiliary[name], TermCfg) else own
