"""MuJoCo, batched: what tasks on :mod:`foundation.engines.mujoco` share."""
