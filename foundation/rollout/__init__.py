"""Stepping environments: collection and evaluation."""
