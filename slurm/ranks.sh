# shellcheck shell=bash
# Sourced by the batch scripts: run a command as the ranks of this job, and put the job back into the
# queue where they were asked to stop.

# The settings, in the repository's top folder; a batch script itself is run from a copy elsewhere.
enter_repository() {
    if [[ -z "${SLURM_JOB_ID:-}" ]]; then
        echo "error: this is a batch script; submit it with sbatch" >&2
        exit 2
    fi
    # shellcheck source=slurm/settings.sh
    source slurm/settings.sh
    export PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}"
    JOB=$SLURM_JOB_ID
    # To scontrol the plain number of one of an array's jobs stands for the whole array.
    if [[ -n "${SLURM_ARRAY_JOB_ID:-}" ]]; then
        JOB=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    fi
}

# run_ranks COMMAND...: one srun task a rank; ends the job with its exit code.
run_ranks() {
    local logs=$LOGS/$JOB code=0
    mkdir -p "$logs"
    rm -f "$logs/stopped" "$logs/terminated" "$logs/failed"
    MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | sed -n 1p)
    # Jobs that share a node must not share a port; above 32767 the system hands out its own.
    MASTER_PORT=$((10000 + SLURM_JOB_ID % 20000))
    OMP_NUM_THREADS=${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}
    export MASTER_ADDR MASTER_PORT OMP_NUM_THREADS
    # Since SLURM 22.05 srun does not take over --cpus-per-task by itself.
    export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
    echo "job $JOB: attempt $((${SLURM_RESTART_COUNT:-0} + 1)), $SLURM_NTASKS ranks on" \
        "$SLURM_JOB_NODELIST, logs in $logs"
    srun --kill-on-bad-exit=1 --open-mode=append --output="$logs/rank-%t.log" \
        slurm/rank.sh "$logs" "$@" || code=$?
    # With a failure on any rank there is nothing to go on with, whatever the others say.
    if [[ (-e "$logs/stopped" || -e "$logs/terminated") && ! -e "$logs/failed" ]]; then
        requeue
    elif ((code != 0)); then
        echo "job $JOB: failed with exit code $code; see $logs" >&2
        tail -n 5 "$logs"/rank-*.log >&2
    fi
    exit "$code"
}

requeue() {
    local times=${SLURM_RESTART_COUNT:-0}
    if ((times >= MAX_REQUEUES)); then
        echo "job $JOB: stopped by a signal and requeued $times times already, MAX_REQUEUES is" \
            "$MAX_REQUEUES; submit it again to go on" >&2
        exit 75
    fi
    echo "job $JOB: stopped by a signal; requeued, $((times + 1)) of at most $MAX_REQUEUES times"
    if ! scontrol requeue "$JOB"; then
        echo "job $JOB: could not be requeued; submit it again to go on" >&2
        exit 75
    fi
    exit 0
}
