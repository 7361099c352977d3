#!/usr/bin/env bash
# Makes .venv in this checkout, with jax for an accelerator and jaxalign.
#
#   launch/install.sh tpu|cuda12|cuda13|cpu [--dry-run]
#
# Uses a Python of at least 3.11 if the machine has one, and otherwise fetches one with uv: TPU virtual machines come
# with 3.10. CUDA itself comes with the wheels; cuda13 needs NVIDIA driver 580 or newer, cuda12 needs 525.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

extra=""
for arg in "$@"; do
    case "$arg" in
        tpu | cuda12 | cuda13 | cpu) extra="$arg" ;;
        *) take_common "$arg" || unknown_flag "$arg" ;;
    esac
done
[[ $extra ]] || die "name the accelerator: tpu, cuda12, cuda13 or cpu"
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

find_python() {
    local name
    for name in python3.13 python3.12 python3.11 python3; do
        # Without ensurepip (Debian's python3 without python3-venv) no environment can be made.
        if "$name" -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
}

if [[ ! -x .venv/bin/python ]]; then
    python="$(find_python)"
    if [[ $python ]]; then
        run "$python" -m venv .venv
    else
        PATH="$HOME/.local/bin:$PATH"
        command -v uv >/dev/null || run bash -c 'curl -LsSf https://astral.sh/uv/install.sh | sh'
        run uv venv --quiet --seed --python=3.12 .venv
    fi
fi
run .venv/bin/python -m pip install --quiet "jax[$extra]" ".[gcs]"
