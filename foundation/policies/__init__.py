"""Building blocks that teachers and students share."""
