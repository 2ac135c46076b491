#!/usr/bin/env bash
# Sets up, distils the shipped teacher into a small student, flies the student and says what it reached.
# Arguments go to distillation.py: bash scripts/demo.sh distill.student.obs_groups=[deployable]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh "" # no extras; without an argument it would get ours

task=Isaac-Quadcopter-Point-Ctrl-v0
teacher=foundation/assets/teachers/point_ctrl/model.pt

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # networks this small run fastest on one thread

say "distilling $teacher (experiment=fast)"
"$VENV_PYTHON" foundation/rsl_rl/distillation.py --task "$task" --teacher_checkpoint "$teacher" \
    --experiment_name demo --engine torch --device cpu experiment=fast "$@"

say "playing the best student of that run"
"$VENV_PYTHON" foundation/rsl_rl/play.py --task "$task" --experiment_name demo --engine torch --device cpu \
    --num_envs 64 --num_episodes 64 --video --video_length 500

"$VENV_PYTHON" - <<'PY'
import json
import pathlib

run = sorted(pathlib.Path("logs/distillation/demo").iterdir())[-1]
summary = json.loads((run / "summary.json").read_text())
ratio = summary.get("return_ratio")
print(f"==> reached {100 * ratio:.1f} % of the teacher's return" if ratio else "==> done", end="")
print(f", {100 * summary['success_rate']:.1f} % of {summary['final_eval_episodes']} fresh episodes flown to the end")
print(f"==> everything is in {run}")
for video in sorted(run.rglob("*.mp4")):
    print(f"==> video: {video}")
PY
