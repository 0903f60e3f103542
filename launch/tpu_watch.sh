# Sourced by launch/tpu_vm.sh after launch/tpu_steps.sh: brings a run to its end, through preemptions and crashes.
# shellcheck shell=bash disable=SC2153,SC2154

# One word for the run on all workers: none, other, running, finished, stopped, told, mistake, died or unreachable.
# stopped: by `tpu_vm.sh stop`; told: by a SIGTERM from elsewhere, as from a machine that is about to be taken away.
run_state() {
  local answer asked=false
  answer="$(on_slices ssh_all state "${COMMAND[@]}" 2>"$scratch/ssh")" || { echo unreachable && return; }
  [[ "$answer" != *" after stop"* ]] || asked=true
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

# A failure that may pass: counted, so that what never works comes to an end.
again_after() {
  take_restart || refuse "$*, and --restarts is used up: bash launch/tpu_vm.sh logs --name=$name --zone=$zone shows why"
  say "$*; starting again ($restarts_left more times)"
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
  again_after "$1"
  # Without its peer no process can save: what is being written now gets a moment.
  if ! { on_slices ssh_all end 10 && on_slices set_up_slice && on_slices ssh_all start "${COMMAND[@]}"; }; then
    say "no answer"
  fi
}

# Looks at a TPU that is there; returns 1 when the command has finished.
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
        delete
      fi
      ;;
    finished)
      say "finished"
      ! $delete_at_end || delete
      return 1
      ;;
    stopped)
      say "the run was told to stop and has saved: the same command goes on with it"
      exit 75
      ;;
    mistake) refuse "the run ended with a mistake that starting again does not mend: bash launch/tpu_vm.sh logs --name=$name --zone=$zone shows it" ;;
    other) refuse "another command is running on $name: stop it first (bash launch/tpu_vm.sh stop --name=$name --zone=$zone)" ;;
  esac
}

bring_to_end() {
  local state before="" fresh=true silent=0 waited=0
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
      ACTIVE) look_after || return 0 ;;
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
