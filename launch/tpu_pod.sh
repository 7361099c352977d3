#!/usr/bin/env bash
# Trains on a Cloud TPU slice, or on several: gets it, installs, runs, restarts after preemption.
#
#   launch/tpu_pod.sh all --name=dpo --zone=us-east5-a --type=v5p-128 --spot \
#       --config=configs/dpo.py --workdir=gs://BUCKET/runs/dpo --config.KEY=VALUE ...
#
# Verbs:
#   create   asks for the slice and waits until it is there; uses the one of that name if it exists
#   setup    copies the code to all workers and installs it
#   run      starts the training on all workers, or finds it running; follows its log; runs it again when it stopped
#            with its state saved (75) and when the slice was taken away: then the slice is asked for anew and set up
#   all      create, setup, run. The same command again finds the running job and follows it
#   logs     prints and follows the log of worker 0, or of --worker=K, of the first slice, or of --slice=J
#   status   says how the slice and each of its workers are
#   stop     lets the training save its state and end; the slice stays (end a `run` first: it would start it again)
#   delete   gives the slice back. Nothing else does: what is not deleted costs
#
# The slice:
#   --name=N --zone=Z --type=T   T: v4-8 ..., v5e-16 ..., v5p-128 ..., v6e-256 ...
#   --project=P                  default: gcloud's own
#   --slices=N                   several slices, joined over the data-centre network (default 1)
#   --spot | --reserved          default: on demand
#   --runtime-version=V          default: by the type
#   --create-flag=FLAG           any other flag of `gcloud compute tpus queued-resources create`; may be repeated.
#                                --service-account=ACCOUNT: who uses the bucket, in place of Compute Engine's default
# The job:
#   --config=FILE --workdir=DIR --config.KEY=VALUE ...   as for `jaxalign train`; DIR on storage that all workers see
#   --repo=URL[#BRANCH]          a git repository to install (default: this working tree)
#   --env-file=FILE              lines NAME=VALUE, for instance HF_TOKEN; copied to the workers, shown nowhere
#   --max-restarts=N             after real errors (default 0: stop and say so)
# Also: --poll=SECONDS between looks at the slice (60), --dry-run, --help.
#
# Exit codes: 0 done, 2 bad usage or a slice that cannot be had, otherwise the training's own.
# Lose this terminal and the training goes on; only the restarting stops, until the same command is given again.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/tpu_types.sh"

NAME="" ZONE="" PROJECT="" TYPE="" RUNTIME="" REPO="" CAPACITY="" SLICES=1 POLL=60 SLICE=0 WORKER=0
CREATE_FLAGS=()
STATE=NONE    # of the queued resource; NONE: there is none
NEEDS_SETUP=0 # nothing is installed on the slice yet, or not this code
PATIENCE=10   # looks at an unclear situation before it is taken for what it seems to be
REQUESTS=3    # requests for a slice that may fail before it is given up

parse() {
    VERB="${1:---help}"
    shift || :
    case "$VERB" in
        create | setup | run | all | logs | status | stop | delete) ;;
        --help | -h) take_common --help ;;
        *) die "'$VERB' is not a verb; write create, setup, run, all, logs, status, stop or delete" ;;
    esac
    local arg
    for arg in "$@"; do
        case "$arg" in
            --name=?*) NAME="${arg#*=}" ;;
            --zone=?*) ZONE="${arg#*=}" ;;
            --project=?*) PROJECT="${arg#*=}" ;;
            --type=?*) TYPE="${arg#*=}" ;;
            --runtime-version=?*) RUNTIME="${arg#*=}" ;;
            --repo=?*) REPO="${arg#*=}" ;;
            --spot | --reserved)
                [[ -z $CAPACITY || $CAPACITY == "$arg" ]] || die "--spot and --reserved exclude each other"
                CAPACITY="$arg"
                ;;
            --slices=*) SLICES="$(natural "$arg")" ;;
            --poll=*) POLL="$(natural "$arg")" ;;
            --slice=*) SLICE="$(natural "$arg")" ;;
            --worker=*) WORKER="$(natural "$arg")" ;;
            --create-flag=?*) CREATE_FLAGS+=("${arg#*=}") ;;
            *) take_common "$arg" || unknown_flag "$arg" ;;
        esac
    done
    [[ $NAME ]] || die "--name=NAME of the slice is missing"
    [[ $ZONE ]] || die "--zone=ZONE is missing; for instance --zone=us-east5-a"
    ((SLICES >= 1)) || die "--slices=$SLICES: there must be at least one"
    case "$VERB" in create | run | all)
        [[ $TYPE ]] || die "--type=TYPE is missing; for instance --type=v5p-128 (also needed to ask for the slice anew)"
        describe_tpu "$TYPE"
        [[ $TPU_RUNTIME ]] || die "TPU type '$TYPE' is not in the Cloud TPU API; launch/gke/submit.sh takes it"
        ;;
    esac
    case "$VERB" in run | all) need_training_flags ;; esac
    case "$VERB" in create | all) ;; *) ((!DRY_RUN)) || STATE=ACTIVE ;; esac
    PLACE=(--zone="$ZONE" ${PROJECT:+--project="$PROJECT"})
    NODES=("$NAME")
    if ((SLICES > 1)); then
        local i
        NODES=()
        for ((i = 0; i < SLICES; i++)); do NODES+=("$NAME-$i"); done
    fi
    ((SLICE < SLICES)) || die "--slice=$SLICE: there are $SLICES, counted from 0 (--slices=N says how many)"
}

# ---------------------------------------------------------------------------------------------- the slice

# Sets STATE to the queued resource's state. In a dry run it is what the step before would have led to.
read_state() {
    local out tries
    for ((tries = 1; ; tries++)); do
        if out="$(run gcloud compute tpus queued-resources describe "$NAME" "${PLACE[@]}" \
            --format="value(state.state)" 2>&1)"; then
            ((DRY_RUN)) || STATE="$(grep -x '[A-Z_]\+' <<<"$out" | tail -n 1)" || STATE=""
            return
        elif [[ $out == *NOT_FOUND* || $out == *"not found"* ]]; then
            STATE=NONE
            return
        fi
        ((tries < REQUESTS)) || die "cannot ask for the state of $NAME: $out"
        sleep "$POLL"
    done
}

create() {
    local nodes=(--node-id="$NAME")
    ((SLICES == 1)) || nodes=(--node-count="$SLICES" --node-prefix="$NAME")
    run gcloud compute tpus queued-resources create "$NAME" "${PLACE[@]}" --quiet "${nodes[@]}" \
        --accelerator-type="$TPU_TYPE" --runtime-version="${RUNTIME:-$TPU_RUNTIME}" \
        ${CAPACITY:+"$CAPACITY"} ${CREATE_FLAGS[@]+"${CREATE_FLAGS[@]}"} ||
        die "the slice was not granted; see gcloud's message above (quota: README.md, step 1)"
    NEEDS_SETUP=1
    ((!DRY_RUN)) || STATE=ACTIVE
}

delete() {
    run gcloud compute tpus queued-resources delete "$NAME" "${PLACE[@]}" --quiet --force
}

# Returns when the slice is there, having asked for it if need be. A queued resource that has lost its machines
# never gets others: it is deleted and asked for anew.
ensure_active() {
    local requests=0
    while :; do
        read_state
        case "$STATE" in
            ACTIVE) return ;;
            NONE)
                create
                requests=$((requests + 1))
                ;;
            FAILED | SUSPENDED)
                ((requests < REQUESTS)) || die "$NAME is $STATE after $requests requests; see
  gcloud compute tpus queued-resources describe $NAME $(quote "${PLACE[@]}")"
                say "$NAME is $STATE; asking for it anew"
                delete
                ;;
            CREATING | ACCEPTED | WAITING_FOR_RESOURCES | PROVISIONING | SUSPENDING | DELETING)
                say "$NAME is $STATE; looking again in $POLL s"
                sleep "$POLL"
                ;;
            *) die "$NAME is in a state that this script does not know: '$STATE'" ;;
        esac
    done
}

# ---------------------------------------------------------------------------------------------- its workers

# on_node NODE WORKERS COMMAND: by ssh. A dead machine must end the connection: without the options ssh waits for ever.
on_node() {
    run gcloud compute tpus tpu-vm ssh "$1" "${PLACE[@]}" --quiet --worker="$2" \
        --ssh-flag="-o ServerAliveInterval=30" --ssh-flag="-o ServerAliveCountMax=4" --command="$3"
}

copy_to_node() { # NODE FILE NAME
    run gcloud compute tpus tpu-vm scp "$2" "$1:$3" "${PLACE[@]}" --quiet --worker=all
}

# each_node ACTION ...: calls the function as ACTION NODE ... for every slice at once; fails if one does.
each_node() {
    local action="$1" node pid pids=() failed=0
    shift
    for node in "${NODES[@]}"; do
        if ((DRY_RUN || SLICES == 1)); then
            "$action" "$node" "$@" || failed=$?
        else
            "$action" "$node" "$@" &
            pids+=($!)
        fi
    done
    for pid in ${pids[@]+"${pids[@]}"}; do wait "$pid" || failed=$?; done
    return "$failed"
}

worker_command() { quote bash jaxalign/launch/worker.sh "$@"; }

# Sets WORKERS to one line of each worker, "jaxalign-worker HOST STATE"; fails when one cannot be reached.
read_workers() {
    local code=0
    WORKERS="$(each_node on_node all "$(worker_command status)")" || code=$?
    ((!DRY_RUN)) || WORKERS="jaxalign-worker dry-run 0"
    WORKERS="$(grep '^jaxalign-worker ' <<<"$WORKERS")" || return
    return "$code"
}

count_running() { grep -c ' running$' <<<"$WORKERS" || :; }

# shellcheck disable=SC2317,SC2329  # called by each_node
setup_node() { # NODE
    local idle install='bash jaxalign/launch/install.sh tpu'
    # Never pull the code from under a job that runs.
    idle="{ ! $(worker_command status) 2>/dev/null | grep ' running\$'; } && rm -rf jaxalign"
    if [[ $REPO ]]; then
        local branch=()
        [[ $REPO != *"#"* ]] || branch=(--branch "${REPO#*#}")
        install="$(quote git clone --quiet --depth 1 ${branch[@]+"${branch[@]}"} "${REPO%%#*}" jaxalign) && $install"
    else
        copy_to_node "$1" "$ARCHIVE" jaxalign.tar.gz || return
        install="mkdir jaxalign && tar -xzf jaxalign.tar.gz -C jaxalign && $install"
    fi
    if [[ $ENV_FILE ]]; then
        copy_to_node "$1" "$ENV_FILE" .jaxalign.env || return
        install="chmod 600 .jaxalign.env && $install"
    fi
    on_node "$1" all "$idle && $install"
}

setup() {
    ARCHIVE="${TMPDIR:-/tmp}/jaxalign.$$.tar.gz"
    local code=0
    if [[ -z $REPO ]]; then
        local root
        root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
        # The working tree as it is: with edits and new files, without what git ignores and what was deleted.
        # shellcheck disable=SC2016  # expanded by the inner shell
        run bash -c 'set -o pipefail; cd "$1" && git ls-files -coz --exclude-standard |
            while IFS= read -rd "" f; do [[ ! -e $f ]] || printf "%s\0" "$f"; done | tar --null -T - -czf "$2"' \
            pack "$root" "$ARCHIVE" || die "the working tree could not be packed; --repo=URL installs from git"
    fi
    each_node setup_node || code=$?
    rm -f "$ARCHIVE"
    ((code)) || NEEDS_SETUP=0
    return "$code"
}

# ---------------------------------------------------------------------------------------------- the job

# After a failure on the workers: returns if the slice is gone, and stops otherwise.
gone_or_die() {
    read_state
    [[ $STATE != ACTIVE ]] || die "$1 failed on $NAME, and the slice is there; see the message above"
    say "$NAME is $STATE"
}

# Follows the job to its end. Sets OUTCOME: finished; again (stopped, state saved); lost (a worker lost the job); gone
# (the slice is); or the exit code of an error.
watch_job() {
    local unclear=0 follow=1 running
    while ((unclear < PATIENCE)); do
        ((!follow)) || on_node "${NODES[0]}" 0 "$(worker_command follow)" || say "the connection to worker 0 ended"
        follow=0
        if ! read_workers; then
            read_state
            OUTCOME=gone
            [[ $STATE == ACTIVE ]] || return 0
            ((unclear + 1 < PATIENCE)) ||
                die "$NAME is ACTIVE, but after $PATIENCE looks a worker of it cannot be reached"
            say "a worker of $NAME cannot be reached; looking again in $POLL s"
        else
            running="$(count_running)"
            ((running)) || break
            if ((running == $(wc -l <<<"$WORKERS"))); then
                follow=1 unclear=-1 # only the connection had ended
            fi
        fi
        unclear=$((unclear + 1))
        sleep "$POLL"
    done
    # When a slice is taken away, those of its workers that still answer report errors.
    read_state
    OUTCOME=gone
    [[ $STATE != ACTIVE ]] || OUTCOME="$(judge_workers)"
}

# One word for the states of all workers. Those that still run after the others have ended are stuck.
judge_workers() {
    local state lost=0 error="" again=0
    while read -r _ _ state; do
        case "$state" in
            0) ;;
            "$AGAIN" | running) again=1 ;;
            lost | none) lost=1 ;;
            *) error="${error:-$state}" ;;
        esac
    done <<<"$WORKERS"
    if ((lost)); then
        echo lost
    elif [[ $error ]]; then
        echo "$error"
    elif ((again)); then
        echo again
    else
        echo finished
    fi
}

run_job() {
    local restarts=0
    while :; do
        [[ $STATE == ACTIVE ]] || ensure_active
        if ((NEEDS_SETUP)) && ! setup; then
            gone_or_die "setup"
            continue
        fi
        if ! each_node on_node all "$(worker_command start "${TRAIN_FLAGS[@]}")"; then
            gone_or_die "starting the training"
            continue
        fi
        watch_job
        case "$OUTCOME" in
            finished)
                say "done: $WORKDIR. The slice is still there, and costs: launch/tpu_pod.sh delete" \
                    "--name=$NAME $(quote "${PLACE[@]}")"
                return
                ;;
            gone)
                say "$NAME was taken away ($STATE); asking for it anew"
                continue
                ;;
            again) say "stopped with its state saved; running it again" ;;
            lost) say "a worker has lost the job; running it again" ;;
            *)
                say "the training failed:"
                printf '%s\n' "$WORKERS" >&2
                if ((restarts >= MAX_RESTARTS)); then
                    say "exit code $OUTCOME, which a restart would not cure (--max-restarts=N tries anyway);" \
                        "the log of worker K: launch/tpu_pod.sh logs --name=$NAME $(quote "${PLACE[@]}") --worker=K"
                    exit "$OUTCOME"
                fi
                restarts=$((restarts + 1))
                say "restart $restarts of $MAX_RESTARTS"
                ;;
        esac
        # What is left of it on some worker holds that worker's chips.
        each_node on_node all "$(worker_command stop --grace=60)" || gone_or_die "stopping what was left of the job"
    done
}

# Whether the slice is set up and its job runs on some worker.
job_runs() { ((!NEEDS_SETUP && !DRY_RUN)) && read_workers && (($(count_running))); }

main() {
    parse "$@"
    case "$VERB" in
        create) ensure_active ;;
        setup)
            STATE=ACTIVE
            setup || die "setup failed on $NAME; see the message above"
            ;;
        run)
            read_state
            [[ $STATE != NONE ]] || die "there is no slice $NAME in $ZONE; write 'all' in place of 'run' to create it"
            run_job
            ;;
        all)
            ensure_active
            # A job that runs keeps the code that it was started with.
            job_runs || NEEDS_SETUP=1
            run_job
            ;;
        logs) on_node "${NODES[SLICE]}" "$WORKER" "$(worker_command follow)" ;;
        status)
            read_state
            say "$NAME is $STATE"
            [[ $STATE != ACTIVE ]] || each_node on_node all "$(worker_command status)"
            ;;
        stop) each_node on_node all "$(worker_command stop)" ;;
        delete) delete ;;
    esac
}

main "$@"
