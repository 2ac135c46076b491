#!/usr/bin/env bash
# A thousand teachers, one student: samples vehicles, trains a teacher for each, distils them all into one recurrent
# policy, and flies it beside the published RAPTOR policy. Everything is in logs/raptor/<number>; what is done already is
# skipped when it is started again.
#
#   bash scripts/raptor.sh 16             sixteen teachers, on a laptop
#   bash scripts/raptor.sh 1000 --device cuda:0
#   bash scripts/raptor.sh --help
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/setup.sh raptor
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" # networks this small run fastest on one thread
exec "$VENV_PYTHON" scripts/raptor_pipeline.py "$@"
