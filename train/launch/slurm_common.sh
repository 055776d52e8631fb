# shellcheck shell=bash
# For the Slurm scripts beside it: run srun so that the time limit saves a checkpoint and requeues.

# Slurm sends USR1 to the batch script some time before the limit (--signal=B:USR1@...). It is passed
# on as SIGTERM, on which all ranks save and end with 143; then the job goes back into the queue, and
# its next start continues with --auto-resume. Any other ending ends the job with the run's exit code.
run_and_requeue() {
    local code=0 near_the_limit=0
    srun --kill-on-bad-exit=1 "$@" &
    local step=$!
    trap 'near_the_limit=1; kill -TERM "$step"' USR1
    trap 'kill -TERM "$step"' TERM
    # A trapped signal ends `wait` early, so wait until the step itself has ended.
    while kill -0 "$step" 2>/dev/null; do
        wait "$step" || true
    done
    trap - USR1 TERM
    wait "$step" || code=$?
    if [ "$near_the_limit" = 1 ] && [ "$code" = 143 ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    return "$code"
}

first_node() {
    scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1
}

# The same on all nodes of a job, another one for the next job.
job_port() {
    echo $((20000 + SLURM_JOB_ID % 10000))
}
