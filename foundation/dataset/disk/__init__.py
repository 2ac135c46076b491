"""Labelled transitions on disk."""
