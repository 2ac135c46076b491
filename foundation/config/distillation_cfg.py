"""Typed configuration of a distillation run. A docstring under every field; unknown keys are refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from foundation.config.derived_cfg import DerivedObsCfg

# Choices, spelled once: help, checks and the reference are made from them.
ScheduleKind = Literal["constant", "linear", "cosine", "exponential", "piecewise", "step"]
BelowMin = Literal["refuse", "drop"]
OutputKind = Literal["q_values", "logits", "mean"]
Combine = Literal["per_env", "mean", "uncertainty", "value", "gate"]
Selection = Literal["all", "best", "worst", "random"]
StudentTemperature = Literal["1", "same"]
Direction = Literal["forward", "reverse", "jensen_shannon"]
Labels = Literal["mean", "sampled"]
FeatureDistance = Literal["l2", "cosine"]
FeatureHints = Literal["each", "residual"]
ActionDistribution = Literal["gaussian", "tanh", "beta"]
ImageEncoder = Literal["small", "nature", "impala", "spatial_softmax"]
StudentMemory = Literal["none", "gru", "lstm"]
SampleWeights = Literal["none", "action_gap", "advantage"]
Eviction = Literal["oldest", "reservoir"]
StorageType = Literal["float32", "float16", "bfloat16"]
SequenceStart = Literal["stored", "zero"]
CollectionMode = Literal["auto", "steps", "episodes"]
DrawnPer = Literal["episode", "step"]
OptimizerName = Literal["adam", "adamw", "rmsprop", "sgd", "muon", "soap"]
Precision = Literal["float32", "bfloat16", "float16"]
PREDICT = "predict"
"""The loss term that reads an observation group (``TermCfg.group``)."""
LoggerName = Literal["tensorboard", "wandb", "neptune"]


@dataclass
class ScheduleCfg:
    """A number that may change over the epochs of a run."""

    kind: ScheduleKind = "constant"
    """How it changes."""
    start: float = 0.0
    """Value at the first epoch of the schedule."""
    end: float = 0.0
    """Value at the last epoch of the schedule and after (ignored by ``constant``)."""
    epochs: int = 0
    """Length of the change [epochs]; 0 means the whole run."""
    points: list[list[float]] = field(default_factory=list)
    """[epoch, value] pairs: ``piecewise`` goes straight from one to the next, ``step`` keeps each value to
    the next."""


@dataclass
class GateCfg:
    """The gate of ``teacher.combine=gate`` (``foundation.teachers.gate``), fitted before anything else is learned."""

    episodes: int = 256
    """Episodes that the teachers fly in turns for it, rounded up to a multiple of the environments."""
    horizon: int | None = None
    """How far it looks ahead [env steps]: a teacher counts by its return in so many steps. None: a quarter of an
    episode."""
    temperature: float = 0.1
    """Temperature of the softmax over the expected returns [standard deviations of the returns seen]: how much
    worse a teacher must be to count e times less. Near 0: the best teacher of each state alone."""
    hidden_dims: list[int] = field(default_factory=lambda: [64, 64])
    """Hidden layers of the gate's network (ELU)."""
    updates: int = 1000
    """Optimiser steps of 512 transitions."""


@dataclass
class TeacherCfg:
    """The policy to imitate, or many of them."""

    checkpoint: str | list[str] | None = None
    """Path of the checkpoint; several, a glob, a folder or a manifest for many (``--teacher_checkpoint``)."""
    watch: str | None = None
    """Folder of a training that is still running: its best checkpoint so far teaches, and is read again when there is
    a newer one (``--watch_teacher``)."""
    relabel: int | None = None
    """With ``watch``: how many stored transitions, the newest ones, are labelled anew when a newer teacher is read,
    rounded up to whole chunks. 0: none. None: 100000 where that is possible: where the teacher has no memory and reads
    what the student reads, which is what is stored; else 0."""
    obs_groups: list[str] | None = None
    """Observation groups, concatenated in order. None: the agent config's."""
    obs_slice: list[int] | None = None
    """``[a, b]``: only these columns of the concatenated groups."""
    joint_order: list[str] | None = None
    """Joints in the teacher's order, in the environment's names, where it was trained in another order than the
    environment's; bodies after them. None: as its file, or an export or ``deploy.yaml`` beside it, states it; ``[]``:
    columns and actions are taken as they are."""
    activation: str | None = None
    """Activation of the checkpoint's networks (``--teacher_activation``). None: read from ``params/agent.yaml``
    beside it. Refused where the file fixes it (ONNX, TorchScript, HDF5, our own students)."""
    distribution: str | None = None
    """Distribution of its actions, where no config states it: gaussian | heteroscedastic | heteroscedastic_log | beta |
    deterministic | categorical."""
    action_range: list[float] | None = None
    """``[low, high]`` of actions that it scales or clips to their range, where no config states it."""
    outputs: OutputKind | None = None
    """Meaning of the raw outputs of a network whose file does not state it (a plain state_dict, an export): q_values |
    logits | mean."""
    head: str | None = None
    """Id, or gym id, of the task whose head is read, of a student of several tasks (``--multi_task``)."""
    strict: bool = True
    """Refuse a checkpoint with entries that are not understood (off: warn)."""
    run_as_is: bool = False
    """Run a TorchScript or ONNX policy by its own runtime, its code included, instead of reading its layers: the way in
    for networks of any kind. Its memory is found and reset with the episodes; the log states how it is run."""
    num_obs: int | None = None
    """Number of observations of a teacher that is run as it is, where its file does not state it."""
    input_sizes: list[int] | None = None
    """Sizes of the observation inputs, in order, of a teacher that is run as it is and has several of them, where its
    file does not state it."""
    min_return: float | None = None
    """Stop at once if the teacher's own mean return is lower (``--teacher_min_return``)."""
    below_min: BelowMin = "refuse"
    """With many teachers, whether those below ``min_return`` stop the run or are left out of it
    (``--teacher_below_min``)."""
    dropped: list[str] = field(default_factory=list)
    """Names of teachers of the set that are left out."""
    combine: Combine = "per_env"
    """Many teachers: per_env (environment i follows teacher i % number, on its vehicle), or one target from all of
    them for every environment: mean | uncertainty | value | gate (see ``foundation.teachers.combine``)."""
    combine_temperature: float = 1.0
    """Temperature of the softmax over the teachers' values that ``combine=value`` weights by [units of return]."""
    gate: GateCfg = field(default_factory=GateCfg)
    """Settings of the gate of ``combine=gate``."""
    expert: str | None = None
    """Many teachers: which one each environment follows at each step, as an observation group of one column that holds
    its index, or ``"pkg.module:function"`` of the observation groups. None: ``combine`` decides."""
    num_active: int | None = None
    """Many teachers: how many the student learns from in an on-policy epoch (``--num_active_teachers``). None: all."""
    selection: Selection = "all"
    """all | best | worst | random: which those are, by how far the student's return with each of them in the last
    epochs is from the teacher's own (``--teacher_selection``)."""
    emphasis: int = 0
    """Oversampling factor for the selected teachers. 0: train on their transitions only (as in rl-tools). n: train on
    all transitions and sample theirs n times as often; with ``worst``, those of vehicles that the student crashes."""
    weights: dict[str, int] = field(default_factory=dict)
    """Sampling weight per teacher, by its name (1 to 255), such as that of the vehicle that the student is to be
    deployed on: ``distill.teacher.weights.crazyflie=16``. Where ``emphasis`` is larger in an epoch, that counts."""
    position_offset_correction: bool = False
    """Take each teacher's steady-state position offset out of the student's stored observations."""
    check: bool = True
    """Stop at once if the teacher's mean return is not above that of random actions, or below that of zero actions
    (one-sided 95 %); off: warn."""


@dataclass
class StudentCfg:
    """Settings that every student has; each student's own file adds its sizes."""

    name: str = "mlp"
    """A module of ``foundation.students``, or ``"pkg.module:Class"``."""
    obs_groups: list[str] | None = None
    """Observation groups, concatenated in order. None: the agent config's."""
    obs_slice: list[int] | None = None
    """``[a, b]``: only these columns of the concatenated groups."""
    obs_normalization: bool = True
    """Normalise observations by the running mean and variance of the first data, then frozen. A column that did not
    vary in them is not divided by its standard deviation."""
    init_checkpoint: str | None = None
    """Start from the weights of this checkpoint."""
    stochastic: bool = False
    """Learn a standard deviation (losses ``nll`` and ``kl`` need one)."""
    value_head: bool = False
    """Carry a value output (loss ``value`` needs one)."""


@dataclass
class TermCfg:
    """A further term of the loss that has more of its own than a weight."""

    weight: float | ScheduleCfg = 1.0
    """What it is multiplied by; may change over the epochs."""
    temperature: float | ScheduleCfg | None = None
    """Softmax temperature of this term. None: ``loss.temperature``."""
    student_temperature: StudentTemperature | None = None
    """Whether this term tempers the student's distribution too. None: ``loss.student_temperature``."""
    direction: Direction | None = None
    """Which divergence this term is, where it is ``kl``. None: ``loss.direction``."""
    params: dict[str, float] = field(default_factory=dict)
    """Parameters that this term has of its own; they beat ``loss.params``."""
    group: str | None = None
    """Of ``predict``: the observation group that the student is to predict, such as what only the teacher sees."""
    feed: bool = False
    """Of ``predict``: make the prediction a layer of the student, which its last layers read, as in RMA's adaptation
    module; off: a head that is for training alone and in no export."""


@dataclass
class LossCfg:
    """What is minimised: a main term, and optional further ones with their weights."""

    name: str = "mse"
    """A function of ``foundation.learning.losses``, or ``"pkg.module:function"``."""
    weight: float | ScheduleCfg = 1.0
    """What the main term is multiplied by; may change over the epochs."""
    auxiliary: dict[str, float | TermCfg] = field(default_factory=dict)
    """Further terms by name with their weights, e.g. ``{value: 0.5}``, or with settings of their own, e.g.
    ``{value: {weight: {kind: linear, start: 1, end: 0.1}}}`` or ``{predict: {group: privileged, weight: 0.1}}``
    (:class:`TermCfg`). Values and Q-values are in units of
    the teacher's own spread, features in units of each dimension's, so that weights mean the same in every task."""
    params: dict[str, float] = field(default_factory=dict)
    """Parameters that a loss has of its own, by name: ``distill.loss.params.level=0.9`` for a loss that is
    ``def quantile(student, target, params, *, level: float = 0.5)``."""
    temperature: float | ScheduleCfg = 1.0
    """Softmax temperature of a discrete teacher's targets (Rusu et al. 2015, eq. 3); a schedule anneals it."""
    student_temperature: StudentTemperature = "1"
    """``"1"`` or ``"same"``: whether the student's distribution is tempered too."""
    direction: Direction = "forward"
    """Of ``kl``: forward is KL(teacher || student), reverse KL(student || teacher), jensen_shannon the mean divergence
    of both from their even mixture."""
    smoothing: float | ScheduleCfg | None = None
    """Of ``kl`` with ``direction=jensen_shannon`` and Gaussians: standard deviation of noise that is added to both
    distributions [action units; before tanh where they are squashed]. Where both are narrow and far apart the
    divergence has no gradient; with wide noise it has one, and with less and less it becomes what it is. None:
    from 1 to 0.01 over the run, exponentially. 0: no noise."""
    labels: Labels = "mean"
    """Of ``nll``: the teacher's mean (of choices the best one), or a draw of its distribution, new each time."""
    feature_distance: FeatureDistance = "l2"
    """Of ``feature``: mean squared error per dimension, or 1 - cosine."""
    layers: list[list[str]] = field(default_factory=list)
    """Of ``feature``: ``[student's layer, teacher's layer]`` pairs, e.g. ``[[body.1, actor.1], [body.3, actor.3]]``.
    Empty: the last hidden layer of either."""
    feature_hints: FeatureHints = "each"
    """Of ``feature`` with several ``layers``: ``each`` of the student's is to predict its teacher's; ``residual``: all
    name one layer of the teacher, and each of the student's predicts what those before it leave, so that layers too
    narrow to hold all of it share it."""
    sample_weights: SampleWeights = "none"
    """How much each sample counts, from a discrete teacher's Q-values: action_gap is the softmax over the minibatch of
    the difference between the best and the second choice, advantage the difference between the best and the worst one
    (Bastani et al. 2018, VIPER). Both average 1."""
    gap_temperature: float = 1.0
    """Of ``sample_weights=action_gap``: temperature of the softmax [the gap's standard deviations]."""
    huber_delta: float = 1.0
    """Where the Huber loss turns linear [action units]."""
    min_std: float = 0.01
    """Floor of a learned standard deviation in ``nll`` and ``kl`` [action units]."""

    @property
    def prediction(self) -> TermCfg | None:
        """The term that predicts an observation group, if there is one."""
        term = self.auxiliary.get(PREDICT)
        return term if isinstance(term, TermCfg) else None


@dataclass
class EpisodeFilterCfg:
    """Which episodes are learned from: those that pass all that is set. Transitions of the others stay, with weight 0.

    Episodes that have not ended pass; of those that the beginning of a phase has cut only ``success`` is asked.
    """

    success: bool = False
    """Only those that succeed (the task's own metric, or else those that end by time-out)."""
    min_length: int | None = None
    """Only those of at least so many steps [env steps]."""
    return_quantile: float | None = None
    """Only those whose return is at or above this quantile of the returns in the dataset, from 0 to 1."""


@dataclass
class DatasetCfg:
    """Where labelled transitions live."""

    size: int | None = None
    """Most transitions kept. None: what ``memory_gb`` holds, but no more than the run can collect."""
    memory_gb: float = 4.0
    """Memory budget [GB], used when ``size`` is None and as a ceiling for it."""
    eviction: Eviction = "oldest"
    """Which transitions make room when full: the oldest, or random ones (``reservoir``)."""
    newest_epochs: int | None = None
    """Learn from the transitions of that many epochs alone, the newest; older ones stay stored. None: from all."""
    device: str | None = None
    """Device of the storage. None: the compute device, or pinned host memory where the transitions do not fit it."""
    dtype: StorageType = "float32"
    """Storage type of observations and targets: float32 | float16 | bfloat16."""
    chunk_steps: int | None = None
    """Env steps per chunk, rounded up to whole training sequences. None: 32."""
    sequence_start: SequenceStart = "stored"
    """A student's memory at the start of a training sequence: stored (as it was when collected) | zero."""
    burn_in: int = 0
    """Steps at the start of a training sequence that only warm the memory up and carry no loss."""
    disk_gb: float = 2.0
    """Disk budget [GB] of the shards that make ``--resume`` exact; 0 writes none."""
    save: str | None = None
    """Write every collected transition to this folder too, or append to it (``--save_dataset``;
    docs/reference/dataset_format.md)."""
    load: str | None = None
    """Begin with the transitions of this folder (``--dataset``); with ``offline`` there are no others."""
    load_files: int | None = None
    """How many of its files, from the first on. None: all that are there when the run begins."""
    held_out: float = 0.1
    """``offline``: share of the chunks that is not learned from, but measures the student."""
    filter: EpisodeFilterCfg = field(default_factory=EpisodeFilterCfg)
    """Which episodes are learned from."""


@dataclass
class AugmentImagesCfg:
    """Random changes of the student's images each time that they are learned from (docs/howto/camera.md).

    The dataset keeps the images as they are, and the teacher, what it labels and who acts see nothing of it.
    """

    groups: list[str] | None = None
    """Image groups that are changed. None: all that the student reads."""
    shift: int = 0
    """Most pixels that an image is moved by, in each direction, its edge repeated (Yarats et al. 2021)."""
    brightness: float = 0.0
    """Most that the values are multiplied by, above and below 1: 0.2 is a factor from 0.8 to 1.2."""
    noise: float = 0.0
    """Standard deviation of Gaussian noise of each pixel [of full brightness: 255 of bytes, 1 of other numbers]."""
    lost_frames: float = 0.0
    """Probability that a frame is zero, black."""

    @property
    def is_on(self) -> bool:
        """Whether anything is changed."""
        return any((self.shift, self.brightness, self.noise, self.lost_frames))


@dataclass
class CollectionCfg:
    """Which policy acts during collection, and for how long."""

    mode: CollectionMode = "auto"
    """auto | steps | episodes. ``auto``: ``steps`` where a second environment can be made, else ``episodes``."""
    beta: ScheduleCfg | None = None
    """Probability that the teacher acts. None: 1 for ``epoch_teacher_forcing`` epochs, then 0."""
    teacher_student_mix: int = 0
    """Episodes of the acting teacher for each of the acting student in the on-policy epochs: N is a ``beta`` of
    N / (N + 1)."""
    beta_per: DrawnPer = "episode"
    """How often the acting policy is drawn: at each episode's start, or at every step."""
    epsilon: float = 0.0
    """Probability per step of a uniformly random action (Rusu et al. 2015 use 0.05); labels are untouched."""
    noise_std: float = 0.0
    """Gaussian noise of a fixed standard deviation on the acting policy [action units]; labels are untouched."""
    dart_alpha: float = 0.0
    """DART (Laskey et al. 2017): noise on the acting teacher whose covariance is this times the second moment of the
    student's action error on the last epoch's states, fitted again after every epoch (none in the first); 0: off. The
    paper's own scaling fixes the trace instead. Labels are untouched."""
    student_deterministic: bool = True
    """The acting student plays its mean; off: a draw from its own distribution (``student.stochastic``)."""
    clip_labels: bool = True
    """Clip labels to ``label_bound``."""
    label_bound: float | None = None
    """Labels are clipped to [-bound, bound] [action units]. None: to the agent config's ``clip_actions``, if it has
    any."""
    staggered: bool = True
    """``steps`` mode: start the environments at different times of their episodes."""


@dataclass
class OptimizerCfg:
    """How the student is fitted."""

    name: OptimizerName = "adam"
    """The optimiser's algorithm. muon (orthogonalised steps) and soap (Adam in the eigenbasis of each matrix's
    gradients) treat weight matrices as such and everything else as adam does."""
    weight_decay: float = 0.0
    """L2 penalty (decoupled for adamw, muon and soap)."""
    max_grad_norm: float | None = None
    """Clip gradients to this norm. None: no clipping."""
    lr_schedule: ScheduleCfg | None = None
    """Multiplier of ``learning_rate`` over the epochs. None: constant."""
    update_ratio: float = 2.0
    """Updates per epoch = ceil(new transitions / batch_size) * update_ratio."""
    updates_per_epoch: int | None = None
    """Updates per epoch, however many transitions are new. None: by ``update_ratio``."""
    ema_decay: float | None = None
    """Average the student's weights with this decay for evaluation and the checkpoints. None: off."""
    int8_epochs: int = 0
    """Last epochs in which the student computes with weights rounded to 8 bits, each row by its largest, and the float
    ones learn from that (quantisation-aware training). The best student is then one of those epochs', and loses little
    more by ``export.py --formats c_int8``. 0: none."""
    precision: Precision = "float32"
    """float32 | bfloat16 | float16: what the student's products are computed in while it learns; weights, losses and
    optimiser stay float32. float16 needs CUDA; its gradients are scaled. It pays for wide layers only
    (docs/results/performance.md)."""
    compile: bool = False
    """Compile the student's forward pass and the losses (``torch.compile``; the CPU needs a C++ compiler). Where that
    fails, one warning, and the run goes on without. It pays for none of the sizes
    measured in docs/results/performance.md."""


@dataclass
class EarlyStoppingCfg:
    """Ending a run whose evaluations get no better."""

    patience: int | None = None
    """Stop at an evaluation that comes this many epochs after the last one that was better; counted from the first
    epoch in which the student acts. None: never."""
    min_delta: float = 0.0
    """By how much a mean return has to exceed the best one to be better [units of return]."""


@dataclass
class DistillationCfg:
    """A whole run. Field names are the flags of ``distillation.py``."""

    task: str | None = None
    """Gym id of the task, or ``module:Id``."""
    engine: str = "auto"
    """auto | a module of ``foundation.engines``."""
    multi_task: str | None = None
    """File that lists the tasks of one student of several, each with its teacher (``--multi_task``)."""
    device: str = "auto"
    """Compute device; ``auto`` takes cuda:0 when there is one, else cpu."""
    seed: int = 42
    """Seed of everything random."""
    num_envs: int | None = None
    """Parallel environments. None: the env config's ``scene.num_envs``."""
    experiment_name: str | None = None
    """Folder under ``logs/distillation``. None: the agent config's ``experiment_name``."""
    run_name: str = ""
    """Suffix of the run's folder."""
    logger: LoggerName = "tensorboard"
    """Where scalars go."""
    log_project_name: str | None = None
    """Project name for wandb or neptune."""
    n_epochs: int = 100
    """Epochs, each of collection, learning and (every ``eval_interval``) evaluation."""
    num_episodes: int = 100
    """Episodes collected in an epoch."""
    batch_size: int | None = None
    """Transitions in a minibatch; sequences when ``sequence_length`` > 1. None: 256 transitions, and of sequences as
    many as hold 256, but at least 8."""
    sequence_length: int | None = None
    """Steps in a training sequence. None: 1, or 50 for a student with memory."""
    learning_rate: float = 1e-4
    """Step size of the optimiser."""
    eval_interval: int | None = None
    """Evaluate every so many epochs. None: 1; 10 during teacher forcing where only one environment can exist."""
    num_eval_episodes: int = 128
    """Episodes in an evaluation."""
    final_eval_episodes: int = 2048
    """Episodes on fresh seeds that the best student is re-measured with at the end (fewer where costly)."""
    robustness: bool = False
    """Measure the best student and the teacher again at the end, under noise, delays, another mass and whatever else
    the environment can vary, on ``num_eval_episodes`` each (``robustness.json``; docs/howto/measure.md)."""
    save_interval: int = 10
    """Epochs between ``checkpoint_epoch_*.pt``."""
    epoch_teacher_forcing: int = 50
    """Epochs in which the teacher acts; the student acts afterwards (DAgger)."""
    shuffle: bool = True
    """Draw minibatches at random; off: in order of collection."""
    augment: str | None = None
    """A mirror symmetry of the task, ``"pkg.module:function"``: each minibatch is learned from as it is and mirrored,
    which costs twice the time. The function takes observation groups by name and actions, and returns both mirrored
    (docs/howto/losses.md)."""
    augment_images: AugmentImagesCfg = field(default_factory=AugmentImagesCfg)
    """Random changes of the images that the student learns from."""
    offline: bool = False
    """Learn from ``dataset.load`` alone: no simulator, no teacher (``--offline``)."""
    on_policy: bool = False
    """Empty the dataset at the start of every epoch."""
    teacher_deterministic: bool = True
    """The acting teacher plays its mean; labels are always its mean."""
    obs: dict[str, DerivedObsCfg] = field(default_factory=dict)
    """Observation groups of the student's own, by their names, made of the environment's:
    ``obs.student.from=policy obs.student.drop=[base_lin_vel] obs.student.history=3`` (docs/howto/observations.md)."""
    teacher: TeacherCfg = field(default_factory=TeacherCfg)
    student: StudentCfg = field(default_factory=StudentCfg)
    loss: LossCfg = field(default_factory=LossCfg)
    dataset: DatasetCfg = field(default_factory=DatasetCfg)
    collection: CollectionCfg = field(default_factory=CollectionCfg)
    optimizer: OptimizerCfg = field(default_factory=OptimizerCfg)
    early_stopping: EarlyStoppingCfg = field(default_factory=EarlyStoppingCfg)
