"""Cameras on the vehicles of the built-in simulator: a batched ray-caster over a few analytic solids."""
