#!/usr/bin/env bash
# Set-up, then the whole road on the embedded data set: train codec, CLIP and decoder, draw, rank, report.
# Arguments go to the training: bash launch/quickstart.sh --config.seed=1
# Stopped by SIGTERM or Ctrl-C it saves and ends; the same command goes on.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/setup.sh

child=""
stopped=0
# shellcheck disable=SC2317  # called by the traps
stop() {
  stopped="$1"
  [[ -n "$child" ]] || exit "$stopped"
  kill -TERM "$child" 2>/dev/null || true
}
trap 'stop 143' TERM
trap 'stop 130' INT

# step COMMAND...: runs it where a signal to this script reaches it; nothing comes after one that was stopped or failed.
step() {
  local code
  "$@" &
  child=$!
  while :; do
    code=0
    wait "$child" || code=$?
    kill -0 "$child" 2>/dev/null || break # `wait` ends at a signal too
  done
  child=""
  ((code == 0)) || exit "$code"
  ((stopped == 0)) || exit "$stopped"
}

make_environment
install_once core -e .

WORKDIR="${WORKDIR:-runs/quickstart}"
export DALLE_JAX_PREEMPTED_CODE="${DALLE_JAX_PREEMPTED_CODE:-75}" # a training that was stopped and has saved is not done
step "$PYTHON" -m launch.train --config=configs/quickstart.py --workdir="$WORKDIR" "$@"
step "$PYTHON" -m launch.evaluate --model="$WORKDIR"
