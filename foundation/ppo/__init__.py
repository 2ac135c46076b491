"""RSL-RL's own runners on our engines."""
