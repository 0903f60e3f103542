#!/usr/bin/env bash
# What launch/tpu_vm.sh does on every worker of a TPU, over SSH; one run at a time, kept in ~/dalle-jax-run.
#   setup              moves the code from ~/dalle-jax.new to ~/dalle-jax and installs what it needs
#   start COMMAND...   starts a run that goes on when the connection ends
#   state [COMMAND...] prints `HOST dalle-jax state: none|other|running|lost|exit CODE`; other: another command;
#                      `exit CODE after stop` where a person has stopped it
#   saved COMMAND...   prints `dalle-jax saved: ` and how far the command has come
#   end SECONDS        SIGTERM, so that training saves; what does not end in time is killed
#   stop SECONDS       the same for a person: what watches the run does not start it again
#   logs LINES         follows the log
set -euo pipefail

CODE="$HOME/dalle-jax"
RUN="$HOME/dalle-jax-run"
export DALLE_JAX_VENV="${DALLE_JAX_VENV:-$HOME/dalle-jax-venv}"

running() {
  [[ -f "$RUN/holder" && ! -f "$RUN/exit" ]] && kill -0 "$(cat "$RUN/holder")" 2>/dev/null
}

install_python() {
  # The system's Python of TPU virtual machines is older than 3.11.
  "$DALLE_JAX_VENV/bin/python" -c '' 2>/dev/null && return
  PYTHON="$(find_python "ensurepip, venv" 2>/dev/null)" && return
  python3 -m pip install --quiet --user uv
  python3 -m uv python install --quiet 3.13
  PYTHON="$(python3 -m uv python find 3.13)"
}

setup() {
  if running; then
    echo "error: a run is going on here: stop it first (launch/tpu_vm.sh stop)" >&2
    exit 2
  fi
  if [[ -d "$CODE.new" ]]; then
    rm -rf "$CODE"
    mv "$CODE.new" "$CODE"
  fi
  cd "$CODE"
  source launch/setup.sh
  install_python
  make_environment
  install_once tpu -e ".[tpu,gcs]"
}

start() {
  if running; then
    echo "error: a run is going on here: stop it first (launch/tpu_vm.sh stop)" >&2
    exit 2
  fi
  mkdir -p "$RUN"
  rm -f "$RUN/exit" "$RUN/pid" "$RUN/holder" "$RUN/stopped"
  printf '%q ' "$@" >"$RUN/command"
  setsid nohup bash "${BASH_SOURCE[0]}" hold "$@" >>"$RUN/log" 2>&1 </dev/null &
  while [[ ! -s "$RUN/pid" ]]; do sleep 0.1; done
}

# In a session of its own: runs the command and writes down how it ended. 75: told to stop, and saved.
hold() {
  local code=0
  # A machine that is taken away sends it to every process; how the command ends then is still to be written down. So the
  # command runs in the foreground: `wait`, where it gets the signal as the command ends, may never learn the exit code.
  trap : TERM
  cd "$CODE"
  echo "== $(date -u +%Y-%m-%dT%H:%M:%SZ) $(git describe --always --dirty 2>/dev/null || true): $(cat "$RUN/command")"
  echo $$ >"$RUN/holder"
  # shellcheck disable=SC2016 # for the inner bash, which becomes the command
  PATH="$DALLE_JAX_VENV/bin:$PATH" DALLE_JAX_PREEMPTED_CODE=75 bash -c 'echo $$ >"$0"; exec "$@"' "$RUN/pid" "$@" || code=$?
  echo "== $(date -u +%Y-%m-%dT%H:%M:%SZ) ended with code $code"
  echo "$code" >"$RUN/exit.new"
  mv "$RUN/exit.new" "$RUN/exit"
}

state() {
  local state
  if [[ ! -f "$RUN/command" || ! -d "$CODE" ]]; then
    state=none
  elif (($#)) && [[ "$(cat "$RUN/command")" != "$(printf '%q ' "$@")" ]]; then
    if running; then state=other; else state=none; fi
  elif running; then
    state=running
  elif [[ -f "$RUN/exit" ]]; then # looked for after `running`, which is false from the moment that it is there
    state="exit $(cat "$RUN/exit")"
    [[ ! -f "$RUN/stopped" ]] || state+=" after stop"
  else
    state=lost
  fi
  echo "$(hostname) dalle-jax state: $state"
}

saved() {
  cd "$CODE"
  "$DALLE_JAX_VENV/bin/python" -m launch.cluster.supervise "$@"
}

stop() {
  [[ ! -d "$RUN" ]] || touch "$RUN/stopped"
  end "$1"
}

end() {
  running || return 0
  kill -TERM "$(cat "$RUN/pid")" 2>/dev/null || true
  for ((i = 0; i < $1; i++)); do
    running || return 0
    sleep 1
  done
  # Everything of its session; the holder as well, so that it writes nothing more.
  pkill -KILL -s "$(cat "$RUN/holder")" || true
  echo 137 >"$RUN/exit"
}

logs() {
  touch "$RUN/log"
  exec tail -n "$1" -F "$RUN/log"
}

case "${1:-}" in
  setup | start | hold | state | saved | stop | end | logs) "$@" ;;
  *) echo "error: what is '${1:-}'? one of setup, start, state, saved, stop, end, logs" >&2 && exit 2 ;;
esac
