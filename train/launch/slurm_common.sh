# shellcheck shell=bash
# For the Slurm scripts in this folder: saves a checkpoint before the time limit and requeues the job.

# Slurm sends USR1 to the batch script some time before the limit (--signal=B:USR1@...). The script
# sends SIGTERM to the ranks, which save and exit with 143. Then the job is requeued, and its next
# start resumes with --auto-resume. With any other exit code the job ends with that code.
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

# The same port on all nodes of a job, and another for the next job.
job_port() {
    echo $((20000 + SLURM_JOB_ID % 10000))
}
