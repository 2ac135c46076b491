"""Parts that the checkpoint formats share."""
