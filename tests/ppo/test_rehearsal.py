"""Some environments keep running an old task, and a teacher counts only where its own task runs."""

from __future__ import annotations

import pytest
import torch
from finetune_toys import NEW, OLD, TwoTasks, config, settings, write_student
from tiny_runs import differing
from toy_env import CountingEnv

from foundation.config.finetune_cfg import FinetuneCfg, HeadsCfg, RehearsalCfg, RetainedTeacherCfg, check_finetune
from foundation.core.errors import RunInterrupted, UserError
from foundation.engines.base import saves_state
from foundation.engines.side_by_side import SideBySide
from foundation.policies.obs_groups import ObsSelector
from foundation.policies.output import PolicyOutput
from foundation.ppo.finetune import FinetuneRunner
from foundation.ppo.ppo import Transitions
from foundation.ppo.retention import FrozenTeacher, Retention
from foundation.runs.run_dir import RunDir
from foundation.runs.run_state import LATEST
from foundation.students.by_task import ByTaskStudent


def both(new: int = 6, old: int = 2) -> SideBySide:
    """The toy's two tasks side by side."""
    return SideBySide(TwoTasks(new, NEW), TwoTasks(old, OLD))


def test_each_environment_runs_its_own_task_with_its_own_actions():
    """Six and two environments: places, observations, rewards and ends are those of two separate environments."""
    env, first, second = both(), TwoTasks(6, NEW), TwoTasks(2, OLD)
    assert env.is_second.tolist() == [True, False, False, False, True, False, False, False]
    obs = env.reset(5)["policy"]
    expected = first.reset(5)["policy"], second.reset(5)["policy"]
    for step in range(15):
        assert torch.equal(obs[~env.is_second], expected[0]) and torch.equal(obs[env.is_second], expected[1])
        actions = torch.randn(8, 2, generator=torch.Generator().manual_seed(step))
        found = env.step(actions)
        apart = first.step(actions[~env.is_second]), second.step(actions[env.is_second])
        for index in (1, 2):
            for mask, own in ((~env.is_second, apart[0]), (env.is_second, apart[1])):
                assert torch.equal(found[index][mask], own[index])
        for mask, own in ((~env.is_second, apart[0]), (env.is_second, apart[1])):
            assert torch.equal(found[3]["time_outs"][mask], own[3]["time_outs"])
        obs, expected = found[0]["policy"], (apart[0][0]["policy"], apart[1][0]["policy"])
    env.episode_length_buf = torch.arange(8) + 9
    assert env.episode_length_buf.tolist() == [9, 10, 11, 11, 11, 11, 11, 11]


def test_episodes_in_progress_are_saved_where_both_tasks_can():
    """After a restore the same actions give the same observations; with a task that cannot, nothing is claimed."""
    env, other = both(), both()
    env.reset(1)
    env.step(torch.ones(8, 2))
    other.load_state_dict(env.state_dict())
    assert torch.equal(env.step(torch.ones(8, 2))[0]["policy"], other.step(torch.ones(8, 2))[0]["policy"])
    counting = CountingEnv([[3]] * 2, 5)
    assert saves_state(both()) and not saves_state(SideBySide(counting, CountingEnv([[3]], 5)))
    with pytest.raises(UserError, match="share no observation group"):
        SideBySide(TwoTasks(2), counting)


def test_a_teachers_terms_are_means_over_its_own_states():
    """Of four states the old task's two are (0, 1) apart and the new one's (5, 7): 0.5, 6 and 3.25 by hand."""
    outputs = PolicyOutput(torch.tensor([[0.0], [1.0], [5.0], [7.0]]), torch.ones(4, 1))
    target = PolicyOutput(torch.zeros(4, 1), torch.ones(4, 1))
    nothing = torch.zeros(4)
    old = torch.tensor([True, True, False, False])
    distances = outputs.mean.squeeze(-1)
    selector = ObsSelector(["policy"])
    found = {}
    for states in ("old", "new", "all"):
        teacher = FrozenTeacher("teacher1", ByTaskStudent, selector, counts_on=states)  # pyright: ignore
        found[states] = float(teacher.mean_of(distances, old))
        batch = Transitions(*([nothing] * 10), targets={"teacher1": target}, old_task=old)
        kl = Retention(FinetuneCfg(), [teacher], 10).divergence(batch.rows(torch.tensor([3, 1, 0, 2])), outputs)
        assert float(kl) >= 0.0
    assert found == {"old": 0.5, "new": 6.0, "all": 3.25}
    assert float(teacher.mean_of(distances, None)) == 3.25
    teacher.counts_on = "old"
    assert float(teacher.mean_of(distances, None)) == 0.0 and float(teacher.mean_of(distances, ~(old | ~old))) == 0.0


def make(folder, start, **options):
    """A run with both tasks, and a teacher that counts on the old one."""
    folder.mkdir(exist_ok=True)
    teacher = RetainedTeacherCfg(checkpoint=str(start), tasks={"teacher1": "Old"})
    cfg = config(start, rehearsal=RehearsalCfg(task="Old"), teacher=teacher, kl_coef=1.0, max_iterations=5)
    cfg.heads = options.pop("heads", HeadsCfg())
    makers = {"make_eval_env": lambda n: TwoTasks(n, NEW), "make_old_env": lambda n: TwoTasks(n, OLD)}
    return FinetuneRunner(both(), cfg, settings(), RunDir(folder), **makers, **options)  # pyright: ignore


def test_a_run_measures_both_tasks_and_resumes_with_the_same_bits(tmp_path):
    """The summary has the old task's return; a run that is interrupted ends as the whole one."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    summary = make(tmp_path / "whole", start).run()
    assert {"old_task_return", "mean_return"} <= set(summary["best"]) and "old_task_return" in summary["start"]
    polls = []

    def stop() -> str | None:
        polls.append(None)
        return "SIGINT" if len(polls) > 25 else None

    with pytest.raises(RunInterrupted):
        make(tmp_path / "half", start, interrupted=stop).run()
    resumed = make(tmp_path / "half", start)
    assert resumed.resume() == "" and 0 < resumed.epoch < 5
    resumed.run()
    for file in (LATEST, "final_student.pt"):
        assert not differing(tmp_path / "whole" / file, tmp_path / "half" / file)


def test_heads_take_the_new_tasks_column_where_both_run(tmp_path):
    """The column is that of the task that is learned."""
    start = write_student(tmp_path / "s.pt", hidden_dims=[8])
    runner = make(tmp_path / "run", start, heads=HeadsCfg(layers=0))
    assert isinstance(runner.student, ByTaskStudent) and runner.student.columns == [NEW]


BAD = [
    ({"rehearsal": RehearsalCfg("B", 1.0)}, "finetune.rehearsal.share is 1"),
    ({"rehearsal": RehearsalCfg("A")}, "name the old one"),
    ({"teacher": RetainedTeacherCfg("p.pt", tasks={"teacher1": "B"})}, "which does not run: there is A"),
    ({"teacher": RetainedTeacherCfg("p.pt", tasks={"teacher2": "A"})}, "there is no such teacher"),
]


@pytest.mark.parametrize(("values", "says"), BAD)
def test_settings_that_cannot_work_are_one_line(values, says):
    """The line names the key and what is allowed."""
    with pytest.raises(UserError) as error:
        check_finetune(FinetuneCfg(task="A", **values))
    assert says in str(error.value) and "\n" not in str(error.value)
