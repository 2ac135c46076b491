"""The policies that the real RSL-RL releases are asked to write: one row per kind of checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

VERSIONS = ("2.3.3", "3.0.1", "3.1.2", "4.0.1", "5.4.2", "5.5.1")
NUM_ENVS, NUM_STEPS, NUM_ACTIONS = 6, 20, 3
GROUPS = {"policy": 11, "extra": 4, "privileged": 7}
_TWO = ("extra", "policy")


@dataclass(frozen=True)
class Case:
    """One policy."""

    name: str
    activation: str = "elu"
    hidden_dims: tuple[int, ...] = (32, 24)
    normalized: bool = False
    actor_groups: tuple[str, ...] = ("policy",)
    critic_groups: tuple[str, ...] = ("policy",)
    rnn: tuple[str, int, int] | None = None
    """Kind, units, layers."""
    distribution: str = "scalar"
    """scalar | log | heteroscedastic | heteroscedastic_log | beta."""
    distilled: bool = False
    """The student of RSL-RL's own distillation instead of a PPO actor."""
    since: str = "2.3.3"
    """First release that has it."""


CASES = (
    Case("elu"),
    Case("relu", activation="relu"),
    Case("tanh", activation="tanh", hidden_dims=(16,)),
    Case("selu", activation="selu"),
    Case("lrelu", activation="lrelu"),
    Case("crelu", activation="crelu"),
    Case("sigmoid", activation="sigmoid"),
    Case("gelu", activation="gelu", since="3.0.1"),
    Case("swish", activation="swish", since="3.0.1"),
    Case("mish", activation="mish", since="3.0.1"),
    Case("softplus", activation="softplus", since="3.0.1"),
    Case("normalized", normalized=True),
    Case("privileged", normalized=True, critic_groups=("policy", "privileged")),
    Case("two_groups", normalized=True, actor_groups=_TWO, critic_groups=_TWO, since="3.0.1"),
    Case("gru_1", rnn=("gru", 12, 1), normalized=True),
    Case("gru_2", rnn=("gru", 12, 2), activation="relu"),
    Case("lstm_1", rnn=("lstm", 12, 1)),
    Case("lstm_2", rnn=("lstm", 12, 2), normalized=True, activation="tanh"),
    Case("log_std", distribution="log", normalized=True),
    Case("heteroscedastic", distribution="heteroscedastic", normalized=True, since="3.1.2"),
    Case("heteroscedastic_log", distribution="heteroscedastic_log", since="3.1.2"),
    Case("heteroscedastic_gru", distribution="heteroscedastic_log", rnn=("gru", 8, 1), since="3.1.2"),
    Case("beta", distribution="beta", normalized=True, since="5.4.2"),
    Case("beta_lstm", distribution="beta", rnn=("lstm", 8, 1), since="5.4.2"),
    Case("distilled", distilled=True, normalized=True, activation="relu"),
    Case("distilled_gru", distilled=True, rnn=("gru", 12, 1)),
)  # fmt: skip


def cases(version: str) -> list[Case]:
    """Return the cases that a release has."""
    return [case for case in CASES if _numbers(case.since) <= _numbers(version)]


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))
