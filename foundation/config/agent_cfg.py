"""Typed configuration of an RSL-RL run, with the field names that Isaac Lab's users know.

The layout is that of rsl-rl-lib 5 (one model each for actor and critic); ``foundation.ppo.versions`` translates it
to that of the installed release, and accepts Isaac Lab's own configs of either layout just as well.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass
class DistributionCfg:
    """The distribution of a stochastic model's output."""

    class_name: str = "GaussianDistribution"
    """GaussianDistribution | HeteroscedasticGaussianDistribution (a standard deviation that depends on the state)."""
    init_std: float = 1.0
    """Standard deviation at the start [action units]."""
    std_type: str = "scalar"
    """Parameterise the standard deviation as itself (``scalar``) or by its logarithm (``log``)."""
    min_std: float = 0.0
    """Floor of a state-independent standard deviation [action units], kept after every iteration.

    Where noise is costly, as under a penalty on changing the action, PPO reduces it to zero long before the mean is
    good, and with it the size of its own steps, which the KL divergence bounds in units of the standard deviation.
    """


@dataclass
class ModelCfg:
    """One network: actor, critic, student or teacher."""

    class_name: str = "MLPModel"
    """MLPModel | RNNModel, or ``"pkg.module:Class"`` where the installed RSL-RL takes one."""
    hidden_dims: list[int] = field(default_factory=lambda: [256, 256, 256])
    """Sizes of the hidden layers."""
    activation: str = "elu"
    """Activation between the layers, by RSL-RL's name."""
    obs_normalization: bool = False
    """Normalise observations by their running mean and variance; the statistics are part of the checkpoint."""
    distribution_cfg: DistributionCfg | None = None
    """Distribution of the output; None for a deterministic one (a critic)."""
    init_output: float | list[float] | None = None
    """What the untrained network puts out: start value of the last layer's bias. None: the library's random one.

    For a quadrotor it is the hover command: exploration then starts around hovering instead of around falling.
    """
    init_output_gain: float = 1.0
    """Factor on the last layer's initial weights; small values keep the first outputs near ``init_output``."""
    rnn_type: str | None = None
    """``RNNModel`` only: lstm | gru."""
    rnn_hidden_dim: int | None = None
    """``RNNModel`` only: size of the recurrent state."""
    rnn_num_layers: int | None = None
    """``RNNModel`` only: number of recurrent layers."""


@dataclass
class PPOAlgorithmCfg:
    """Proximal policy optimisation (Schulman et al. 2017)."""

    class_name: str = "PPO"
    """Name of the algorithm's class."""
    num_learning_epochs: int = 5
    """Passes over the collected data per iteration."""
    num_mini_batches: int = 4
    """Minibatches per pass."""
    learning_rate: float = 1e-3
    """Step size of the optimiser."""
    schedule: str = "adaptive"
    """``adaptive`` steers the learning rate by ``desired_kl``; ``fixed`` leaves it."""
    gamma: float = 0.99
    """Discount factor per environment step."""
    lam: float = 0.95
    """Decay of generalised advantage estimation."""
    entropy_coef: float = 0.0
    """Weight of the entropy bonus."""
    desired_kl: float = 0.01
    """KL divergence per update that the adaptive schedule aims at."""
    max_grad_norm: float = 1.0
    """Gradients are clipped to this norm."""
    optimizer: str = "adam"
    """adam | adamw | sgd | rmsprop (rsl-rl-lib below 4 knows adam only)."""
    value_loss_coef: float = 1.0
    """Weight of the value loss."""
    use_clipped_value_loss: bool = True
    """Clip the change of the value like that of the policy."""
    clip_param: float = 0.2
    """Clipping range of the probability ratio."""
    normalize_advantage_per_mini_batch: bool = False
    """Normalise advantages per minibatch instead of over the whole rollout."""
    rnd_cfg: dict[str, Any] | None = None
    """Random network distillation (a bonus for novelty), as RSL-RL's own dict; None: off."""
    symmetry_cfg: dict[str, Any] | None = None
    """Symmetry augmentation, as RSL-RL's own dict; None: off."""


@dataclass
class DistillationAlgorithmCfg:
    """RSL-RL's own behaviour cloning of a teacher on the student's states."""

    class_name: str = "Distillation"
    """Name of the algorithm's class."""
    num_learning_epochs: int = 1
    """Passes over the collected data per iteration."""
    gradient_length: int = 15
    """Environment steps whose losses are summed before a gradient step."""
    learning_rate: float = 1e-3
    """Step size of the optimiser."""
    max_grad_norm: float | None = None
    """Gradients are clipped to this norm; None: no clipping."""
    loss_type: str = "mse"
    """mse | huber."""
    optimizer: str = "adam"
    """adam | adamw | sgd | rmsprop."""


@dataclass
class RunnerCfg:
    """Settings of every RSL-RL run."""

    class_name: str = "OnPolicyRunner"
    """Name of RSL-RL's runner class, or ``"pkg.module:Class"``."""
    seed: int = 42
    """Seed of everything random; -1 draws one."""
    device: str = "cpu"
    """Compute device of the agent."""
    num_steps_per_env: int = 24
    """Environment steps per environment and iteration."""
    max_iterations: int = 1000
    """Iterations of collection and learning."""
    obs_groups: dict[str, list[str]] = field(default_factory=dict)
    """Which of the environment's observation groups each network reads, concatenated in order."""
    clip_actions: float | None = None
    """Clip actions to [-c, c] before the environment sees them; None: do not."""
    save_interval: int = 50
    """Iterations between ``model_<iteration>.pt``."""
    eval_interval: int = 10
    """Iterations between evaluations of the deterministic policy, of which ``best_model.pt`` is the best; 0: never.

    The engine must be able to hold a second environment; where it cannot, the training return is the measure.
    """
    num_eval_episodes: int = 128
    """Episodes of such an evaluation, run in parallel."""
    experiment_name: str = "experiment"
    """Folder under ``logs/rsl_rl``."""
    run_name: str = ""
    """Suffix of the run's folder."""
    logger: str = "tensorboard"
    """tensorboard | wandb | neptune."""
    neptune_project: str = "foundation"
    """Project name for neptune."""
    wandb_project: str = "foundation"
    """Project name for wandb."""
    resume: bool = False
    """Go on from the checkpoint that ``load_run`` and ``load_checkpoint`` name."""
    load_run: str = ".*"
    """Run folder to load from: a name or a regular expression, of whose matches the newest is taken."""
    load_checkpoint: str = "model_.*.pt"
    """File to load in it: a name or a regular expression, of whose matches the highest number is taken."""

    def to_dict(self) -> dict[str, Any]:
        """Return nested plain dicts, lists and values, independent of this object."""
        return asdict(self)


def _gaussian_actor() -> ModelCfg:
    return ModelCfg(distribution_cfg=DistributionCfg())


@dataclass
class OnPolicyRunnerCfg(RunnerCfg):
    """A PPO run."""

    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"actor": ["policy"], "critic": ["policy"]})
    """Groups of ``actor`` and ``critic``."""
    actor: ModelCfg = field(default_factory=_gaussian_actor)
    """The policy."""
    critic: ModelCfg = field(default_factory=ModelCfg)
    """The value function."""
    algorithm: PPOAlgorithmCfg = field(default_factory=PPOAlgorithmCfg)
    """The algorithm's settings."""


@dataclass
class DistillationRunnerCfg(RunnerCfg):
    """A run of RSL-RL's own ``DistillationRunner``."""

    class_name: str = "DistillationRunner"
    """Name of RSL-RL's runner class."""
    max_iterations: int = 300
    """Iterations of collection and learning."""
    obs_groups: dict[str, list[str]] = field(default_factory=lambda: {"teacher": ["policy"], "student": ["policy"]})
    """Groups of ``teacher`` and ``student``."""
    student: ModelCfg = field(
        default_factory=lambda: ModelCfg(hidden_dims=[64, 64], distribution_cfg=DistributionCfg(init_std=0.1))
    )
    """The network that learns."""
    teacher: ModelCfg = field(default_factory=_gaussian_actor)
    """The network that is imitated: its architecture must be that of the checkpoint."""
    algorithm: DistillationAlgorithmCfg = field(default_factory=DistillationAlgorithmCfg)
    """The algorithm's settings."""


class AgentDict(dict[str, Any]):
    """An agent config that its task gives as a dictionary, read and written like the others.

    What it leaves out is :class:`RunnerCfg`'s, except the runner's class, which follows from the rest.
    """

    @classmethod
    def of(cls, values: dict[str, Any]) -> AgentDict:
        """Take over a task's dictionary; it is not changed."""
        defaults = {name: value for name, value in asdict(RunnerCfg()).items() if name != "class_name"}
        return cls({**defaults, **{name: _attributes(value) for name, value in values.items()}})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the agent config has no '{name}'") from None

    def __setattr__(self, name: str, value: object) -> None:
        self[name] = value


def _attributes(value: object) -> Any:
    """Copy nested dictionaries as :class:`AgentDict`."""
    return AgentDict({k: _attributes(v) for k, v in value.items()}) if isinstance(value, dict) else copy.copy(value)
