"""The viewer: what is drawn, what its buttons do, and what it refuses; viser itself is played by a recorder."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensordict import TensorDict

from foundation.core.errors import UserError
from foundation.engines.base import is_viewable
from foundation.policies.actors import ZeroActor
from foundation.policies.obs_groups import ObsSelector
from foundation.rsl_rl import play
from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv
from foundation.viewer.page import ViewerPage, check_viewer
from foundation.viewer.stage import Stage


class Handle(SimpleNamespace):
    """Anything that was added: keeps what is assigned, and the callback."""

    def on_click(self, callback: Any) -> None:
        self.callback = callback

    on_update = on_click

    def remove(self) -> None:
        self.removed = True


class Recorder:
    """Takes any ``add_...`` of viser's scene or panel, and keeps handles by their first argument."""

    def __init__(self) -> None:
        self.added: dict[str, Handle] = {}

    def __getattr__(self, name: str) -> Any:
        def add(key: Any = "", *args: Any, **options: Any) -> Handle:
            handle = Handle(kind=name, args=args, value=_first_value(name, args), **options)
            self.added[options.get("title") or str(key)] = handle
            return handle

        return add


def _first_value(name: str, args: tuple) -> Any:
    if name == "add_slider":
        return args[-1]
    return args[0][0] if name == "add_dropdown" else None


class Server:
    """In the place of ``viser.ViserServer``."""

    def __init__(self, host: str, port: int, label: str, verbose: bool):
        self.scene, self.gui = Recorder(), Recorder()
        self.initial_camera = SimpleNamespace()
        self.stopped = False

    def atomic(self) -> Any:
        import contextlib

        return contextlib.nullcontext()

    def stop(self) -> None:
        self.stopped = True


def quadrotor() -> QuadcopterPointCtrlEnv:
    cfg = QuadcopterPointCtrlEnvCfg()
    cfg.scene.num_envs = 1
    return QuadcopterPointCtrlEnv(cfg)


def two_seats(seed: int = 5) -> Stage:
    actors = {"teacher": ZeroActor(4), "student": ZeroActor(4)}
    return Stage(actors, [quadrotor(), quadrotor()], ObsSelector(["policy"]), seed)


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> ViewerPage:
    monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=Server))
    return ViewerPage(two_seats(), "task", ["position error x [m]"])


def test_both_begin_in_the_same_state_and_stay_together():
    """Two policies with the same actions fly the same way, from one start; the next episode has another."""
    stage = two_seats()
    stage.restart()
    first = stage.seats[0].poses["vehicle"]
    assert first == stage.seats[1].poses["vehicle"]
    for _ in range(20):
        stage.step()
    assert stage.seats[0].poses == stage.seats[1].poses != {"vehicle": first}
    stage.restart()
    assert stage.seats[0].poses["vehicle"] != first


def test_a_push_changes_the_velocity_by_its_speed():
    """Every vehicle's velocity changes at once by a vector of that length, the same for all."""
    stage = two_seats()
    stage.restart()
    before = [env.state[3:6].clone() for env in stage.envs]
    stage.push(0.7)
    kicks = [env.state[3:6] - old for env, old in zip(stage.envs, before, strict=True)]
    assert kicks[0].norm().item() == pytest.approx(0.7, rel=1e-5)
    assert torch.equal(kicks[0], kicks[1])


def test_an_episode_that_ends_waits_for_the_other():
    """A vehicle that is pushed beyond its limits stays where it is; once both have ended, both begin again."""
    stage = two_seats()
    stage.restart()
    stage.envs[0].env.push(torch.tensor([[100.0, 0.0, 0.0]]))
    stage.step()
    assert [seat.has_ended for seat in stage.seats] == [True, False]
    waiting = stage.seats[0].poses["vehicle"]
    stage.step()
    assert stage.seats[0].poses["vehicle"] == waiting
    assert stage.seats[1].total != 0.0
    stage.envs[1].env.push(torch.tensor([[100.0, 0.0, 0.0]]))
    stage.step()
    assert all(seat.has_ended for seat in stage.seats)
    stage.step()
    assert stage.step_number == 0 and not any(seat.has_ended for seat in stage.seats)


def test_noise_is_seen_by_both_alike():
    """The slider's noise moves the observations of both by the same amounts; at 0 they are clean again."""
    stage = two_seats()
    stage.measure_scales()
    stage.restart()
    stage.set_noise(50.0)
    stage.step()
    noisy = [env.get_observations()["policy"] for env in stage.envs]
    clean = stage.envs[0].env.get_observations()["policy"]
    assert torch.equal(noisy[0], noisy[1]) and not torch.equal(noisy[0], clean)
    stage.set_noise(0.0)
    stage.step()
    assert torch.equal(stage.envs[0].get_observations()["policy"], stage.envs[0].env.get_observations()["policy"])


def test_both_vehicles_are_drawn_where_they_are(page: ViewerPage):
    """Each policy has a vehicle of four arms and four rotors, and a target, at the simulation's poses."""
    added = page.server.scene.added
    for seat in page.stage.seats:
        assert sum(name.startswith(f"/{seat.name}/vehicle/") for name in added) == 8
        assert added[f"/{seat.name}/target/0"].kind == "add_icosphere"
        page.tick()
        frame = added[f"/{seat.name}/vehicle"]
        assert [*frame.position, *frame.wxyz] == seat.poses["vehicle"]


def test_the_buttons_do_what_they_say(page: ViewerPage):
    """Pause stops the clock, one step advances by one, a new episode begins at 0, a push moves the vehicle."""
    gui = page.server.gui.added
    page.tick()
    gui["Pause"].callback(None)
    page.tick()
    page.tick()
    assert (page.is_paused, page.stage.step_number, gui["Pause"].label) == (True, 1, "Go on")
    gui["One step"].callback(None)
    page.tick()
    assert page.stage.step_number == 2
    velocity = page.stage.envs[1].state[3:6].clone()
    gui["Push"].callback(None)
    page.tick()
    assert (page.stage.envs[1].state[3:6] - velocity).norm().item() == pytest.approx(0.5, rel=1e-5)
    gui["noise [% of std]"].callback(None)
    gui["New episode"].callback(None)
    page.tick()
    assert page.stage.step_number == 0


def test_actions_of_both_and_the_students_observations_are_plotted(page: ViewerPage):
    """A curve for each action of each policy, and for each observation of the chosen group, over the same times."""
    for _ in range(3):
        page.tick()
    page._plotted = float("-inf")
    page.tick()
    times, *actions = page.server.gui.added["Actions"].data
    assert times.tolist() == pytest.approx([0.0, 0.01, 0.02, 0.03]) and len(actions) == 8
    plot = page.server.gui.added["Observations of the student"]
    assert len(plot.data) == 9 and plot.data[1][-1] == pytest.approx(page.stage.seats[1].observed[-1][0])
    page.show_observations(list(page._groups)[-1])
    assert plot.removed and len(page.server.gui.added["Observations of the student"].args[0]) == 3


def test_closing_stops_the_server(page: ViewerPage):
    """Whatever ends the loop, the port is free again."""

    def poll() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        page.run(poll)
    page.close()
    assert page.server.stopped


class Flat:
    """An environment without geometry."""

    num_envs, num_actions, max_episode_length, device, cfg = 1, 1, 5, "cpu", None

    def get_observations(self) -> TensorDict:
        return TensorDict({"policy": torch.zeros(1, 1)}, batch_size=[1])


def test_a_task_without_geometry_is_one_line():
    """It is said what it lacks, by the names that a task gives them."""
    assert not is_viewable(Flat())
    with pytest.raises(UserError, match="Flat has no geometry: give it 'view_bodies' and 'view_poses"):
        Stage({"student": ZeroActor(1)}, [Flat()], None, 0)


def test_a_shape_of_another_kind_is_named(monkeypatch: pytest.MonkeyPatch):
    """The valid kinds are listed."""
    monkeypatch.setitem(sys.modules, "viser", SimpleNamespace(ViserServer=Server))
    env = quadrotor()
    monkeypatch.setattr(type(env), "view_bodies", {"vehicle": [("cone", (1.0,), (0.0, 0.0, 0.0), "#000000")]})
    with pytest.raises(UserError, match="'cone' is no kind of shape; valid are: box, cylinder, line, sphere"):
        ViewerPage(Stage({"zero": ZeroActor(4)}, [env], None, 0), "task", [])


def test_a_missing_package_and_a_port_in_use_are_one_line_each(monkeypatch: pytest.MonkeyPatch):
    """Both are said before anything is loaded."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install -e '.\[viewer\]'"):
        check_viewer(8080)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(UserError, match=f"--viewer_port {port}: Address already in use; name another"):
            check_viewer(port)
    check_viewer(port)
    with pytest.raises(UserError, match="a port is from 1 to 65535"):
        check_viewer(70_000)


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (["--viewer_port", "8123"], "--viewer_port 8123 has no effect without --viewer"),
        (["--viewer", "--json", "x.json"], "measures nothing: leave --json out"),
        (["--viewer", "--robustness"], "measures nothing: leave --robustness out"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(typed: list[str], said: str):
    """A figure that was asked for is never silently missing."""
    with pytest.raises(UserError, match=said):
        play.main(["--task", "Isaac-Quadcopter-Point-Ctrl-v0", "--agent", "zero", *typed])
