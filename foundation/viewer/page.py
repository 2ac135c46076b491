"""The viewer's page: bodies, buttons and plots, served by viser to any browser."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from foundation.core.errors import UserError
from foundation.viewer.stage import Seat, Stage

PORT = 8080
HOST = "127.0.0.1"
"""Nobody else on the network sees the page; over ssh a port is forwarded."""
MISSING = "--viewer needs the package 'viser': pip install -e '.[viewer]' in the clone's folder"
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#f0e442")
"""Of lines, after Okabe and Ito: told apart by the colour-blind."""
_MAX_LINES = 8
"""Observations that share a plot."""
_PLOT_INTERVAL = 0.2
"""Time between two updates of the plots [s]."""
_DASH = (6, 4)


def check_viewer(port: int) -> None:
    """Refuse, before anything is loaded, what would only fail later.

    Raises:
        UserError: If viser is missing, or the port is in use.
    """
    if importlib.util.find_spec("viser") is None:
        raise UserError(MISSING)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError) as error:
            why = getattr(error, "strerror", None) or "a port is from 1 to 65535"
            raise UserError(
                f"--viewer_port {port}: {why}; name another one, such as --viewer_port {PORT + 1}"
            ) from None


class ViewerPage:
    """Draws a stage, and does what its buttons ask for.

    The buttons' callbacks run in threads of the server; they only leave a note, on which :meth:`tick` acts.

    Args:
        stage: What is watched.
        title: Heading of the page's panel.
        names: Names of the plotted observations; those without one are numbered.
        port: Where it is served.
    """

    def __init__(self, stage: Stage, title: str, names: Sequence[str], port: int = PORT):
        self.stage = stage
        with contextlib.redirect_stdout(io.StringIO()):  # its own banner names an address that ssh does not forward
            self.server: Any = importlib.import_module("viser").ViserServer(HOST, port, title, verbose=False)
        self.url = f"http://localhost:{port}"
        self.is_paused = False
        self._wanted: list[Callable[[], None]] = []
        """What was asked for since the last tick."""
        self._frames: dict[tuple[str, str], Any] = {}
        self._names = list(names)
        self._plotted = time.monotonic()
        stage.restart()
        self._add_scene()
        self._add_controls()
        self._add_plots()
        self.draw()

    # -- what is shown -----------------------------------------------------------------------------------------------

    def _add_scene(self) -> None:
        """Add the bodies of every policy, side by side."""
        scene = self.server.scene
        scene.set_up_direction("+z")
        span = self._span()
        for place, seat in enumerate(self.stage.seats):
            root = f"/{seat.name}"
            scene.add_frame(root, show_axes=False, position=(0.0, 1.3 * span * place, 0.0))
            scene.add_grid(
                f"{root}/floor", span, span, cell_size=span / 10, section_size=span / 2, position=(0.0, 0.0, -span / 2)
            )
            scene.add_label(f"{root}/name", seat.name, position=(0.0, 0.0, 0.55 * span))
            for name, shapes in self.stage.bodies.items():
                self._frames[seat.name, name] = scene.add_frame(f"{root}/{name}", show_axes=False)
                for number, shape in enumerate(shapes):
                    add_shape(scene, f"{root}/{name}/{number}", *shape)
        middle = 0.65 * span * (len(self.stage.seats) - 1)
        self.server.initial_camera.position = (1.7 * span, middle, 0.6 * span)
        self.server.initial_camera.look_at = (0.0, middle, 0.0)

    def _span(self) -> float:
        """Width of the floor [m]: what the bodies' starts need, from the first poses."""
        reach = [abs(value) for seat in self.stage.seats for pose in seat.poses.values() for value in pose[:3]]
        return max(1.5, 2.2 * max(reach, default=0.0))

    def _add_controls(self) -> None:
        gui = self.server.gui
        self._status = gui.add_markdown("")
        self._pause = gui.add_button("Pause")
        self._pause.on_click(lambda _: self._ask(self.toggle_pause))
        gui.add_button("One step").on_click(lambda _: self._ask(self.one_step))
        gui.add_button("New episode").on_click(lambda _: self._ask(self.stage.restart))
        self._speed = gui.add_slider("speed [x real time]", 0.1, 2.0, 0.1, 1.0)
        if self.stage.can_push:
            self._push_speed = gui.add_slider("push [m/s]", 0.1, 3.0, 0.1, 0.5)
            gui.add_button("Push").on_click(lambda _: self._ask(lambda: self.stage.push(self._push_speed.value)))
        self._noise = gui.add_slider("noise [% of std]", 0.0, 100.0, 1.0, 0.0)
        self._noise.on_update(lambda _: self._ask(lambda: self.stage.set_noise(self._noise.value)))

    def _add_plots(self) -> None:
        gui = self.server.gui
        seats = self.stage.seats
        number = len(seats[0].actor.act(self.stage.envs[0].get_observations())[0].flatten())
        seats[0].actor.reset()
        series: list[dict[str, Any]] = [{"label": "time [s]"}]
        for place, seat in enumerate(seats):
            dashed = place == 0 and len(seats) > 1
            series += [_series(f"{seat.name} {index}", index, dashed) for index in range(number)]
        self._actions = gui.add_uplot(_empty(len(series)), tuple(series), title="Actions", aspect=1.6, scales=_TIME)
        self._columns: list[int] = []
        self._observations: Any = None
        size = 0 if self.stage.selector is None else self._observed_size()
        if size == 0:
            return
        self._names += [f"observation {index}" for index in range(len(self._names), size)]
        groups = [list(range(size))[begin : begin + _MAX_LINES] for begin in range(0, size, _MAX_LINES)]
        self._groups = {f"{g[0]}-{g[-1]}: {self._names[g[0]]} ... {self._names[g[-1]]}": g for g in groups}
        self._group = gui.add_dropdown("observations", tuple(self._groups))
        self._group.on_update(lambda _: self._ask(lambda: self.show_observations(self._group.value)))
        self.show_observations(self._group.value)

    def _observed_size(self) -> int:
        assert self.stage.selector is not None
        return int(self.stage.selector(self.stage.envs[-1].get_observations())[0].numel())

    def show_observations(self, label: str) -> None:
        """Plot a group of observations of the policy that was last named."""
        self._columns = self._groups[label]
        if self._observations is not None:
            self._observations.remove()
        named = [_series(self._names[column], place, False) for place, column in enumerate(self._columns)]
        series = ({"label": "time [s]"}, *named)
        title = f"Observations of the {self.stage.seats[-1].name}"
        self._observations = self.server.gui.add_uplot(
            _empty(len(series)), series, title=title, aspect=1.6, scales=_TIME
        )

    # -- what is asked for -------------------------------------------------------------------------------------------

    def _ask(self, action: Callable[[], None]) -> None:
        self._wanted.append(action)

    def toggle_pause(self) -> None:
        """Pause, or go on."""
        self.is_paused = not self.is_paused
        self._pause.label = "Go on" if self.is_paused else "Pause"

    def one_step(self) -> None:
        """Pause, and advance by one env step."""
        if not self.is_paused:
            self.toggle_pause()
        self.stage.step()

    def tick(self) -> None:
        """Do what was asked for, advance unless paused, and draw."""
        while self._wanted:
            self._wanted.pop(0)()
        if not self.is_paused:
            self.stage.step()
        self.draw()

    def draw(self) -> None:
        """Move the bodies to where they are now; the plots follow a few times a second."""
        with self.server.atomic():
            for seat in self.stage.seats:
                for name, pose in seat.poses.items():
                    frame = self._frames[seat.name, name]
                    if np.isfinite(pose).all():
                        frame.position = tuple(pose[:3])
                        frame.wxyz = tuple(pose[3:])
            if time.monotonic() - self._plotted >= _PLOT_INTERVAL:
                self._plotted = time.monotonic()
                self._plot()

    def _plot(self) -> None:
        stage = self.stage
        self._status.content = f"{stage.step_number * stage.step_dt:.2f} s  \n" + "  \n".join(
            map(_line_of, stage.seats)
        )
        times = np.array(stage.times)
        if not len(times):
            return
        acted = [np.array(seat.actions).T for seat in stage.seats]
        self._actions.data = (times, *np.concatenate(acted))
        if self._observations is not None:
            observed = np.array(stage.seats[-1].observed).T
            self._observations.data = (times, *observed[self._columns])

    def run(self, poll: Callable[[], None]) -> None:
        """Serve until ``poll`` raises.

        Args:
            poll: Called at every tick.
        """
        due = time.monotonic()
        while True:
            poll()
            self.tick()
            due = max(due + self.stage.step_dt / self._speed.value, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))

    def close(self) -> None:
        """Stop serving."""
        with contextlib.redirect_stdout(io.StringIO()):
            self.server.stop()


_TIME = {"x": {"time": False}}
"""The first column of a plot is no date."""


def _empty(number: int) -> tuple[np.ndarray, ...]:
    return tuple(np.zeros(1) for _ in range(number))


def _series(label: str, place: int, dashed: bool) -> dict[str, Any]:
    line: dict[str, Any] = {"label": label, "stroke": _COLOURS[place % len(_COLOURS)], "width": 1.5}
    return line | {"dash": _DASH} if dashed else line


def _line_of(seat: Seat) -> str:
    return f"**{seat.name}**: return {seat.total:.1f}{', ended' if seat.has_ended else ''}"


def add_shape(scene: Any, name: str, kind: str, size: Sequence[float], position: Sequence[float], colour: str) -> None:
    """Add a shape of a body.

    Args:
        scene: viser's.
        name: Place in its tree.
        kind: See :class:`foundation.engines.base.Viewable`; so are the others.
        size: See there.
        position: See there.
        colour: See there.
    """
    place = tuple(position)
    rgb = tuple(int(colour[begin : begin + 2], 16) for begin in (1, 3, 5))
    if kind == "box":
        scene.add_box(name, rgb, tuple(size), position=place)
    elif kind == "sphere":
        scene.add_icosphere(name, size[0], rgb, position=place)
    elif kind == "cylinder":
        scene.add_cylinder(name, size[0], size[1], rgb, position=place)
    elif kind == "line":
        ends = np.array([[[0.0, 0.0, 0.0], list(size[:3])]])
        scene.add_line_segments(name, ends, rgb, thickness=size[3], position=place)
    else:
        raise UserError(f"view_bodies: '{kind}' is no kind of shape; valid are: box, cylinder, line, sphere")
