"""Fly exported files, not networks, in a closed loop under the conditions of a robot, and write a table.

    python scripts/exported_flight.py                        # the shipped teacher and the published RAPTOR policy
    python scripts/exported_flight.py --policies student.pt  # other policies of the built-in task
    python scripts/exported_flight.py --engine l2f           # in the real l2f simulator (scripts/test_l2f.sh)

Between environment and policy lies a link as between ROS nodes: messages come late or not at all, and the policy's own
clock runs at the environment's rate, at half or at double of it. Writes docs/results/exported_flight.json and prints
the tables of docs/results/exported_flight.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(1, str(Path(__file__).resolve().parents[1]))

import numpy
import torch
from tensordict import TensorDict

from foundation.checkpoints import load_policy
from foundation.checkpoints.reading.loading import LoadedPolicy, Overrides
from foundation.cli.cli_args import positive_int
from foundation.cli.command import run_command
from foundation.cli.parser import ScriptParser
from foundation.cli.studies import write_json
from foundation.core.errors import UserError
from foundation.deploy import Policy
from foundation.engines.base import EnvCapabilities, VecEnv
from foundation.export.bundle import make_bundle
from foundation.export.formats import export
from foundation.policies.actors import Actor, PolicyActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rollout.evaluate import evaluate
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.l2f_env import QuadcopterPointCtrlL2fEnv
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = (
    ROOT / "foundation" / "assets" / "teachers" / "point_ctrl" / "model.pt",
    ROOT / "tests" / "checkpoints" / "published-raptor" / "checkpoint.h5",
)
FORMATS = {"so": "C", "onnx": "ONNX"}
SEED = 7_003
"""Seed of the episodes and of lost messages: none of a run's own."""


@dataclass(frozen=True)
class Link:
    """Conditions between environment and policy."""

    delay: int = 0
    """Age of the newest observation that has arrived [env steps]."""
    lost_observations: float = 0.0
    """Probability that an observation does not arrive: the policy acts on the last one that did."""
    lost_actions: float = 0.0
    """Probability that an action does not arrive: the last one that did stands."""
    hold: int = 1
    """The policy acts every so many env steps; its action stands in between."""
    repeat: int = 1
    """The policy acts so many times in an env step, each time on the newest observation; its last action counts."""


CONDITIONS = {
    "nominal": Link(),
    "observations 1 step (10 ms) old": Link(delay=1),
    "observations 2 steps (20 ms) old": Link(delay=2),
    "10 % of observations lost": Link(lost_observations=0.1),
    "10 % of actions lost": Link(lost_actions=0.1),
    "10 % of both lost, 1 step old": Link(delay=1, lost_observations=0.1, lost_actions=0.1),
    "policy at half rate": Link(hold=2),
    "policy at double rate": Link(repeat=2),
}


class LinkedActor:
    """An actor at the end of a link. What it commanded last, it knows itself: those columns are never late.

    Each environment is to run one episode: the policy's clock is one for all of them, and begins with the first.

    Args:
        actor: Acts.
        link: The conditions.
        own_columns: Observation group -> its columns that hold the last action.
        seed: Of lost messages.
    """

    def __init__(self, actor: Actor, link: Link, own_columns: Mapping[str, slice], seed: int = SEED) -> None:
        self._actor = actor
        self._link = link
        self._own_columns = own_columns
        self._seed = seed
        self.reset()

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones``, or everywhere: the first message of an episode always arrives."""
        self._actor.reset(dones)
        if dones is None:
            self._generator = torch.Generator().manual_seed(self._seed)
            self._step = 0
            self._sent: list[TensorDict] = []
            self._seen: TensorDict | None = None
            self._command: torch.Tensor | None = None
            self._applied: torch.Tensor | None = None
            self._begins: torch.Tensor | None = None
        else:
            self._begins = dones.bool().clone()

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the actions that arrive. Shape: (num_envs, num_actions)."""
        first = torch.ones(obs.batch_size[0], dtype=torch.bool) if self._begins is None else self._begins
        self._begins = torch.zeros_like(first)
        seen = self._receive(obs, first)
        if self._step % self._link.hold == 0:
            self._command = self._acted(seen, first)
        self._step += 1
        assert self._command is not None
        arrives = first | ~self._drawn(self._link.lost_actions, len(first))
        before = self._command if self._applied is None else self._applied
        self._applied = torch.where(arrives.unsqueeze(1), self._command, before)
        return self._applied

    def _acted(self, seen: TensorDict, first: torch.Tensor) -> torch.Tensor:
        """Let the policy act, as often as its clock says, and return its last action."""
        command = self._command
        for turn in range(self._link.repeat):
            given = seen if command is None else self._with_own(seen, command, first & (turn == 0))
            command = self._actor.act(given)
        assert command is not None
        return command

    def _receive(self, obs: TensorDict, first: torch.Tensor) -> TensorDict:
        """Return the newest observations that have arrived."""
        self._sent = [_chosen(first, obs, old) for old in self._sent]
        self._sent.append(obs.clone())
        self._sent = self._sent[-(self._link.delay + 1) :]
        arrived = self._sent[0]
        if self._seen is not None:
            arrives = first | ~self._drawn(self._link.lost_observations, len(first))
            arrived = _chosen(arrives, arrived, self._seen)
        self._seen = arrived
        return arrived

    def _with_own(self, seen: TensorDict, command: torch.Tensor, first: torch.Tensor) -> TensorDict:
        """Write what the policy commanded last over what arrived, but where an episode begins."""
        groups = dict(seen.items())
        for name, columns in self._own_columns.items():
            group = groups[name].clone()
            group[:, columns] = torch.where(first.unsqueeze(1), group[:, columns], command.clamp(-1.0, 1.0))
            groups[name] = group
        return TensorDict(groups, batch_size=seen.batch_size)

    def _drawn(self, probability: float, num_envs: int) -> torch.Tensor:
        return torch.rand(num_envs, generator=self._generator) < probability


def _chosen(where: torch.Tensor, one: TensorDict, other: TensorDict) -> TensorDict:
    """Return the rows of one where ``where``, of the other elsewhere."""
    groups = {name: torch.where(where.unsqueeze(1), one[name], other[name]) for name in one.keys()}  # noqa: SIM118
    return TensorDict(groups, batch_size=one.batch_size)


class ExportedActor:
    """Acts by an exported file.

    Args:
        path: The file.
        selector: Takes what it reads out of the observation groups.
    """

    def __init__(self, path: Path, selector: ObsSelector) -> None:
        self._policy = Policy(path)
        self._selector = selector

    def reset(self, dones: torch.Tensor | None = None) -> None:
        """Begin new episodes where ``dones``, or everywhere."""
        self._policy.reset(None if dones is None else dones.bool().numpy())

    def act(self, obs: TensorDict) -> torch.Tensor:
        """Return the file's actions. Shape: (num_envs, num_actions)."""
        return torch.from_numpy(numpy.array(self._policy.step(self._selector(obs).numpy())))


def actors_of(policy: LoadedPolicy, folder: Path) -> dict[str, Actor]:
    """Return the policy in PyTorch and by each exported file, by name.

    Args:
        policy: The policy.
        folder: Where the files go.
    """
    groups = policy.info.obs_groups or ["policy"]
    columns = policy.info.obs_slice
    selector = ObsSelector(groups, None if columns is None else (columns[0], columns[1]))
    actors: dict[str, Actor] = {"PyTorch": PolicyActor(policy.network, selector)}
    for written in export(make_bundle(policy), folder, list(FORMATS)):
        actors[FORMATS[written.format]] = ExportedActor(written.files[0], selector)
    return actors


def own_columns(env: VecEnv) -> dict[str, slice]:
    """Return the columns of each group that hold the last action, as the environment declares them."""
    declared = EnvCapabilities.of(env).action_fields
    return {group: slice(first, first + env.num_actions) for group, first in declared.items()}


def measure(env: VecEnv, actors: Mapping[str, Actor], num_episodes: int) -> dict[str, dict[str, dict[str, float]]]:
    """Return mean return and success rate by condition and actor, all from the same initial states."""
    columns = own_columns(env)
    figures: dict[str, dict[str, dict[str, float]]] = {}
    for name, link in CONDITIONS.items():
        figures[name] = {}
        for runtime, actor in actors.items():
            flown = evaluate(env, LinkedActor(actor, link, columns), num_episodes, SEED)
            survived = flown.success if flown.success is not None else flown.lengths >= env.max_episode_length
            figures[name][runtime] = {
                "mean_return": flown.mean_return,
                "return_interval": flown.return_interval,
                "success_rate": float(survived.double().mean()),
            }
    return figures


def table(policy: str, figures: Mapping[str, Mapping[str, Mapping[str, float]]]) -> list[str]:
    """Return one policy's table in Markdown."""
    runtimes = list(next(iter(figures.values())))
    lines = [f"| {policy} | {' | '.join(runtimes)} | success of C |", "|---|" + "---|" * (len(runtimes) + 1)]
    for condition, each in figures.items():
        returns = " | ".join(f"{each[runtime]['mean_return']:.1f}" for runtime in runtimes)
        lines.append(f"| {condition} | {returns} | {100 * each['C']['success_rate']:.0f} % |")
    return lines


def build_parser() -> ScriptParser:
    """Return the command's parser."""
    parser = ScriptParser(prog="exported_flight.py", description=__doc__)
    parser.add_argument("--policies", nargs="+", metavar="FILE", help="policies of the built-in task")
    parser.add_argument("--engine", choices=("torch", "l2f"), default="torch", help="whose physics (torch)")
    parser.add_argument(
        "--num_episodes", type=positive_int, default=64, metavar="N", help="episodes of each condition (64)"
    )
    parser.add_argument("--output", default=str(ROOT / "docs" / "results"), metavar="FOLDER", help="(docs/results)")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Fly, write the figures, and print the tables."""
    args = build_parser().read(argv)
    if args.num_episodes < 1:
        raise UserError(f"--num_episodes {args.num_episodes}: expected 1 or more")
    torch.set_num_threads(1)
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = args.num_episodes
    env = QuadcopterPointCtrlL2fEnv(cfg) if args.engine == "l2f" else QuadcopterPointCtrlEnv(cfg)
    results: dict[str, object] = {"engine": args.engine, "episodes": args.num_episodes, "seed": SEED}
    lines: list[str] = []
    for path in [Path(name) for name in args.policies] if args.policies else DEFAULTS:
        policy = load_policy(path, Overrides())
        name = f"{path.parent.name}/{path.name}"
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(env, actors_of(policy, Path(folder)), args.num_episodes)
        results[name] = figures
        lines += [*table(name, figures), ""]
    suffix = "" if args.engine == "torch" else f"_{args.engine}"
    write_json(Path(args.output) / f"exported_flight{suffix}.json", results)
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
