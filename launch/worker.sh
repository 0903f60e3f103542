#!/usr/bin/env bash
# Runs one process of a run on a cluster, so that its exit code says how the run ended: bash launch/worker.sh COMMAND...
#   0     finished
#   2     a mistake that a person must mend; starting again would not help
#   143   told to stop (SIGTERM) and saved: starting again goes on
#   else  died; starting again goes on from the last checkpoint
# Training that was told to stop ends with 0, which clusters would take for finished.
set -u

if ! (($#)); then
  echo "error: no command given: bash launch/worker.sh COMMAND..." >&2
  exit 2
fi

child=""
stopped=false
# shellcheck disable=SC2317  # called by the trap
pass_on() {
  interrupted=true
  stopped=true
  if [[ -n "$child" ]]; then
    kill -TERM "$child" 2>/dev/null
  fi
}
trap pass_on TERM INT

"$@" &
child=$!
if $stopped; then # the signal came before there was a child
  kill -TERM "$child" 2>/dev/null
fi
while :; do
  interrupted=false
  wait "$child"
  code=$?
  $interrupted || break
done

if $stopped && ((code == 0)); then
  code=143
fi
exit "$code"
