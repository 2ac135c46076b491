"""Agent settings of the point-control task, for RSL-RL and for distillation."""
