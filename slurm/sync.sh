#!/usr/bin/env bash
# Show in wandb what was kept offline, from a node with internet: slurm/sync.sh [FOLDER ...]
# Looks for runs below the folders (runs/), leaves out what was synced before, and puts the parts of a
# run that was cut off together.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=slurm/settings.sh
source slurm/settings.sh

for folder in "${@:-runs}"; do
    if [[ ! -d $folder ]]; then
        echo "error: $folder: no such folder; expected folders below which runs lie" >&2
        exit 2
    fi
done
mapfile -d '' -t parts < <(find "${@:-runs}" -type d -path '*/wandb/offline-run-*' -prune -print0 | sort -z)
if ((${#parts[@]} == 0)); then
    echo "nothing was kept offline below ${*:-runs}"
    exit 0
fi
exec "${PYTHON[@]}" -m wandb sync "${parts[@]}"
