"""The commands, one script each; ``foundation/cli`` has what they share."""
