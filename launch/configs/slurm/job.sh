# The body of a job that `monro launch --slurm` submits. What stands before it sets
#   nodes, the number of machines; grace, in seconds, from the warning to the end;
#   port, of machine 0, or nothing for a free one; node, the command that each machine runs.
#
# Slurm warns with SIGUSR1 before a time limit, and before a preemption where the cluster has
# PreemptParameters=send_user_signal. The warning comes to this shell alone (B:). srun hands it on to
# every process of the step, on every machine: launchers wait, workers finish their step, save and
# end. Then the job goes back into the queue, and --resume goes on where it stopped.

fail() {
    echo "monro: $*" >&2
    exit 2
}

listens() {
    (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null
}

[ "${SLURM_JOB_NUM_NODES:-0}" = "$nodes" ] ||
    fail "the job has ${SLURM_JOB_NUM_NODES:-0} nodes, not $nodes: sbatch may not change --nodes"

MAIN_ADDRESS=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
if [ -n "$port" ]; then
    ! listens "$port" || fail "port $port of $MAIN_ADDRESS is taken: give another --port, or none"
else # jobs that share a machine begin at different ports
    port=$((29500 + SLURM_JOB_ID % 1000))
    while listens "$port"; do port=$((port + 1)); done
fi
export MAIN_ADDRESS MAIN_PORT=$port
export PET_SIGNALS_TO_HANDLE=SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1
export PET_SHUTDOWN_TIMEOUT=$((grace - 10))

step=
warned=
warn() {
    warned=1 interrupted=1
    [ -z "$step" ] || kill -USR1 "$step"
}
trap warn USR1

# Not --kill-on-bad-exit: a machine may still be saving when the first one has ended.
srun --export=ALL --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 \
    --wait="$grace" bash -c "$node" &
step=$!
[ -z "$warned" ] || kill -USR1 "$step"
interrupted=1
while [ -n "$interrupted" ]; do # a trap ends `wait` early
    interrupted=
    wait "$step"
    code=$?
done

if [ -n "$warned" ] && [ "$code" -ne 0 ]; then
    echo "monro: stopped after a warning; job $SLURM_JOB_ID goes back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
