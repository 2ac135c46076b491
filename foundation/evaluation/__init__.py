"""Measuring policies: whole episodes, the same ones for everybody."""
