"""A script of your own with the commands' overrides: ``python examples/own_script.py scene.num_envs=8 student=gru``."""

from foundation.config import hydra_task_config


@hydra_task_config("Isaac-Quadcopter-Point-Ctrl-v0", "rsl_rl_cfg_entry_point")
def main(env_cfg, agent_cfg, cfg):
    """Get the task's configs, and the distillation's, with what was typed put in."""
    print(env_cfg.scene.num_envs, agent_cfg.max_iterations, cfg.student.name, cfg.seed)


if __name__ == "__main__":
    main()
