#!/usr/bin/env bash
# Submits a training job on TPU slices to the GKE cluster that kubectl points to, as a JobSet (jobset.yaml).
#
#   launch/gke/submit.sh --name=dpo --type=v5p-128 --image=REGION-docker.pkg.dev/PROJECT/REPO/jaxalign:TAG \
#       --config=configs/dpo.py --workdir=gs://BUCKET/runs/dpo --config.KEY=VALUE ...
#
#   --type=T              of each slice: v4-8 ..., v5e-16 ..., v5p-128 ..., v6e-256 ..., tpu7x-128 ...; the cluster
#                         needs a node pool of that type and topology for each slice, or node auto-provisioning
#   --slices=N            (1)
#   --spot | --reservation=R
#   --namespace=NS        (default)
#   --env-file=FILE       lines NAME=VALUE, for instance HF_TOKEN: stored as the Secret NAME-env
#   --max-restarts=N      after real errors (0). Exit code 75 and lost machines do not count. A host that dies without
#                         notice makes its peers end with errors: on many hosts give it a few
#   --dry-run             print the manifest and the commands
#
# The pods use the bucket as the service account of their node pool, which needs the roles on the bucket and the scope
# cloud-platform (README.md); a Kubernetes service account gives them no rights in Google Cloud.
#
# Then: kubectl get jobset NAME
#       kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=NAME,batch.kubernetes.io/job-completion-index=0
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"
source "$(dirname "${BASH_SOURCE[0]}")/../tpu_types.sh"

NAME="" TYPE="" IMAGE="" SLICES=1 CAPACITY="" NAMESPACE=default
for arg in "$@"; do
    case "$arg" in
        --name=?*) NAME="${arg#*=}" ;;
        --type=?*) TYPE="${arg#*=}" ;;
        --image=?*) IMAGE="${arg#*=}" ;;
        --slices=*) SLICES="$(natural "$arg")" ;;
        --spot | --reservation=?*)
            [[ -z $CAPACITY || $CAPACITY == "$arg" ]] || die "$CAPACITY and $arg exclude each other"
            CAPACITY="$arg"
            ;;
        --namespace=?*) NAMESPACE="${arg#*=}" ;;
        *) take_common "$arg" || unknown_flag "$arg" ;;
    esac
done
[[ $TYPE ]] || die "--type=TYPE is missing; for instance --type=v5p-128"
[[ $IMAGE ]] || die "--image=IMAGE is missing; launch/tpu.Dockerfile says how to make one"
# The longest name made of it, NAME-slice-N-M-xxxxx, must fit the 63 characters of a host name.
[[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] ||
    die "--name='$NAME' must be at most 40 lower-case letters, digits and hyphens, a letter first"
((SLICES >= 1)) || die "--slices=$SLICES: there must be at least one"
need_training_flags
describe_tpu "$TYPE"

# A JSON string is a YAML string. Kubernetes replaces $(NAME) in arguments, and $$ by $.
json_string() {
    local s="${1//\\/\\\\}"
    s="${s//\"/\\\"}" s="${s//$'\n'/\\n}" s="${s//$'\t'/\\t}"
    printf '"%s"' "$s"
}

json_list() {
    local word out=""
    for word in "$@"; do out+="$(json_string "${word//'$'/'$$'}"), "; done
    printf '[%s]' "${out%, }"
}

render() {
    local text capacity="" environment="" key
    text="$(<"$(dirname "${BASH_SOURCE[0]}")/jobset.yaml")"
    case "$CAPACITY" in
        --spot) capacity='                cloud.google.com/gke-spot: "true"' ;;
        --reservation=*)
            capacity="                cloud.google.com/reservation-name: $(json_string "${CAPACITY#*=}")"
            ;;
    esac
    [[ ! $ENV_FILE ]] ||
        environment="                  envFrom: [{secretRef: {name: $NAME-env}}]"
    text="${text//$'\n@CAPACITY@'/"${capacity:+$'\n'$capacity}"}"
    text="${text//$'\n@ENVIRONMENT@'/"${environment:+$'\n'$environment}"}"
    local -A values
    values=(
        [NAME]="$NAME" [NAMESPACE]="$(json_string "$NAMESPACE")" [MAX_RESTARTS]="$MAX_RESTARTS" [SLICES]="$SLICES"
        [HOSTS]="$TPU_HOSTS" [ACCELERATOR]="$GKE_ACCELERATOR" [TOPOLOGY]="$TPU_TOPOLOGY"
        [CHIPS_PER_HOST]="$TPU_CHIPS_PER_HOST" [IMAGE]="$(json_string "$IMAGE")"
    )
    for key in "${!values[@]}"; do text="${text//@$key@/"${values[$key]}"}"; done
    # Last, so that nothing in a user's value is taken for one of the names above.
    printf '%s\n' "${text/@ARGS@/"$(json_list train "${TRAIN_FLAGS[@]}")"}"
}

manifest="$(render)"
if [[ $ENV_FILE ]]; then
    secret=(kubectl create secret generic "$NAME-env" --namespace="$NAMESPACE" --from-env-file="$ENV_FILE")
    if ((DRY_RUN)); then
        run "${secret[@]}"
    else
        # `create` refuses a secret that exists, and `apply` takes it from a pipe.
        "${secret[@]}" --dry-run=client --output=yaml | run kubectl apply --filename=-
    fi
fi
((!DRY_RUN)) || printf '%s\n' "$manifest"
run kubectl apply --filename=- <<<"$manifest"
