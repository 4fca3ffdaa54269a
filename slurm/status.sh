#!/usr/bin/env bash
# How far a sweep is, cell by cell: slurm/status.sh [FILE [section.key=value ...]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/settings.sh
source slurm/settings.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
status=("${PYTHON[@]}" launcher/sweep.py status)
# Asked here, for there is no squeue inside a container. The lines are those that sweep.py reads.
if command -v squeue >/dev/null && queue=$(squeue --me --noheader --array --format='%F_%K %T'); then
    exec "${status[@]}" --queue-from-stdin "${1:-configs/sweeps/default.yaml}" "${@:2}" <<<"$queue"
fi
exec "${status[@]}" "${1:-configs/sweeps/default.yaml}" "${@:2}"
