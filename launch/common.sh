# shellcheck shell=bash
# shellcheck disable=SC2034  # read by those who source it
# What the launchers share: flags, printing, running or only printing a command, restarting. Sourcing it runs nothing.
set -euo pipefail
((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 501)) || {
    echo "${0##*/}: bash $BASH_VERSION is too old; 5.1 or newer is needed" >&2
    exit 2
}

AGAIN=75 # jaxalign was stopped, has saved its state, and wants the same command again (EX_TEMPFAIL)
DRY_RUN=0
MAX_RESTARTS=0
TRAIN_FLAGS=() # --config, --workdir and every --config.key=value, as given
CONFIG="" WORKDIR="" ENV_FILE=""
exec 3>&1 # commands of a dry run go here, so that they are seen where a command's output is captured

# The comment at the head of the script is its --help.
usage() { sed -n '2,/^[^#]/{/^#/s/^# \{0,1\}//p;}' "$0"; }

# What happened; in a dry run nothing does.
say() { ((DRY_RUN)) || printf '%s: %s\n' "${0##*/}" "$*" >&2; }

die() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 2
}

# quote WORD...: one line that a shell reads as these words; plain words stay plain.
quote() {
    local word out=""
    for word in "$@"; do
        [[ $word =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
        out+="$word "
    done
    printf '%s' "${out% }"
}

# run COMMAND...: runs it, after saying so; in a dry run only says so.
run() {
    if ((DRY_RUN)); then
        printf '%s\n' "$(quote "$@")" >&3
    else
        printf '+ %s\n' "$(quote "$@")" >&2
        "$@"
    fi
}

# take_common FLAG: handles the flags that every launcher has; fails if this is not one of them.
take_common() {
    case "$1" in
        --config=?*) CONFIG="${1#*=}" TRAIN_FLAGS+=("$1") ;;
        --workdir=?*) WORKDIR="${1#*=}" TRAIN_FLAGS+=("$1") ;;
        --config.*=*) TRAIN_FLAGS+=("$1") ;;
        --config.*) die "$1 has no value; write $1=VALUE" ;;
        --dry-run) DRY_RUN=1 ;;
        --max-restarts=*) MAX_RESTARTS="$(natural "$1")" ;;
        --env-file=?*)
            ENV_FILE="${1#*=}"
            [[ -f $ENV_FILE ]] || die "$1: no such file; write lines NAME=VALUE into it"
            ;;
        --help | -h)
            usage
            exit 0
            ;;
        *) return 1 ;;
    esac
}

# natural FLAG=N: prints N, or stops.
natural() {
    [[ ${1#*=} =~ ^[0-9]+$ ]] || die "$1: '${1#*=}' is not a number; write ${1%%=*}=N with N = 0, 1, 2, ..."
    printf '%s' "$((10#${1#*=}))"
}

unknown_flag() { die "'$1' is not a flag of this script; --help lists them, and training takes --config.key=value"; }

need_training_flags() {
    [[ $CONFIG ]] || die "--config=FILE is missing; for instance --config=configs/dpo.py"
    [[ $WORKDIR ]] || die "--workdir=DIR is missing: the folder for checkpoints, metrics and the final model"
}

# export_env_file FILE: exports its lines NAME=VALUE, whatever the values hold; empty lines and comments are skipped.
export_env_file() {
    local line
    while IFS= read -r line || [[ $line ]]; do
        [[ $line && $line != \#* ]] || continue
        [[ $line =~ ^[A-Za-z_][A-Za-z0-9_]*= ]] || die "$1: '${line%%=*}' is not a variable; write lines NAME=VALUE"
        export "${line?}"
    done <"$1"
}

# run_forwarding COMMAND...: runs it with SIGTERM and SIGINT passed on as SIGTERM, and returns its exit code.
# Sets STOPPED=1 when there was such a signal. The command gets a process group of its own: Ctrl-C in a terminal
# would otherwise reach it a second time, and a second SIGINT means "do not save".
run_forwarding() {
    local pid interrupted status code=127
    STOPPED=0
    set -m
    "$@" </dev/null &
    pid=$!
    set +m
    trap 'STOPPED=1 interrupted=1; kill -s TERM "$pid" 2>/dev/null || :' TERM INT
    while :; do
        interrupted=0 status=0
        wait "$pid" || status=$?
        # A signal ends `wait` but not the command; once the command was waited for, `wait` knows it no more (127).
        ((status == 127 && code != 127)) || code=$status
        ((interrupted)) || break
    done
    trap - TERM INT
    return "$code"
}

# keep_running COMMAND...: runs it again for as long as it says so (75), and after an error at most MAX_RESTARTS
# times. Returns its last exit code: 75 only if this script itself was told to stop.
keep_running() {
    local code restarts=0
    while :; do
        if ((DRY_RUN)); then
            run "$@"
            return
        fi
        printf '+ %s\n' "$(quote "$@")" >&2
        code=0
        run_forwarding "$@" || code=$?
        if ((code == 0 || STOPPED)); then
            return "$code"
        elif ((code == AGAIN)); then
            say "stopped with its state saved; running it again"
        elif ((restarts < MAX_RESTARTS)); then
            restarts=$((restarts + 1))
            say "failed with exit code $code; restart $restarts of $MAX_RESTARTS"
        else
            say "failed with exit code $code, which a restart would not cure (--max-restarts=N tries anyway)"
            return "$code"
        fi
    done
}
