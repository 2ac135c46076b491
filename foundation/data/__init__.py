"""Collecting labelled transitions and keeping them."""
