"""Drawing of a fleet: a grid of small 3-D scenes, in software, so that it works off-screen everywhere."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND = (247, 248, 250)
_PANEL = (255, 255, 255)
_GRID = (223, 227, 233)
_BOX = (188, 195, 206)
_TEXT = (38, 45, 58)
_MUTED = (120, 129, 144)
_TARGET = (214, 64, 69)
_FRONT = (232, 129, 29)
_REAR = (45, 90, 160)
_TRAIL = np.array((58, 134, 220))
_AXES = ((214, 64, 69), (56, 158, 90), (45, 110, 220))
_SCALE = 2
"""Supersampling: drawn at twice the size and reduced, which smooths every edge."""


class FleetRenderer:
    """Draws vehicles, their trails and their targets, one panel each."""

    def __init__(
        self,
        num_shown: int,
        extent: np.ndarray,
        arm_length: np.ndarray,
        resolution: tuple[int, int] = (960, 720),
        trail_points: int = 50,
        other_kind: Literal["target", "pursuer"] | None = None,
        share_shown: float = 0.65,
        image_title: str = "",
    ):
        """Lay out the panels.

        Args:
            num_shown: Vehicles to show.
            extent: Position limit of each vehicle [m]. Shape: (num_envs,).
            arm_length: Of each vehicle [m]. Shape: (num_envs,).
            resolution: Width and height [px]; made even, as video needs.
            trail_points: Length of the trails, of which every third draw adds one.
            other_kind: What moves beside each vehicle, if anything: a target, drawn as a ring, or a pursuer, drawn as a
                ball with a warning colour. None: the target is the panel's centre.
            share_shown: Half-width of the view, of ``extent``; 0.65 where starts are within half of it.
            image_title: What is written above each vehicle's camera image, which is shown beside the scene; empty: none
                is.
        """
        self.num_shown = num_shown
        self.width, self.height = (max(64, int(side)) // 2 * 2 for side in resolution)
        self._columns = math.ceil(math.sqrt(num_shown))
        self._rows = math.ceil(num_shown / self._columns)
        self._other_kind = other_kind
        self._image_title = image_title
        self._span = share_shown * np.asarray(extent, dtype=float)[:num_shown]
        arms = np.asarray(arm_length, dtype=float)[:num_shown]
        self._arms = np.maximum(arms, 0.16 * self._span)
        self._trails: list[deque[np.ndarray]] = [deque(maxlen=trail_points) for _ in range(num_shown)]
        self._other_trails: list[deque[np.ndarray]] = [deque(maxlen=trail_points) for _ in range(num_shown)]
        self._clock = np.full(num_shown, np.inf)
        self._draws = 0
        self._backdrop: Image.Image | None = None
        panel = min(self.width / self._columns, self.height / self._rows)
        self._line_height = int(_SCALE * max(11, min(18, panel / 16)))
        """Of text [pixels of the canvas]."""
        self._font = ImageFont.load_default(size=self._line_height)
        self._camera = _camera(azimuth=math.radians(-62), elevation=math.radians(24))

    def draw(
        self,
        states: np.ndarray,
        seconds: np.ndarray,
        others: np.ndarray | None = None,
        solids: Mapping[str, np.ndarray] | None = None,
        images: np.ndarray | None = None,
    ) -> np.ndarray:
        """Draw one frame.

        Args:
            states: Packed states: position, velocity, rates, quaternion, rotors. Shape: (num_shown, 17).
            seconds: Time since each episode began [s]; when it falls, the trail is cleared. Shape: (num_shown,).
            others: Positions of what moves beside the vehicles, where something does [m]. Shape: (num_shown, 3).
            solids: Kind -> solids around each vehicle, as ``foundation.tasks.camera.scene.Scene`` has them. Shape:
                (num_shown, num_solids, numbers of a solid).
            images: What each vehicle's camera sees, uint8. Shape: (num_shown, rows, columns, 3).

        Returns:
            Shape: (height, width, 3), uint8.
        """
        if self._backdrop is None:
            self._backdrop = self._draw_backdrop()
        image = self._backdrop.copy()
        canvas = ImageDraw.Draw(image)
        self._draws += 1
        for i in range(self.num_shown):
            if seconds[i] < self._clock[i]:
                self._trails[i].clear()
                self._other_trails[i].clear()
            self._clock[i] = seconds[i]
            if self._draws % 3 == 0 or not self._trails[i]:
                self._trails[i].append(states[i, :3].copy())
                if others is not None:
                    self._other_trails[i].append(others[i].copy())
            around = {kind: rows[i] for kind, rows in (solids or {}).items()}
            self._panel(canvas, i, states[i], float(seconds[i]), None if others is None else others[i], around)
            if images is not None:
                self._show_image(image, canvas, i, images[i])
        return np.asarray(image.resize((self.width, self.height), Image.Resampling.BOX))

    def _frame(self, i: int) -> tuple[float, float, float, float]:
        """Return left, top, width and height of a panel [px]."""
        width = self.width * _SCALE / self._columns
        height = self.height * _SCALE / self._rows
        return (i % self._columns) * width, (i // self._columns) * height, width, height

    @property
    def _scene_share(self) -> float:
        """Share of a panel's width that the scene has; the rest is the camera's."""
        return 0.58 if self._image_title else 1.0

    def _show_image(self, image: Image.Image, canvas: ImageDraw.ImageDraw, i: int, seen: np.ndarray) -> None:
        """Paste what a vehicle's camera sees beside its scene, its pixels visible."""
        left, top, width, height = self._frame(i)
        rows, columns = seen.shape[:2]
        gap = 12 * _SCALE
        room = (1.0 - self._scene_share) * width - gap
        scale = min(room / columns, 0.7 * height / rows)
        size = (max(1, round(scale * columns)), max(1, round(scale * rows)))
        x = round(left + width - gap - size[0])
        y = round(top + (height - size[1]) / 2)
        image.paste(Image.fromarray(seen).resize(size, Image.Resampling.NEAREST), (x, y))
        canvas.rectangle((x - 1, y - 1, x + size[0], y + size[1]), outline=_BOX, width=_SCALE)
        canvas.text((x, y - 1.4 * self._line_height), self._image_title, fill=_MUTED, font=self._font)

    def _view(self, i: int) -> _View:
        """Return the projection of a panel."""
        left, top, width, height = self._frame(i)
        width *= self._scene_share
        return _View(self._camera, self._span[i], (left + width / 2, top + height * 0.46), min(width, height) * 0.41)

    def _draw_backdrop(self) -> Image.Image:
        """Draw what never changes: panels, floors, axes, targets."""
        image = Image.new("RGB", (self.width * _SCALE, self.height * _SCALE), _BACKGROUND)
        canvas = ImageDraw.Draw(image)
        gap = 3 * _SCALE
        for i in range(self.num_shown):
            left, top, width, height = self._frame(i)
            frame = (left + gap, top + gap, left + width - gap, top + height - gap)
            canvas.rounded_rectangle(frame, radius=8 * _SCALE, fill=_PANEL, outline=_GRID, width=_SCALE)
            _scene(canvas, self._view(i), self._span[i])
            if self._other_kind is None:
                _target(canvas, self._view(i), np.zeros(3))
        return image

    def _panel(
        self,
        canvas: ImageDraw.ImageDraw,
        i: int,
        state: np.ndarray,
        seconds: float,
        other: np.ndarray | None,
        solids: Mapping[str, np.ndarray],
    ) -> None:
        """Draw one vehicle, and what moves beside it, into its panel."""
        left, top, width, _ = self._frame(i)
        place = (left + 12 * _SCALE, top + 10 * _SCALE)
        if not np.isfinite(state).all():
            canvas.text(place, "state is not finite", fill=_TARGET, font=self._font)
            return
        view = self._view(i)
        ahead = _solids(canvas, view, solids, state[:3])
        self._trail(canvas, view, self._trails[i], state[:3], _TRAIL)
        if other is None:
            _vehicle(canvas, view, state, self._arms[i])
        else:
            self._trail(canvas, view, self._other_trails[i], other, np.array(_TARGET))
            behind = float((other - state[:3]) @ view.camera[2]) > 0.0
            if behind:
                self._other(canvas, view, other)
            _vehicle(canvas, view, state, self._arms[i])
            if not behind:
                self._other(canvas, view, other)
        for draw in ahead:
            draw()
        error = float(np.linalg.norm(state[:3] if other is None else state[:3] - other))
        label = f"{100 * error:.1f} cm" if error < 1 else f"{error:.2f} m"
        canvas.text(place, f"t = {seconds:.2f} s", fill=_MUTED, font=self._font)
        end = left + width - 12 * _SCALE - canvas.textlength(label, font=self._font)
        canvas.text((end, place[1]), label, fill=_TEXT, font=self._font)

    def _other(self, canvas: ImageDraw.ImageDraw, view: _View, position: np.ndarray) -> None:
        """Draw what moves beside a vehicle."""
        draw = _target if self._other_kind == "target" else _pursuer
        draw(canvas, view, position)

    @staticmethod
    def _trail(
        canvas: ImageDraw.ImageDraw, view: _View, past: deque[np.ndarray], now: np.ndarray, base: np.ndarray
    ) -> None:
        """Draw where something was, fading into the past."""
        points = view.project(np.stack([*past, now]))
        for k in range(1, len(points)):
            age = 1 - k / len(points)
            colour = tuple(int(c) for c in base * (1 - 0.8 * age) + 255 * 0.8 * age)
            canvas.line([tuple(points[k - 1]), tuple(points[k])], fill=colour, width=int(2 * _SCALE))


class _View:
    """Perspective projection of one panel."""

    def __init__(self, camera: np.ndarray, span: float, centre: tuple[float, float], radius: float):
        self.camera = camera
        self.span = span
        self.radius = radius
        self.centre = np.array(centre)

    def project(self, points: np.ndarray) -> np.ndarray:
        """Map world points [m] to pixels. Shape: (num, 3) to (num, 2)."""
        x = (points / self.span) @ self.camera.T
        depth = 5.0 / np.clip(5.0 + x[:, 2], 1.0, None)
        return self.centre + self.radius / 1.4 * depth[:, None] * np.stack([x[:, 0], -x[:, 1]], axis=1)


def _camera(azimuth: float, elevation: float) -> np.ndarray:
    """Build rows right, up, away. Shape: (3, 3)."""
    away = -np.array(
        [
            math.cos(elevation) * math.cos(azimuth),
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
        ]
    )
    right = np.cross(away, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    return np.stack([right, np.cross(right, away), away])


def _lines(canvas: ImageDraw.ImageDraw, view: _View, ends: np.ndarray, colour: tuple[int, ...], width: float) -> None:
    """Draw segments. Shape of ``ends``: (num, 2, 3)."""
    pixels = view.project(ends.reshape(-1, 3)).reshape(-1, 4)
    for segment in pixels:
        canvas.line(tuple(segment), fill=colour, width=max(1, round(width)))


def _scene(canvas: ImageDraw.ImageDraw, view: _View, span: float) -> None:
    """Draw the floor and the axes."""
    ticks = np.linspace(-span, span, 7)
    ends = []
    for tick in ticks:
        ends += [[[tick, -span, -span], [tick, span, -span]], [[-span, tick, -span], [span, tick, -span]]]
    _lines(canvas, view, np.array(ends), _GRID, _SCALE)
    corners = np.array([[-span, -span], [span, -span], [span, span], [-span, span]])
    floor = np.concatenate([corners, np.full((4, 1), -span)], axis=1)
    _lines(canvas, view, np.stack([floor, np.roll(floor, -1, axis=0)], axis=1), _BOX, _SCALE)
    origin = np.array([-span, -span, -span])
    for axis, colour in enumerate(_AXES):
        end = origin.copy()
        end[axis] += 0.45 * span
        _lines(canvas, view, np.array([[origin, end]]), colour, 2 * _SCALE)


def _target(canvas: ImageDraw.ImageDraw, view: _View, position: np.ndarray) -> None:
    """Draw a target: a cross in a ring, and its height above the floor."""
    span = view.span
    _drop(canvas, view, position)
    reach = 0.07 * span
    cross = [[position - reach * e, position + reach * e] for e in np.eye(3)]
    _lines(canvas, view, np.array(cross), _TARGET, 1.5 * _SCALE)
    (x, y), r = view.project(position[None])[0], 0.06 * view.radius
    canvas.ellipse((x - r, y - r, x + r, y + r), outline=_TARGET, width=int(1.5 * _SCALE))


def _pursuer(canvas: ImageDraw.ImageDraw, view: _View, position: np.ndarray) -> None:
    """Draw a pursuer: a ball, and its height above the floor."""
    _drop(canvas, view, position)
    (x, y), r = view.project(position[None])[0], 0.05 * view.radius
    canvas.ellipse((x - r, y - r, x + r, y + r), fill=_TARGET)


def _solids(
    canvas: ImageDraw.ImageDraw, view: _View, solids: Mapping[str, np.ndarray], position: np.ndarray
) -> list[Callable[[], None]]:
    """Draw the solids that are farther away than the vehicle, and return what draws the nearer ones, later."""
    nearer = []
    away = view.camera[2]
    entries = [(kind, solid) for kind, rows in solids.items() for solid in rows]
    for kind, solid in sorted(entries, key=lambda entry: -float(entry[1][:3] @ away)):
        draw = partial(_SOLIDS[kind], canvas, view, solid)
        if float((solid[:3] - position) @ away) > 0.0:
            draw()
        else:
            nearer.append(draw)
    return nearer


def _ball(canvas: ImageDraw.ImageDraw, view: _View, solid: np.ndarray) -> None:
    """Draw a sphere: centre (3) and radius."""
    edge = solid[:3] + solid[3] * view.camera[0]
    centre, side = view.project(np.stack([solid[:3], edge]))
    r = float(np.linalg.norm(side - centre))
    canvas.ellipse((centre[0] - r, centre[1] - r, centre[0] + r, centre[1] + r), fill=(232, 112, 108), outline=_TARGET)


def _pillar(canvas: ImageDraw.ImageDraw, view: _View, solid: np.ndarray) -> None:
    """Draw the part of an upright cylinder that is in view: foot (3), radius and height."""
    side = solid[3] * view.camera[0]
    foot = np.array([solid[0], solid[1], max(float(solid[2]), -view.span)])
    head = np.array([solid[0], solid[1], min(float(solid[2] + solid[4]), view.span)])
    corners = view.project(np.stack([foot - side, foot + side, head + side, head - side]))
    canvas.polygon([tuple(corner) for corner in corners], fill=(214, 219, 227), outline=_BOX)


def _gate(canvas: ImageDraw.ImageDraw, view: _View, solid: np.ndarray) -> None:
    """Draw a frame as two squares: centre (3), yaw, half of its depth, of its side and of its opening's side."""
    left = np.array([-math.sin(solid[3]), math.cos(solid[3]), 0.0])
    up = np.array([0.0, 0.0, 1.0])
    corners = np.array([left + up, left - up, -left - up, -left + up])
    for half in (solid[5], solid[6]):
        ring = solid[:3] + half * corners
        _lines(canvas, view, np.stack([ring, np.roll(ring, -1, axis=0)], axis=1), _FRONT, 2.5 * _SCALE)


_SOLIDS = {"sphere": _ball, "pillar": _pillar, "frame": _gate}


def _drop(canvas: ImageDraw.ImageDraw, view: _View, position: np.ndarray) -> None:
    """Draw the line from a position down to the floor."""
    floor = np.array([position[0], position[1], -view.span])
    _lines(canvas, view, np.array([[floor, position]]), (240, 196, 197), _SCALE)


def _vehicle(canvas: ImageDraw.ImageDraw, view: _View, state: np.ndarray, arm: float) -> None:
    """Draw arms, rotor discs (orange in front), lines as long as the rotors are fast, and the shadow on the floor."""
    position = state[:3]
    rotation = _rotation(state[9:13])
    speeds = state[13:17]
    shadow = position.copy()
    shadow[2] = -view.span
    (x, y), r = view.project(shadow[None])[0], 0.05 * view.radius
    canvas.ellipse((x - r, y - r / 2.4, x + r, y + r / 2.4), fill=(214, 219, 227))
    _lines(canvas, view, np.array([[shadow, position]]), (226, 230, 236), _SCALE)
    angles = np.radians([-45.0, -135.0, 135.0, 45.0])
    body = arm * np.stack([np.cos(angles), np.sin(angles), np.zeros(4)], axis=1)
    hubs = position + body @ rotation.T
    _lines(canvas, view, np.stack([np.broadcast_to(position, hubs.shape), hubs], axis=1), _TEXT, 2.5 * _SCALE)
    turn = np.linspace(0, 2 * math.pi, 25)
    disc = 0.52 * arm * np.stack([np.cos(turn), np.sin(turn), np.zeros_like(turn)], axis=1) @ rotation.T
    away = view.camera[2]
    for k in np.argsort(-(hubs @ away)):
        base = np.array(_FRONT if k in (0, 3) else _REAR)
        pale = tuple(int(c) for c in base * 0.45 + 255 * 0.55)
        ring = [tuple(p) for p in view.project(hubs[k] + disc)]
        canvas.polygon(ring, fill=pale)
        canvas.line(ring, fill=tuple(base), width=int(1.5 * _SCALE))
        thrust = 0.9 * arm * float(speeds[k]) * rotation[:, 2]
        _lines(canvas, view, np.array([[hubs[k], hubs[k] + thrust]]), tuple(base), 1.5 * _SCALE)


def _rotation(q: np.ndarray) -> np.ndarray:
    """Rotation matrix, body to world, of a unit quaternion (w, x, y, z). Shape: (3, 3)."""
    w, x, y, z = q
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )
