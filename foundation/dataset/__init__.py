"""Labelled transitions in memory."""
