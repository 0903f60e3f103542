# Sourced by launch/tpu_vm.sh after launch/cluster/tpu_steps.sh: brings a run to its end, through preemptions and crashes.
# shellcheck shell=bash disable=SC2153,SC2154

# One word for the run on all workers: none, other, running, finished, stopped, told, mistake, died or unreachable.
# stopped: by `tpu_vm.sh stop`; told: by a SIGTERM from elsewhere, as from a machine that is about to be taken away.
run_state() {
  local answer asked=false
  answer="$(on_slices slice_states "${COMMAND[@]}" 2>"$scratch/ssh")" || { echo unreachable && return; }
  [[ "$answer" != *" after stop"* ]] || asked=true
  sort -V <<<"$answer" >"$scratch/states" # for show_log: this runs in a shell of its own
  answer="$(grep -o 'dalle-jax state: .*' <<<"$answer" | cut -d' ' -f3- | sed 's/ after stop$//' | sort -u | tr '\n' ';')"
  case ";$answer" in
    *";other;"*) echo other ;;
    *";exit 2;"*) echo mistake ;;
    ";none;" | ";") echo none ;;
    *";none;"* | *";lost;"*) echo died ;;
    *) case "$asked ${answer//exit 0;/}" in
      *" ") echo finished ;;
      *" running"* | *" exit 75;running;") echo running ;;
      "true "*) echo stopped ;;
      *" exit 75;" | *" exit 143;" | *" exit 143;exit 75;") echo told ;; # 143: from a script that saves nothing
      *) echo died ;;
    esac ;;
  esac
}

# slice_states SLICE COMMAND...: the state of each of its workers, in a line that begins with the slice's name.
slice_states() {
  local node="$1"
  shift
  ssh_all "$node" state "$@" | sed "s/^/$node /"
}

# The command that shows the log of the worker which ended the run: of one with a mistake, before one that failed of itself,
# before those that ended because another one did (134, 137, 143) or were told to (75).
show_log() {
  local node host which=""
  read -r node host <<<"$(awk '
    / (none|running|exit 0)$/ { next }
    { print (/ exit 2$/ ? 0 : / (exit (75|134|137|143)|lost)$/ ? 2 : 1), $1, $2 }
  ' "$scratch/states" | sort -s -k1,1 | sed -n '1s/^. //p')"
  ((slices == 1)) || which=" --slice=${node##*-}"
  # As Google calls a TPU's machines: t1v-n-1a2b3c4d-w-7.
  [[ ! "$host" =~ -w-([0-9]+)$ ]] || which+=" --worker=${BASH_REMATCH[1]}"
  echo "bash launch/tpu_vm.sh logs $named$which"
}

# A failure that may pass: counted, so that what never works comes to an end. again_after WHAT [COMMAND THAT SHOWS WHY]
again_after() {
  take_restart || refuse "$1, and --restarts is used up${2:+: $2 shows why}"
  say "$1; starting again ($restarts_left more times)"
}

# The workers can see the checkpoints, which this machine need not, and have the libraries.
ask_progress() {
  ssh_to "$(slice_name 0)" 0 saved "${COMMAND[@]}"
}

look_for_progress() {
  hear_progress "$(ask_progress 2>"$scratch/ssh")"
}

# start_over WHY: starts the run again on workers that are there.
start_over() {
  look_for_progress
  again_after "$1" "$(show_log)"
  # Without its peer no process can save: what is being written now gets a moment.
  if ! { on_slices ssh_all end 10 && on_slices set_up_slice && on_slices ssh_all start "${COMMAND[@]}"; }; then
    say "no answer"
  fi
}

# Looks at a TPU that is there, and sets `finished` when the command is; what fails here is tried again at the next look.
look_after() {
  local state
  state="$(run_state)"
  if $fresh && [[ "$state" == stopped || "$state" == told || "$state" == mistake ]]; then state=none; fi
  fresh=false
  [[ "$state" == unreachable ]] || silent=0
  [[ "$state" == told ]] || waited=0
  case "$state" in
    running) ;;
    none)
      say "setting up and starting"
      if pack && on_slices set_up_slice && look_for_progress && on_slices ssh_all start "${COMMAND[@]}"; then
        say "started"
      else
        again_after "setting up failed"
      fi
      ;;
    died) start_over "the run died" ;;
    told)
      # SIGTERM comes before the TPU's state says that it is taken away.
      waited=$((waited + 1))
      ((waited > 1)) || say "the run was told to stop, and not by tpu_vm.sh: waiting whether its TPU is taken away"
      ((waited < 3)) || start_over "its TPU is still there"
      ;;
    unreachable)
      silent=$((silent + 1))
      if ((silent == 3)); then
        say "the workers do not answer: $(tail -n 1 "$scratch/ssh")"
        silent=0
        again_after "giving the TPU back"
        delete || say "no answer"
      fi
      ;;
    finished) finished=true ;;
    stopped)
      say "the run was told to stop and has saved: the same command goes on with it"
      exit 75
      ;;
    mistake)
      on_slices ssh_all end 10 || say "no answer" # others may wait for that worker, and would be in the next run's way
      refuse "the run ended with a mistake that starting again does not mend: $(show_log) shows it"
      ;;
    other) refuse "another command is running on $name: stop it first (bash launch/tpu_vm.sh stop $named)" ;;
  esac
}

# Asks several times, since a TPU costs until it is given back, and what Google refuses may pass.
give_back() {
  local tries
  for ((tries = 0; tries < 5; tries++)); do
    ((tries == 0)) || sleep "$poll"
    ! delete || return 0
    case "$(queue_state)" in # the answer alone may have been lost
      DELETING | ABSENT) return ;;
    esac
    say "the TPU was not given back"
  done
  refuse "the run has finished, but its TPU may still be rented: bash launch/tpu_vm.sh delete $named gives it back"
}

bring_to_end() {
  local state before="" fresh=true silent=0 waited=0 finished=false
  if $dry_run; then
    show_plan
    return
  fi
  trap 'say "no longer watching; the run goes on"; exit 130' INT
  pack
  while :; do
    state="$(queue_state)"
    [[ "$state" == "$before" ]] || say "$state"
    before="$state"
    case "$state" in
      ACTIVE) look_after || true ;;
      ABSENT) create || again_after "asking for the TPU failed" ;;
      SUSPENDED)
        say "preempted: asking for another one"
        delete || say "no answer"
        ;;
      FAILED)
        again_after "the TPU was not given"
        delete || say "no answer"
        ;;
    esac
    if $finished; then
      say "finished"
      ! $delete_at_end || give_back
      return
    fi
    sleep "$poll"
  done
}

show_plan() {
  create
  wait_for_tpu
  pack
  on_slices set_up_slice
  ask_progress
  on_slices ssh_all start "${COMMAND[@]}"
  echo "# every $poll s until the command has finished; after a crash it is stopped and started again:"
  describe
  on_slices ssh_all state "${COMMAND[@]}"
  echo "# after a preemption (SUSPENDED), then everything from the top:"
  delete
  ! $delete_at_end || { echo "# when the command has finished:" && delete; }
}
