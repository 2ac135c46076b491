"""Observation groups that are made for the student: columns, noise, delay, lost readings, history."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict
from toy_env import CountingEnv, RegulatorEnv

from foundation.config.derived_cfg import DerivedGroup, DerivedObsCfg, check_derived, read_derived
from foundation.config.distillation_cfg import DistillationCfg
from foundation.config.values import apply_values
from foundation.core.errors import UserError
from foundation.engines import engine_class
from foundation.engines.base import EnvCapabilities, LaunchRequest, VecEnv, saves_state
from foundation.engines.derived_groups import DerivedGroups

TORCH_TASK = "Isaac-Quadcopter-Point-Ctrl-v0"
LENGTHS = [[4, 7], [6, 3], [7, 7]]


def derive(env: Any, task: str = "Counting-v0", seed: int = 0, **settings: Any) -> DerivedGroups:
    """Derive one group, ``student``, with settings by their keys."""
    cfg = DistillationCfg()
    apply_values(cfg, {"obs": {"student": {"from": "policy", **settings}}}, "distill")
    check_derived(cfg.obs)
    return DerivedGroups(env, cfg.obs, task, seed)


def roll(env: Any, steps: int, seed: int = 3) -> Iterator[tuple[TensorDict, torch.Tensor, dict[str, Any]]]:
    """Step an environment with actions of a seed, from its current observations on."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        actions = torch.rand(env.num_envs, env.num_actions, generator=generator) * 2 - 1
        obs, _, dones, extras = env.step(actions)
        yield obs, dones.bool(), extras


def readings_of_episodes(env: CountingEnv, steps: int) -> list[list[list[list[float]]]]:
    """Return the readings of ``policy`` by step, environment and age: those of the episode so far, oldest first."""
    past = [[row] for row in env.reset(0)["policy"].tolist()]
    shown = [[list(own) for own in past]]
    for obs, dones, _ in roll(env, steps):
        for index, row in enumerate(obs["policy"].tolist()):
            past[index] = [row] if bool(dones[index]) else [*past[index], row]
        shown.append([list(own) for own in past])
    return shown


def test_history_and_delay_begin_anew_with_each_episode() -> None:
    """A frame of history h and delay d is the reading of h + d steps ago, or the episode's first one."""
    history, delay = 3, 2
    told = readings_of_episodes(CountingEnv(LENGTHS, 7), 25)
    env = derive(CountingEnv(LENGTHS, 7), history=history, delay=delay)
    shown = [env.reset(0)["student"], *(obs["student"] for obs, _, _ in roll(env, 25))]
    for step, got in enumerate(shown):
        for index, past in enumerate(told[step]):
            ages = [delay + history - 1 - frame for frame in range(history)]
            expected = [number for age in ages for number in past[max(0, len(past) - 1 - age)]]
            assert got[index].tolist() == expected, (step, index)


def test_terms_have_their_own_history_and_delay() -> None:
    """With named terms each term's frames stand side by side, oldest first, each as late as its own delay says."""
    env = CountingEnv(LENGTHS, 7)
    env.observation_terms = {"policy": {"place": 2, "clock": 1}}  # type: ignore[attr-defined]  # a user's attribute
    derived = derive(env, keep=["clock", "place"], history=2, delay={"clock": 1})
    told = readings_of_episodes(CountingEnv(LENGTHS, 7), 20)
    shown = [derived.reset(0)["student"], *(obs["student"] for obs, _, _ in roll(derived, 20))]
    for step, got in enumerate(shown):
        for index, past in enumerate(told[step]):

            def at(age: int, past: list[list[float]] = past) -> list[float]:
                return past[max(0, len(past) - 1 - age)]

            expected = [at(2)[2], at(1)[2], *at(1)[:2], *at(0)[:2]]
            assert got[index].tolist() == expected, (step, index)


def test_rounding_is_to_whole_multiples() -> None:
    """Every column is the nearest multiple of its step; others are left as they are."""
    env = derive(RegulatorEnv(5), quantise={"0": 0.25})
    plain = RegulatorEnv(5)
    plain.reset(1)
    env.reset(1)
    for (obs, _, _), (bare, _, _) in zip(roll(env, 10), roll(plain, 10), strict=True):
        exact = bare["policy"]
        assert torch.equal(obs["student"][:, 0], torch.round(exact[:, 0] * 4) / 4)
        assert torch.equal(obs["student"][:, 1], exact[:, 1])


def test_noise_has_the_asked_deviation_and_no_bias() -> None:
    """Noise on one column has its deviation within four standard errors, zero mean; the other column has none."""
    env = derive(RegulatorEnv(2000), noise={"1": 0.3})
    env.reset(0)
    errors = torch.cat([obs["student"] - obs["policy"] for obs, _, _ in roll(env, 5)])
    assert torch.equal(errors[:, 0], torch.zeros(len(errors)))
    assert abs(float(errors[:, 1].mean())) < 4 * 0.3 / len(errors) ** 0.5
    assert abs(float(errors[:, 1].std()) - 0.3) < 4 * 0.3 / (2 * len(errors)) ** 0.5


def test_noise_of_a_reading_is_drawn_once() -> None:
    """A frame of the history is the very reading that was the newest before, noise included."""
    env = derive(RegulatorEnv(4, 50), noise=0.1, history=2)
    before = env.reset(0)["student"]
    for obs, dones, _ in roll(env, 10):
        same = ~dones
        assert torch.equal(obs["student"][same][:, :2], before[same][:, 2:])
        before = obs["student"]


@pytest.mark.parametrize("lost", ["hold", "zero"])
def test_lost_readings(lost: str) -> None:
    """A lost reading is the last one that came, or zeros, in all columns of its term; an episode's first never is."""
    share = 0.25
    env = derive(RegulatorEnv(300, 12), dropout=share, lost=lost)
    before = env.reset(0)["student"]
    assert torch.equal(before, env.get_observations()["policy"])
    missing, total = 0, 0
    for obs, dones, _ in roll(env, 40):
        came = (obs["student"] == obs["policy"]).all(dim=-1)
        other = before if lost == "hold" else torch.zeros_like(before)
        assert torch.equal(obs["student"][~came], other[~came])
        assert bool(came[dones].all())
        missing += int((~came & ~dones).sum())
        total += int((~dones).sum())
        before = obs["student"]
    assert abs(missing / total - share) < 4 * (share * (1 - share) / total) ** 0.5


def test_same_seed_same_bits_and_another_seed_others() -> None:
    """reset(seed) seeds noise and lost readings too, whatever was drawn before."""
    settings = {"noise": 0.1, "dropout": 0.2, "history": 2}
    env = derive(RegulatorEnv(6), **settings)

    def rollout(seed: int) -> torch.Tensor:
        first = env.reset(seed)["student"]
        return torch.stack([first, *(obs["student"] for obs, _, _ in roll(env, 20))])

    first = rollout(5)
    other = rollout(6)
    assert torch.equal(rollout(5), first)
    assert not torch.equal(other, first)


def test_global_random_numbers_are_left_alone() -> None:
    """Noise comes from a generator of its own: torch's global one is where it was."""
    env = derive(RegulatorEnv(6), noise=0.1, dropout=0.2)
    env.reset(0)
    before = torch.get_rng_state()
    for _ in roll(env, 5):
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_state_goes_on_exactly() -> None:
    """An environment restored in the middle of its episodes shows the bits that the other one goes on to show."""
    settings = {"noise": 0.1, "dropout": 0.3, "delay": 2, "history": 3}
    env = derive(RegulatorEnv(6), **settings)
    env.reset(9)
    for _ in roll(env, 7, seed=1):
        pass
    assert saves_state(env)
    state = env.state_dict()
    now = env.get_observations()["student"].clone()
    on = [obs["student"] for obs, _, _ in roll(env, 15, seed=2)]
    again = derive(RegulatorEnv(6), seed=77, **settings)
    again.load_state_dict(state)
    assert torch.equal(again.get_observations()["student"], now)
    assert all(torch.equal(a, b["student"]) for a, (b, _, _) in zip(on, roll(again, 15, seed=2), strict=True))


def test_an_environment_without_state_has_none_with_derived_groups_either() -> None:
    """Whether an environment can be saved is what it was without the wrapper."""
    assert not saves_state(derive(CountingEnv(LENGTHS, 7)))
    assert saves_state(derive(RegulatorEnv(2)))


class Finals(CountingEnv):
    """Also gives the last observations of the episodes that ended, which differ from all others."""

    def step(self, actions: torch.Tensor) -> tuple[TensorDict, torch.Tensor, torch.Tensor, dict[str, Any]]:
        before = torch.stack([torch.arange(self.num_envs), self.episode, self.episode_length_buf + 1], dim=-1).float()
        obs, rewards, dones, extras = super().step(actions)
        if dones.any():
            groups = {"policy": before, "privileged": torch.cat([before, actions], dim=-1)}
            extras["final_observations"] = TensorDict(groups, batch_size=[self.num_envs])
        return obs, rewards, dones, extras


def test_final_observations_have_the_history_of_the_episode_that_ended() -> None:
    """The last frame of an episode stands behind the frames before it; the new episode knows nothing of them."""
    env = derive(Finals(LENGTHS, 7), history=2)
    before = env.reset(0)["student"]
    seen = 0
    for obs, dones, extras in roll(env, 20):
        for index in dones.nonzero().flatten().tolist():
            final = extras["final_observations"]
            last = final["policy"][index].tolist()
            assert final["student"][index].tolist() == [*before[index, 3:].tolist(), *last]
            assert obs["student"][index].tolist() == 2 * obs["policy"][index].tolist()
            seen += 1
        before = obs["student"]
    assert seen > 5


def make_env(engine_name: str, task: str, num_envs: int, **settings: Any) -> VecEnv:
    """Make an environment as the commands do, its config changed by settings."""
    engine = engine_class(engine_name)()

    def configure(env_cfg: Any, agent_cfg: Any) -> None:
        engine.set_common(env_cfg, num_envs=num_envs, seed=4, device=None)
        apply_values(env_cfg, settings)

    with engine.launch(LaunchRequest(task), configure) as (env_cfg, agent_cfg):
        return engine.make_env(env_cfg, agent_cfg)


def torch_env() -> VecEnv:
    """Make the built-in quadrotor with episodes of 0.3 s."""
    return make_env("torch", TORCH_TASK, 8, episode_length_s=0.3)


def gymnasium_env() -> VecEnv:
    """Make gymnasium's pendulum with episodes of 12 steps."""
    return make_env("gymnasium", "Pendulum-v1", 3, max_episode_steps=12)


@pytest.mark.parametrize(("make", "task"), [(torch_env, TORCH_TASK), (gymnasium_env, "Pendulum-v1")])
def test_the_environment_is_untouched_to_the_bit(make: Callable[[], VecEnv], task: str) -> None:
    """Whatever the student's corruption, every other group, rewards, dones and final observations are the same bits."""
    derived = derive(make(), task, noise=0.5, dropout=0.5, quantise=0.1, delay=3, history=4)
    plain = make()
    first, bare_first = derived.reset(11), plain.reset(11)
    groups = [str(name) for name in bare_first.keys()]  # noqa: SIM118  # a TensorDict's
    assert all(torch.equal(first[name], bare_first[name]) for name in groups)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    ended = 0
    for _ in range(40):
        actions = [torch.rand(plain.num_envs, plain.num_actions, generator=g) * 2 - 1 for g in generators]
        obs, rewards, dones, extras = derived.step(actions[0])
        bare, bare_rewards, bare_dones, bare_extras = plain.step(actions[1])
        assert all(torch.equal(obs[name], bare[name]) for name in groups)
        assert torch.equal(rewards, bare_rewards)
        assert torch.equal(dones, bare_dones)
        ended += int(dones.sum())
        if "final_observations" in bare_extras:
            final = extras["final_observations"]
            assert all(torch.equal(final[name], bare_extras["final_observations"][name]) for name in groups)
            assert final["student"].shape == obs["student"].shape
    assert ended > 0


def test_terms_of_our_tasks_are_named_by_the_task() -> None:
    """Dropping a term by name leaves the columns of the others, and the record says which those are."""
    env = derive(torch_env(), TORCH_TASK, drop=["velocity_error", "motor_speeds"])
    obs = env.reset(0)
    policy = obs["policy"]
    assert torch.equal(obs["student"], torch.cat([policy[:, :12], policy[:, 15:22]], dim=-1))
    group = EnvCapabilities.of(env).derived_groups["student"]
    assert [(t.name, len(t.columns), t.unit) for t in group.terms][:3] == [
        ("position_error", 3, "m"),
        ("orientation", 9, ""),
        ("body_rates", 3, "rad/s"),
    ]
    assert read_derived({"student": group.to_plain()}, "x")["student"] == group


class Managed(RegulatorEnv):
    """Has an observation manager, as Isaac Lab's and mjlab's manager-based environments have."""

    def __init__(self, num_envs: int, names: list[str] | None = None):
        super().__init__(num_envs)
        policy = names or ["joint_pos", "joint_vel"]
        self.observation_manager = SimpleNamespace(
            active_terms={"policy": policy, "privileged": [*policy, "clock"]},
            group_obs_term_dim={"policy": [(1,), (1,)], "privileged": [(1,), (1,), (1,)]},
        )


def test_terms_of_an_observation_manager() -> None:
    """Managers name their terms; several groups stand side by side, and a group's name tells their terms apart."""
    env = derive(Managed(3), **{"from": ["policy", "privileged"]}, drop=["policy.joint_vel", "clock"])
    obs = env.reset(0)
    assert torch.equal(obs["student"], torch.cat([obs["policy"][:, :1], obs["privileged"][:, :2]], dim=-1))


def test_recorded_terms_in_another_order_are_put_in_theirs() -> None:
    """A policy whose terms come in another order here is given them in the order of its training."""
    swapped = Managed(3, ["joint_vel", "joint_pos"])
    trained: DerivedGroup = derive(Managed(3)).derived_groups["student"]
    cfg = {"student": DerivedObsCfg(from_="policy")}
    env = DerivedGroups(swapped, cfg, "x", recorded={"student": trained})
    obs = env.reset(0)
    assert torch.equal(obs["student"], obs["policy"].flip(-1))
    other = DerivedObsCfg(from_="policy", drop=["joint_vel"])
    with pytest.raises(UserError, match=r"was trained on joint_pos \(1\), joint_vel \(1\), and here are joint_pos"):
        DerivedGroups(swapped, {"student": other}, "x", recorded={"student": trained})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"drp": ["x"]}, r"unknown key 'distill.obs.student.drp'. Did you mean 'drop' or 'dropout'\?"),
        ({"keep": ["joint_pos"], "drop": ["joint_vel"]}, "obs.student.keep and distill.obs.student.drop are both set"),
        ({"keep": []}, "distill.obs.student.keep is empty"),
        ({"drop": ["joint_pos", "joint_vel"]}, "obs.student.drop leaves nothing of policy"),
        ({"drop": ["joint_poss"]}, r"obs.student.drop: no term 'joint_poss' in policy. Did you mean 'joint_pos'"),
        ({"drop": ["1:5"]}, r"there are no columns '1:5' of policy, which has 2; places are 0 to 1"),
        ({"drop": ["7"]}, "there are no columns '7' of policy, which has 2"),
        ({"keep": ["joint_pos", "0"]}, "obs.student.keep has joint_pos twice"),
        ({"history": 0}, "obs.student.history is 0: it must be from 1"),
        ({"history": 1.5}, "'distill.obs.student.history' is 1.5: it must be"),
        ({"delay": -1}, "obs.student.delay is -1: it must be from 0"),
        ({"noise": -0.1}, "obs.student.noise is -0.1: it must be a finite number, 0 or more"),
        ({"noise": 1e300}, r"obs.student.noise is 1e\+300: it must be a finite number, 0 or more, up to 1e\+30"),
        ({"quantise": {"joint_vel": 1e39}}, r"obs.student.quantise.joint_vel is 1e\+39: it must be a finite number"),
        ({"dropout": 10**400}, "'distill.obs.student.dropout' is 1000.*: it must be a number"),
        ({"noise": {"joint_vl": 0.1}}, r"obs.student.noise: no term 'joint_vl' in policy. Did you mean 'joint_vel'"),
        ({"drop": ["joint_vel"], "noise": {"joint_vel": 1.0}}, "'joint_vel' is not in the group: it was dropped"),
        ({"dropout": 1.0}, "obs.student.dropout is 1: it must be from 0 to less than 1"),
        ({"from": "polcy"}, r"obs.student.from: the environment has no observation group 'polcy'. Did you mean"),
        ({"from": None}, "distill.obs.student.from is missing: name the group"),
    ],
)
def test_bad_input_is_one_clear_line(settings: dict[str, Any], message: str) -> None:
    """Each mistake is named with its key and what to write instead."""
    with pytest.raises(UserError, match=message) as error:
        derive(Managed(2), **settings)
    assert "\n" not in str(error.value)


def test_a_misspelt_group_is_named() -> None:
    """Noise for a group that was never made is a group without a source: the message names the one that was meant."""
    cfg = {"student": DerivedObsCfg(from_="policy"), "studnt": DerivedObsCfg(noise=0.1)}
    with pytest.raises(UserError, match=r"distill.obs.studnt.from is missing.*Did you mean 'student'\?"):
        check_derived(cfg)


def test_a_group_of_the_environment_is_not_replaced() -> None:
    """The name of an environment's own group, which the teacher may read, cannot be taken."""
    with pytest.raises(UserError, match="the environment has a group 'privileged', which the teacher may read"):
        DerivedGroups(RegulatorEnv(2), {"privileged": DerivedObsCfg(from_="policy")}, "x")


def test_an_image_is_refused_with_what_to_use() -> None:
    """Images have no columns: the message says how the student reads them beside the derived group."""

    class Seeing(RegulatorEnv):
        def get_observations(self) -> TensorDict:
            obs = super().get_observations()
            obs["camera"] = torch.zeros(self.num_envs, 1, 8, 8)
            return obs

    cfg = {"student": DerivedObsCfg(from_="camera", history=3)}
    with pytest.raises(UserError, match=r"group 'camera' is an image of shape \(1, 8, 8\).*student with memory"):
        DerivedGroups(Seeing(2), cfg, "x")


@pytest.mark.parametrize("place", ["name", "unit", "frame", "from", "drop", "group"])
def test_a_recorded_name_with_a_terminals_codes_is_refused(place: str) -> None:
    """It would be printed: by ``--describe``, by an export, and where the terms do not fit."""
    evil = "\x1b[31mx"
    term = {"name": "joint_pos", "group": "policy", "columns": [0], "unit": "", "frame": ""}
    settings: dict[str, Any] = {"from": "policy", "drop": []}
    if place in term:
        term[place] = evil
    if place in ("from", "group"):
        settings["from"] = ["policy", evil]
    if place == "drop":
        settings["drop"] = [evil]
    with pytest.raises(UserError, match=r"is corrupt: .*x1b"):
        read_derived({"student": {"settings": settings, "terms": [term]}}, "a file")
    with pytest.raises(UserError, match=r"is corrupt: .*x1b"):
        read_derived({evil: {"settings": {"from": "policy"}, "terms": [{**term, place: "policy"}]}}, "a file")
