"""A run: its loop, its folder, its checkpoints and its figures."""
