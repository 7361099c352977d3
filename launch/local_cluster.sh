#!/usr/bin/env bash
# Runs a command as N processes on this machine's CPU that know one another, as the hosts of a slice would: to try out
# and to test what several processes do.
#
#   launch/local_cluster.sh N [--devices-per-process=D] [--dry-run] -- jaxalign train --config=... --workdir=...
#
# Every process has D virtual devices (1). Its output carries its number: [0] ... When one fails, all others are killed.
# SIGTERM and SIGINT go to all. The exit code is that of the first to fail; else 75 if any said 75; else 0.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

count="" devices=1 command=()
while (($#)); do
    case "$1" in
        --devices-per-process=*) devices="$(natural "$1")" ;;
        --)
            shift
            command=("$@")
            break
            ;;
        [0-9]*) count="$(natural "N=$1")" ;;
        --dry-run | --help | -h) take_common "$1" ;;
        *) die "'$1' is not a flag of this script; the command stands after --" ;;
    esac
    shift
done
((${count:-0} >= 1)) || die "say how many processes: launch/local_cluster.sh 2 -- COMMAND"
((devices >= 1)) || die "--devices-per-process=$devices: there must be at least one"
((${#command[@]})) || die "the command is missing: launch/local_cluster.sh $count -- COMMAND"

# Below the ports that the system gives to outgoing connections. A port on which nobody answers is free.
free_port() {
    local port
    while :; do
        port=$((20000 + SRANDOM % 12000))
        (: <>"/dev/tcp/127.0.0.1/$port") 2>/dev/null || break
    done
    echo "$port"
}

coordinator="127.0.0.1:$(free_port)"
environment=(JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES="$devices" JAX_CPU_COLLECTIVES_IMPLEMENTATION=gloo
    JAXALIGN_COORDINATOR="$coordinator" JAXALIGN_NUM_PROCESSES="$count")
declare -A number=() # of each process that runs, by its id
readers=()

start() { # NUMBER
    local out command_line=(env "${environment[@]}" JAXALIGN_PROCESS_ID="$1" "${command[@]}")
    if ((DRY_RUN)); then
        run "${command_line[@]}"
        return
    fi
    exec {out}> >(trap '' TERM INT && exec sed -u "s/^/[$1] /")
    readers+=($!)
    "${command_line[@]}" </dev/null >&"$out" 2>&1 &
    number[$!]=$1
    exec {out}>&-
}

signal_all() { # SIGNAL
    local pid
    for pid in "${!number[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null || :; done
}

set -m # a process group for each: signals reach what it has started, and Ctrl-C comes only through this script
early=""
trap 'early=TERM' TERM
trap 'early=INT' INT
for ((k = 0; k < count; k++)); do start "$k"; done
trap 'signal_all TERM' TERM
trap 'signal_all INT' INT
[[ ! $early ]] || signal_all "$early"

result=0
while ((${#number[@]})); do
    code=0
    wait -n -p ended "${!number[@]}" || code=$?
    [[ ${ended:-} ]] || continue # a signal came, and was passed on
    k="${number[$ended]}"
    unset "number[$ended]"
    if ((code == 0 || code == AGAIN)); then
        ((result != 0)) || result=$code
    else
        say "process $k failed with exit code $code"
        # Without it the others would wait for it; they cannot save either, as that takes all of them.
        signal_all KILL
        for pid in "${!number[@]}"; do wait "$pid" 2>/dev/null || :; done
        number=()
        result=$code
    fi
done
for pid in ${readers[@]+"${readers[@]}"}; do wait "$pid" || :; done
exit "$result"
