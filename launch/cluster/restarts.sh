# Sourced by the starters: how often a run that died is started again. As `launch.local --restart` counts, only starts in a
# row that brought no new checkpoint count: a run that loses a machine every day and saves every hour goes on for ever.
# shellcheck shell=bash disable=SC2154

# Of `restarts`, which who sources this has set.
restarts_left="$restarts"
come_to=""

# hear_progress ANSWER: what `python -m launch.cluster.supervise COMMAND` has printed. Where it could not tell, nothing changes.
hear_progress() {
  local line='dalle-jax saved: [^
]*'
  [[ "$1" =~ $line && "${BASH_REMATCH[0]}" != "$come_to" ]] || return 0
  come_to="${BASH_REMATCH[0]}"
  restarts_left="$restarts"
}

take_restart() {
  ((restarts_left > 0)) || return 1
  restarts_left=$((restarts_left - 1))
}

# Seconds before the restart that was taken: doubled from 5 to a minute while nothing is gained.
pause_before_restart() {
  local in_vain=$((restarts - restarts_left))
  echo $((in_vain > 4 ? 60 : 5 << (in_vain - 1)))
}
