#!/usr/bin/env bash
# How far a sweep is, cell by cell: slurm/status.sh [FILE [section.key=value ...]]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/settings.sh
source slurm/settings.sh
export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
exec "${PYTHON[@]}" launcher/sweep.py status "${1:-configs/sweeps/default.yaml}" "${@:2}"
