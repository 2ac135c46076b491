"""The simulator on a CUDA device: the same physics, and nothing waits for the device."""

from __future__ import annotations

import pytest
import torch

from foundation.tasks.quadrotor.env_cfg import QuadcopterPointCtrlEnvCfg, SceneCfg
from foundation.tasks.quadrotor.sim.quadrotor import QuadrotorDynamics
from foundation.tasks.quadrotor.sim.vehicles import sample_vehicles
from foundation.tasks.quadrotor.torch_env import QuadcopterPointCtrlEnv

pytestmark = pytest.mark.cuda


@pytest.mark.parametrize("tf32", [False, True])
def test_a_step_on_cuda_is_the_step_on_the_cpu(tf32):
    """Also where a user allows TF32 for networks: the physics does not go through matrix products of that kind."""
    vehicles = sample_vehicles(64, seed=0).to(dtype=torch.float32)
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(17, 64, generator=generator)
    state[9:13] /= state[9:13].norm(dim=0)
    state[13:] = 0.5
    action = torch.rand(4, 64, generator=generator) * 2 - 1
    expected = QuadrotorDynamics(vehicles, 0.01).step(state, action)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        out = QuadrotorDynamics(vehicles.to("cuda"), 0.01).step(state.cuda(), action.cuda())
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    torch.testing.assert_close(out.cpu(), expected, atol=2e-6, rtol=1e-5)


def test_steps_on_cuda_do_not_wait():
    """100 steps with resets under torch's own check for synchronisation."""
    cfg = QuadcopterPointCtrlEnvCfg(scene=SceneCfg(256))
    cfg.sim.device = "cuda:0"
    env = QuadcopterPointCtrlEnv(cfg)
    actions = -torch.ones(256, 4, device="cuda")
    env.step(actions)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(100):
            env.step(actions)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    saved = env.state_dict()
    cpu_only = {name: value.device.type for name, value in saved["tensors"].items()}
    assert set(cpu_only.values()) == {"cpu"}
    env.load_state_dict(saved)
    env.step(actions)
