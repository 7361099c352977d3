#!/usr/bin/env bash
# Runs a training job on this machine so that it outlives the connection that started it. tpu_pod.sh calls it on every
# worker of a slice; it works as well by hand, on any machine reached by ssh.
#
#   launch/worker.sh start --config=FILE --workdir=DIR [--config.key=value ...]
#       Starts `jaxalign train`, unless this very command runs already.
#   launch/worker.sh status     Prints "jaxalign-worker HOST STATE"; STATE is running, none (never started), lost (gone
#                               without an exit code: the machine was restarted), or the exit code.
#   launch/worker.sh follow     Prints the log until the job ends.
#   launch/worker.sh stop [--grace=SECONDS]
#                               SIGTERM, so that it saves its state; SIGKILL after as many seconds (600).
#
# The job's files lie in ~/.jaxalign-job: log, pid, command, exit. Lines NAME=VALUE in ~/.jaxalign.env become its
# environment. Options of start: --dry-run.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
job="$HOME/.jaxalign-job"

alive() { [[ -f $job/pid ]] && grep -qsz worker.sh "/proc/$(<"$job/pid")/cmdline"; }

start() {
    local command
    for arg in "$@"; do take_common "$arg" || unknown_flag "$arg"; done
    need_training_flags
    command="$(quote jaxalign train "${TRAIN_FLAGS[@]}")"
    if ((DRY_RUN)); then
        run "$root/.venv/bin/jaxalign" train "${TRAIN_FLAGS[@]}"
        return
    fi
    mkdir -p "$job"
    if alive; then
        [[ $(<"$job/command") == "$command" ]] || die "another job runs here: $(<"$job/command"); stop it first"
        say "runs already"
        return
    fi
    rm -f "$job/exit"
    printf '%s\n' "$command" >"$job/command"
    # A session of its own and no file of ours kept open: ssh returns, and its end is no hangup for the job.
    setsid bash "$root/launch/worker.sh" job "${TRAIN_FLAGS[@]}" </dev/null >>"$job/log" 2>&1 3>&- &
    echo $! >"$job/pid"
    say "started: $command"
}

# What `start` leaves running: the training process, then its exit code on disk.
run_job() {
    local code=0
    trap '' HUP
    [[ ! -f $HOME/.jaxalign.env ]] || export_env_file "$HOME/.jaxalign.env"
    cd "$root" || exit
    printf '\n===== %s =====\n' "$(date -u +%FT%TZ)"
    run_forwarding "$root/.venv/bin/jaxalign" train "$@" || code=$?
    printf '%s\n' "$code" >"$job/exit.new"
    mv "$job/exit.new" "$job/exit"
}

status() {
    local state=lost
    if alive; then
        state=running
    elif [[ -f $job/exit ]]; then
        state="$(<"$job/exit")"
    elif [[ ! -f $job/pid ]]; then
        state=none
    fi
    printf 'jaxalign-worker %s %s\n' "$(hostname)" "$state"
}

follow() {
    [[ -f $job/pid ]] || die "no job was started on this machine"
    tail -n 100 -F -s 0.2 --pid="$(<"$job/pid")" "$job/log" 2>/dev/null
}

stop() {
    local pid tries grace=600
    for arg in "$@"; do
        case "$arg" in
            --grace=*) grace="$(natural "$arg")" ;;
            *) unknown_flag "$arg" ;;
        esac
    done
    alive || return 0
    pid="$(<"$job/pid")"
    kill -s TERM "$pid"
    for ((tries = 0; tries < grace * 10; tries++)); do
        alive || return 0
        sleep 0.1
    done
    say "did not stop within $grace seconds; killed"
    pkill -KILL -s "$pid" || :
}

verb="${1:---help}"
shift || :
case "$verb" in
    start) start "$@" ;;
    job) run_job "$@" ;;
    stop) stop "$@" ;;
    status) status ;;
    follow) follow ;;
    *) take_common "$verb" || unknown_flag "$verb" ;;
esac
