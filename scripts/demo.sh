#!/usr/bin/env bash
# Sets up, distils the shipped teacher into a small student that does not see what the teacher sees, flies the student and
# says what it reached.
#
#   bash scripts/demo.sh          a network without memory
#   bash scripts/demo.sh gru      one with memory; also lstm, history, tcn
#
# Further arguments go to distillation.py: bash scripts/demo.sh gru n_epochs=100
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
preset=(experiment=fast)
duration="about a minute"
case "${1:-}" in
gru | lstm | history | tcn)
    preset=(experiment=fast_gru "student=$1")
    duration="one to two minutes"
    shift
    ;;
*=* | -* | "") ;;
*)
    echo "error: '$1' is no student with memory: bash scripts/demo.sh [gru|lstm|history|tcn] [key=value ...]" >&2
    exit 2
    ;;
esac
source scripts/setup.sh "" # no extras; without an argument it would get ours

task=Isaac-Quadcopter-Point-Ctrl-v0
teacher=foundation/assets/teachers/point_ctrl/model.pt

export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # networks this small run fastest on one thread

say "this takes $duration on one core"
say "distilling $teacher: it sees 26 numbers, motor speeds included; the student the 22 that a vehicle can measure"
"$VENV_PYTHON" foundation/rsl_rl/distillation.py --task "$task" --teacher_checkpoint "$teacher" \
    --experiment_name demo --engine torch --device cpu --final_eval_episodes 512 "${preset[@]}" \
    "distill.student.obs_groups=[deployable]" "$@"

say "playing the best student of that run"
# After 2.5 s, 250 steps, the last vehicle is within 3 cm of its target: the clip ends there.
"$VENV_PYTHON" foundation/rsl_rl/play.py --task "$task" --experiment_name demo --engine torch --device cpu \
    --num_envs 64 --num_episodes 64 --video --video_length 250

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
