#!/usr/bin/env bash
# Trains on all GPUs of this machine, in one process.
#
#   launch/gpu_node.sh --config=configs/dpo.py --workdir=runs/dpo --config.KEY=VALUE ...
#
#   --cuda=12|13         (12; 13 needs NVIDIA driver 580 or newer)
#   --env-file=FILE      lines NAME=VALUE for the training's environment
#   --max-restarts=N     after real errors (0)
#   --dry-run            print the commands
#
# The first call makes .venv. When the training stops with its state saved it is run again, unless it was this script
# that was told to stop (Ctrl-C, SIGTERM): then it returns 75, and the same command goes on later.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

cuda=12
for arg in "$@"; do
    case "$arg" in
        --cuda=12 | --cuda=13) cuda="${arg#*=}" ;;
        *) take_common "$arg" || unknown_flag "$arg" ;;
    esac
done
need_training_flags
[[ ! $ENV_FILE ]] || export_env_file "$ENV_FILE"

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
[[ -x $root/.venv/bin/jaxalign ]] || run bash "$root/launch/install.sh" "cuda$cuda"
keep_running "$root/.venv/bin/jaxalign" train "${TRAIN_FLAGS[@]}"
