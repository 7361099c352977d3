# shellcheck shell=bash
# shellcheck disable=SC2034  # the variables are the result
# The table of TPU slices, from Google's "TPU versions" and "TPUs in GKE" pages. v4, v5p and TPU7x are counted in
# TensorCores (two a chip) and wired as a torus of three dimensions; v5e and v6e are counted in chips, in two.

# describe_tpu TYPE: sets TPU_TYPE as gcloud spells it, TPU_RUNTIME, TPU_CHIPS, TPU_TOPOLOGY, TPU_HOSTS,
# TPU_CHIPS_PER_HOST and GKE_ACCELERATOR. TPU_RUNTIME is empty for what the Cloud TPU API does not have.
describe_tpu() {
    local type="${1/#v5e-/v5litepod-}"
    local generation="${type%-*}" size="${type##*-}"
    [[ $type == *-* && $size =~ ^[1-9][0-9]*$ ]] || die "TPU type '$1' is not GENERATION-SIZE; for instance v5p-128"
    TPU_TYPE="$type"
    case "$generation" in
        v4) TPU_RUNTIME=tpu-ubuntu2204-base GKE_ACCELERATOR=tpu-v4-podslice ;;
        v5p) TPU_RUNTIME=v2-alpha-tpuv5 GKE_ACCELERATOR=tpu-v5p-slice ;;
        v5litepod) TPU_RUNTIME=v2-alpha-tpuv5-lite GKE_ACCELERATOR=tpu-v5-lite-podslice ;;
        v6e) TPU_RUNTIME=v2-alpha-tpuv6e GKE_ACCELERATOR=tpu-v6e-slice ;;
        tpu7x) TPU_RUNTIME="" GKE_ACCELERATOR=tpu7x ;;
        *) die "TPU type '$1': generation '$generation' is not one of v4, v5e, v5p, v6e, tpu7x" ;;
    esac
    case "$generation" in
        v4 | v5p | tpu7x)
            TPU_CHIPS=$((size / 2)) TPU_TOPOLOGY="$(torus_topology "$size")"
            TPU_CHIPS_PER_HOST=4
            ;;
        *)
            TPU_CHIPS=$size TPU_TOPOLOGY="$(flat_topology "$size")"
            # Up to eight chips one machine holds them all; larger slices are made of machines with four.
            TPU_CHIPS_PER_HOST=$((size <= 8 ? size : 4))
            ;;
    esac
    [[ $TPU_TOPOLOGY ]] || die "TPU type '$1': there is no slice of size $size; sizes are powers of two"
    TPU_HOSTS=$((TPU_CHIPS / TPU_CHIPS_PER_HOST))
}

torus_topology() {
    case "$1" in
        8) echo 2x2x1 ;;
        16) echo 2x2x2 ;;
        32) echo 2x2x4 ;;
        64) echo 2x4x4 ;;
        128) echo 4x4x4 ;;
        256) echo 4x4x8 ;;
        512) echo 4x8x8 ;;
        1024) echo 8x8x8 ;;
        2048) echo 8x8x16 ;;
        4096) echo 8x16x16 ;;
        8192) echo 16x16x16 ;;
    esac
}

flat_topology() {
    case "$1" in
        1) echo 1x1 ;;
        4) echo 2x2 ;;
        8) echo 2x4 ;;
        16) echo 4x4 ;;
        32) echo 4x8 ;;
        64) echo 8x8 ;;
        128) echo 8x16 ;;
        256) echo 16x16 ;;
    esac
}
