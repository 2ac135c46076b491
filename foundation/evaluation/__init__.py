"""Measuring policies on whole episodes, with the same seeds for all of them."""
