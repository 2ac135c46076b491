"""Errors, files and text: what every other room may use."""
