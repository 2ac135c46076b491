"""What the checkpoint formats share."""
