"""The ray-caster against closed forms, and what a camera's image is made of."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from foundation.core.errors import UserError
from foundation.tasks.camera.camera import Camera, CameraCfg, check_camera_cfg
from foundation.tasks.camera.scene import Pose, Scene, cast
from foundation.tasks.camera.solids import Rays

CPU = torch.device("cpu")
LEVEL = (1.0, 0.0, 0.0, 0.0)


def column(*values: float) -> torch.Tensor:
    """One environment's vector. Shape: (len(values), 1)."""
    return torch.tensor(values).unsqueeze(1)


def turn(angle: float, axis: int) -> tuple[float, float, float, float]:
    """Quaternion of a rotation about one of the axes."""
    imaginary = [0.0, 0.0, 0.0]
    imaginary[axis] = math.sin(angle / 2)
    return (math.cos(angle / 2), *imaginary)


def depth_of(scene: Scene, position=(0.0, 0.0, 0.0), quaternion=LEVEL, size=(32, 32), fov=math.pi / 2) -> torch.Tensor:
    """Depth image of one camera in the body's centre. Shape: (height, width)."""
    cfg = CameraCfg(image="depth", width=size[0], height=size[1], horizontal_fov=fov, position=(0.0, 0.0, 0.0))
    camera = Camera(cfg, 1, CPU)
    return cast(camera.rays, camera.pose(column(*position), column(*quaternion)), scene)[0][0]


def march(inside, position: torch.Tensor, rotation: torch.Tensor, rays: Rays, longest: float, steps: int = 4000):
    """Depth by stepping along each ray until a point is inside of a solid: an oracle that solves no equation."""
    direction = torch.ones(len(rays.up), len(rays.left), 3)
    direction[..., 1] = rays.left
    direction[..., 2] = rays.up.unsqueeze(1)
    world = direction @ rotation.T
    depth = torch.full(direction.shape[:2], math.inf)
    for step in range(steps, -1, -1):
        t = longest * step / steps
        depth = torch.where(inside(position + t * world), t, depth)
    return depth


def test_the_ground_under_a_tilted_camera_has_the_depth_of_the_closed_form():
    """Pitched down by a, from height h: h / (sin a - v cos a) for a ray of slope v; above the horizon nothing."""
    pitch = 0.4
    depth = depth_of(Scene(ground=torch.tensor([-1.5])), (0.3, -0.2, 0.5), turn(pitch, 1))
    up = torch.tensor([1.0 - (2 * i + 1) / 32 for i in range(32)])
    slope = math.sin(pitch) - up * math.cos(pitch)
    expected = torch.where(slope > 0, 2.0 / slope, math.inf)
    assert torch.allclose(depth, expected.unsqueeze(1).expand(32, 32), rtol=1e-4)


def test_a_sphere_has_the_silhouette_and_the_depth_of_the_closed_form():
    """Radius r at distance d ahead: it covers a disc of f r / sqrt(d^2 - r^2) pixels, and its middle is d - r away."""
    distance, radius, size = 1.2, 0.3, 201
    depth = depth_of(Scene(spheres=torch.tensor([[distance, 0.0, 0.0, radius]]).unsqueeze(-1)), size=(size, size))
    pixels = size / 2 * radius / math.sqrt(distance**2 - radius**2)
    assert depth[100].isfinite().sum().item() == 2 * math.floor(pixels) + 1
    assert depth.isfinite().sum().item() == pytest.approx(math.pi * pixels**2, rel=0.01)
    assert depth[100, 100].item() == pytest.approx(distance - radius, abs=1e-6)


def test_the_face_of_a_box_is_a_rectangle_at_one_depth():
    """A face across the optical axis has one distance to the image plane, and the pixels that its corners span."""
    box = torch.tensor([[2.0, 0.25, 0.0, 0.0, 0.5, 0.75, 0.375]]).unsqueeze(-1)
    depth = depth_of(Scene(boxes=box), size=(48, 48))
    face = depth.isfinite()
    assert torch.allclose(depth[face], torch.tensor(1.5))
    columns = [j for j in range(48) if -0.5 <= 1.5 * (1 - (2 * j + 1) / 48) <= 1.0]
    rows = [i for i in range(48) if abs(1.5 * (1 - (2 * i + 1) / 48)) <= 0.375]
    assert face.any(0).nonzero().flatten().tolist() == columns
    assert face.any(1).nonzero().flatten().tolist() == rows


def test_through_a_frame_one_sees_what_is_behind_it():
    """Across its axis: the bars at the front face's depth, and in the opening the sphere behind."""
    scene = Scene(
        frames=torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.05, 0.6, 0.4]]).unsqueeze(-1),
        spheres=torch.tensor([[2.0, 0.0, 0.0, 0.2]]).unsqueeze(-1),
    )
    depth = depth_of(scene, size=(101, 101))
    assert depth[50, 50].item() == pytest.approx(1.8)
    assert depth[50, 25].item() == pytest.approx(0.95)  # 0.5 to the left, in the bar
    assert depth[50, 33].isinf()  # past the sphere, through the opening
    assert depth[50, 30].item() == pytest.approx(0.4 * 101 / 40)  # the wall of the opening, 0.4 to the left
    assert depth[50, 12].isinf()  # beside the frame


@pytest.mark.parametrize("kind", ["spheres", "pillars", "boxes", "frames"])
def test_every_solid_from_any_side_is_what_stepping_along_the_rays_finds(kind):
    """A turned solid, seen obliquely by a tilted camera: every pixel to within a step of the march."""
    yaw = 0.7
    solids = {
        "spheres": [1.0, 0.2, -0.1, 0.4],
        "pillars": [1.0, 0.2, -0.5, 0.3, 0.8],
        "boxes": [1.0, 0.2, -0.1, yaw, 0.3, 0.2, 0.4],
        "frames": [1.0, 0.2, -0.1, yaw, 0.2, 0.5, 0.35],
    }
    solid = solids[kind]

    def inside(points: torch.Tensor) -> torch.Tensor:
        p = points - torch.tensor(solid[:3])
        x = math.cos(yaw) * p[..., 0] + math.sin(yaw) * p[..., 1]
        y = math.cos(yaw) * p[..., 1] - math.sin(yaw) * p[..., 0]
        z = p[..., 2]
        if kind == "spheres":
            return p.square().sum(-1) <= solid[3] ** 2
        if kind == "pillars":
            return (p[..., :2].square().sum(-1) <= solid[3] ** 2) & (z >= 0) & (z <= solid[4])
        if kind == "boxes":
            return (x.abs() <= solid[4]) & (y.abs() <= solid[5]) & (z.abs() <= solid[6])
        across = torch.maximum(y.abs(), z.abs())
        return (x.abs() <= solid[4]) & (across <= solid[5]) & (across >= solid[6])

    scene = Scene(**{kind: torch.tensor([solid]).unsqueeze(-1)})
    quaternion = torch.nn.functional.normalize(torch.tensor([1.0, 0.1, 0.25, -0.15]), dim=0)
    position = torch.tensor([-0.2, 0.1, 0.7])
    camera = Camera(CameraCfg(image="depth", position=(0.0, 0.0, 0.0)), 1, CPU)
    pose = camera.pose(position.unsqueeze(1), quaternion.unsqueeze(1))
    depth = cast(camera.rays, pose, scene)[0][0]
    found = march(inside, position, pose.axes[:, :, 0], camera.rays, longest=2.5)
    assert depth.isfinite().sum() > 60
    edge = depth.isfinite() != found.isfinite()  # a ray that grazes an edge may pass between two points of the march
    assert edge.sum() <= 3
    both = depth.isfinite() & found.isfinite()
    far = (depth - found).abs()[both] > 2.5 / 4000 + 1e-4
    assert far.sum() <= 3


def test_a_camera_that_is_turned_by_a_right_angle_sees_what_is_beside_the_vehicle():
    """Mounted to look left (yaw) or down (pitch) it sees the sphere there, in the middle; forward it sees nothing."""
    for rotation, centre in ((turn(math.pi / 2, 2), (0.0, 1.0, 0.0)), (turn(math.pi / 2, 1), (0.0, 0.0, -1.0))):
        scene = Scene(spheres=torch.tensor([[*centre, 0.2]]).unsqueeze(-1))
        cfg = CameraCfg(image="depth", width=33, height=33, position=(0.0, 0.0, 0.0), rotation=rotation)
        camera = Camera(cfg, 1, CPU)
        seen = cast(camera.rays, camera.pose(column(0, 0, 0), column(*LEVEL)), scene)[0][0]
        assert seen[16, 16].item() == pytest.approx(0.8, abs=1e-5)
        assert torch.allclose(seen, seen.flip(0)) and torch.allclose(seen, seen.flip(1))
        assert depth_of(scene, size=(33, 33)).isinf().all()


def test_the_image_is_upright_and_not_mirrored():
    """What is on the left is on the left, what is above is above, and a camera that is in front sees from there."""
    scene = Scene(spheres=torch.tensor([[1.0, 0.5, 0.5, 0.2]]).unsqueeze(-1))
    seen = depth_of(scene).isfinite()
    assert seen[:16, :16].any() and not seen[16:].any() and not seen[:, 16:].any()
    camera = Camera(CameraCfg(image="depth", width=33, height=33, position=(0.25, 0.0, 0.0)), 1, CPU)
    ahead = Scene(spheres=torch.tensor([[1.0, 0.0, 0.0, 0.2]]).unsqueeze(-1))
    depth = cast(camera.rays, camera.pose(column(0, 0, 0), column(*LEVEL)), ahead)[0]
    assert depth[0, 16, 16].item() == pytest.approx(0.55)


def test_from_inside_of_a_solid_everything_is_near():
    """In a sphere, a pillar, a box, a frame's bar or the ground the depth is 0; in the opening one sees through."""
    around = {
        "spheres": [0.0, 0.0, 0.0, 0.5],
        "pillars": [0.0, 0.0, -0.5, 0.5, 1.0],
        "boxes": [0.0, 0.0, 0.0, 0.3, 0.5, 0.5, 0.5],
        "frames": [0.0, 0.5, 0.0, 0.0, 0.5, 0.6, 0.4],
    }
    for kind, solid in around.items():
        assert (depth_of(Scene(**{kind: torch.tensor([solid]).unsqueeze(-1)})) == 0.0).all(), kind
    assert (depth_of(Scene(ground=torch.tensor([0.5]))) == 0.0).all()
    opening = torch.tensor([[0.0, 0.0, 0.0, 0.0, 0.2, 0.6, 0.4]]).unsqueeze(-1)
    assert depth_of(Scene(frames=opening))[16, 16].isinf()


def random_scene(num_envs: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, Scene]:
    """Poses and a scene of every kind, other in each environment."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, num_envs, generator=generator)

    position = uniform(3) - 0.5
    quaternion = torch.nn.functional.normalize(torch.randn(4, num_envs, generator=generator), dim=0)
    place = uniform(2, 3) * 4 - 2
    sizes = 0.2 + 0.3 * uniform(2, 3)
    yaw = 6 * uniform(2, 1)
    scene = Scene(
        ground=-1 - uniform(),
        spheres=torch.cat([place, sizes[:, :1]], 1),
        pillars=torch.cat([place.roll(1, 0), sizes[:, :2]], 1),
        boxes=torch.cat([-place, yaw, sizes], 1),
        frames=torch.cat([place.flip(1), yaw, sizes[:, :1], sizes[:, :1] + 0.3, sizes[:, :1]], 1),
    )
    return position, quaternion, scene


@pytest.mark.parametrize("image", ["depth", "rgb", "rgbd"])
def test_one_environment_is_seen_as_among_many_and_as_before(image):
    """An image depends neither on the other environments nor on the block that it is cast in; it repeats exactly."""
    position, quaternion, scene = random_scene(70)
    cfg = CameraCfg(image=image, width=24, height=20)
    camera = Camera(cfg, 70, CPU)
    images = camera.render(camera.pose(position, quaternion), scene)
    assert images.dtype == torch.uint8 and images.shape == (70, {"depth": 1, "rgb": 3, "rgbd": 4}[image], 20, 24)
    assert torch.equal(images, camera.render(camera.pose(position, quaternion), scene))
    alone = Camera(cfg, 1, CPU)
    for env in (0, 33, 69):
        at = slice(env, env + 1)
        one = alone.render(alone.pose(position[:, at], quaternion[:, at]), scene.select(at))[0]
        far = (one.int() - images[env].int()).abs() > 1  # a pose may be rounded otherwise among many: an edge's pixel
        assert far.float().mean() < 0.005
    assert len({image.numpy().tobytes() for image in images}) > 60


def test_the_nearest_solid_gives_depth_and_colour():
    """A red sphere before a blue box: its pixels are reddest, the box's bluest, the sky's those of the sky."""
    scene = Scene(
        spheres=torch.tensor([[1.0, 0.0, 0.0, 0.2]]).unsqueeze(-1),
        boxes=torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.1, 1.0, 1.0]]).unsqueeze(-1),
    )
    cfg = CameraCfg(image="rgbd", position=(0.0, 0.0, 0.0), max_depth=2.55)
    camera = Camera(cfg, 1, CPU)
    image = camera.render(camera.pose(column(0, 0, 0), column(*LEVEL)), scene)[0].int()
    assert image[0, 16, 16] > 2 * image[2, 16, 16] and image[3, 16, 16] == pytest.approx(80, abs=1)
    assert image[2, 16, 8] > image[0, 16, 8] and image[3, 16, 8] == 190
    assert image[:, 0, 0].tolist() == [204, 224, 245, 255]


def test_surfaces_that_face_the_light_are_brighter():
    """A sphere's top is brighter than its foot, as the light comes from above."""
    scene = Scene(spheres=torch.tensor([[1.0, 0.0, 0.0, 0.5]]).unsqueeze(-1))
    camera = Camera(CameraCfg(image="rgb", position=(0.0, 0.0, 0.0)), 1, CPU)
    image = camera.render(camera.pose(column(0, 0, 0), column(*LEVEL)), scene)[0].int()
    assert image[0, 9, 16] > image[0, 22, 16] + 30


def test_depth_is_scaled_clipped_and_of_the_type_asked_for():
    """uint8 is 255 t / max_depth, float16 t / max_depth; beyond the range both are at their greatest."""
    scene = Scene(boxes=torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.5, 9.0, 9.0]]).unsqueeze(-1))
    for dtype, expected in (("uint8", 128), ("float16", 0.5)):
        for range_, value in ((3.0, expected), (1.0, 255 if dtype == "uint8" else 1.0)):
            cfg = CameraCfg(image="depth", dtype=dtype, max_depth=range_, position=(0.0, 0.0, 0.0))
            camera = Camera(cfg, 1, CPU)
            image = camera.render(camera.pose(column(0, 0, 0), column(*LEVEL)), scene)
            assert str(image.dtype) == f"torch.{dtype}"
            assert (image == value).all()


def test_noise_and_dropout_are_as_large_as_asked_and_repeat_with_the_seed():
    """Depth deviates by depth_noise, a share of pixels has no echo, and seeds work both ways."""
    num = 50
    o = torch.ones(num)
    scene = Scene(boxes=torch.stack([2 * o, 0 * o, 0 * o, 0 * o, 0.5 * o, 9 * o, 9 * o]).unsqueeze(0))
    cfg = CameraCfg(image="depth", dtype="float16", max_depth=3.0, depth_noise=0.06, position=(0.0, 0.0, 0.0))
    camera = Camera(cfg, num, CPU)
    position = torch.zeros(3, num)
    quaternion = column(*LEVEL).expand(4, num)

    def look(camera: Camera, seed: int) -> torch.Tensor:
        camera.seed(seed)
        return camera.render(camera.pose(position, quaternion), scene).float() * 3.0

    first = look(camera, 1)
    assert first.mean().item() == pytest.approx(1.5, abs=1e-2)
    assert first.std().item() == pytest.approx(0.06, rel=0.03)
    assert torch.equal(first, look(camera, 1)) and not torch.equal(first, look(camera, 2))
    lossy = Camera(replace(cfg, depth_noise=0.0, dropout=0.25), num, CPU)
    assert (look(lossy, 1) == 3.0).float().mean().item() == pytest.approx(0.25, abs=0.01)


@pytest.mark.parametrize("delay", [1, 3])
def test_delayed_images_are_those_of_earlier_steps_and_never_of_an_earlier_episode(delay):
    """The image of step t shows step t - delay; where an episode began since, its first step."""
    cfg = CameraCfg(image="depth", delay=delay, position=(0.0, 0.0, 0.0), max_depth=10.2)
    camera = Camera(cfg, 2, CPU)
    quaternion = column(*LEVEL).expand(4, 2)
    scene = Scene(boxes=torch.tensor([[9.0, 0.0, 0.0, 0.0, 0.5, 99.0, 99.0]]).unsqueeze(-1).expand(1, 7, 2))

    def look(x: float, began: torch.Tensor | None) -> list[int]:
        images = camera.observe(torch.tensor([[x, x], [0.0, 0.0], [0.0, 0.0]]), quaternion, scene, began)
        return [round(8.5 - value * 10.2 / 255) for value in images[:, 0, 0, 0].tolist()]

    never = torch.tensor([False, False])
    assert look(0.0, None) == [0, 0]
    seen = [look(float(step), never) for step in range(1, 5)]
    assert seen == [[max(0, step - delay)] * 2 for step in range(1, 5)]
    assert look(5.0, torch.tensor([True, False])) == [5, max(0, 5 - delay)]
    assert look(6.0, never) == [max(5, 6 - delay), max(0, 6 - delay)]


def test_a_saved_camera_goes_on_with_the_same_images():
    """Noise and delayed images are restored in every bit; images of another size are one line."""
    position, quaternion, scene = random_scene(4)
    cfg = CameraCfg(image="depth", delay=2, depth_noise=0.1)
    camera = Camera(cfg, 4, CPU)
    camera.seed(3)
    none = torch.zeros(4, dtype=torch.bool)
    for step in range(3):
        camera.observe(
            position + 0.1 * step, quaternion, scene, None if step == 0 else torch.zeros(4, dtype=torch.bool)
        )
    saved = camera.state_dict()
    none = torch.zeros(4, dtype=torch.bool)
    expected = [camera.observe(position - 0.1 * step, quaternion, scene, none) for step in range(4)]
    other = Camera(cfg, 4, CPU)
    other.load_state_dict(saved)
    found = [other.observe(position - 0.1 * step, quaternion, scene, none) for step in range(4)]
    assert all(torch.equal(x, y) for x, y in zip(expected, found, strict=True))
    with pytest.raises(UserError, match="other camera images"):
        Camera(replace(cfg, width=8), 4, CPU).load_state_dict(saved)


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [
        ("width", 0, "env.camera.width must be positive, it is 0"),
        ("height", -3, "env.camera.height must be positive"),
        ("image", "dept", "env.camera.image must be one of none, depth, rgb, rgbd, it is dept"),
        ("dtype", "int8", "env.camera.dtype must be uint8 or float16"),
        ("horizontal_fov", 3.2, "env.camera.horizontal_fov must be between 0 and pi"),
        ("max_depth", math.inf, "env.camera.max_depth must be positive"),
        ("delay", -1, "env.camera.delay must be from 0 to 10000, it is -1"),
        ("delay", 1_000_000, "env.camera.delay must be from 0 to 10000"),
        ("depth_noise", math.nan, "env.camera.depth_noise must be 0 or more"),
        ("dropout", 1.5, "env.camera.dropout must be within"),
        ("rotation", (0.0, 0.0, 0.0, 0.0), "env.camera.rotation must be a quaternion"),
        ("position", (math.nan, 0.0, 0.0), "env.camera.position must be three finite numbers"),
    ],
)
def test_values_that_no_camera_can_have_are_one_line(field, value, words):
    """The line has the name that is typed, what is expected and what was given."""
    with pytest.raises(UserError, match=words.replace("(", r"\(")) as error:
        check_camera_cfg(replace(CameraCfg(image="depth"), **{field: value}))
    assert "\n" not in str(error.value)


def test_images_beyond_the_memory_are_refused_before_they_are_allocated():
    """The line has both sizes."""
    with pytest.raises(UserError, match=r"images of 1 x 100000 x 100000 uint8.*would take at least .* GB and cpu has"):
        Camera(CameraCfg(image="depth", width=100_000, height=100_000), 64, CPU)


def test_no_ray_is_lost_where_a_solid_is_exactly_ahead():
    """The middle ray of an odd image runs in the plane of a frame's middle and hits the box behind it."""
    camera = Camera(CameraCfg(image="depth", width=3, height=3, position=(0.0, 0.0, 0.0)), 1, CPU)
    pose = Pose(column(0, 0, 0), torch.eye(3).unsqueeze(-1))
    box = torch.tensor([[1.0, 0.0, 0.0, 0.0, 0.1, 0.1, 0.1]]).unsqueeze(-1)
    assert cast(camera.rays, pose, Scene(boxes=box))[0][0, 1, 1].item() == pytest.approx(0.9)
