# Sourced by launch/tpu_vm.sh, which has checked every variable used here: what its sub-commands do.
# shellcheck shell=bash disable=SC2153,SC2154

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
place=(--zone="$zone")
[[ -z "$project" ]] || place+=(--project="$project")
ssh_options=(--quiet)
! $internal_ips || ssh_options+=(--internal-ip)

say() {
  echo "$(date -u +%Y-%m-%dT%H:%M:%SZ) $name: $*" >&2
}

tpu() {
  run gcloud compute tpus "$@" "${place[@]}"
}

slice_name() {
  if ((slices > 1)); then echo "$name-$1"; else echo "$name"; fi
}

# on_slices FUNCTION ARGUMENTS...: FUNCTION SLICE ARGUMENTS... for every slice at the same time.
on_slices() {
  local function="$1" failed=false pids=() i pid
  shift
  for ((i = 0; i < slices; i++)); do
    if $dry_run; then
      "$function" "$(slice_name "$i")" "$@"
    else
      "$function" "$(slice_name "$i")" "$@" &
      pids+=($!)
    fi
  done
  for pid in ${pids[@]+"${pids[@]}"}; do
    wait "$pid" || failed=true
  done
  ! $failed
}

# ssh_to SLICE WORKER ACTION ARGUMENTS...: an action of launch/tpu_worker.sh.
ssh_to() {
  local node="$1" which="$2" command
  shift 2
  command="bash dalle-jax/launch/tpu_worker.sh $(quoted "$@")"
  # A worker that was not set up is no failure to those who ask.
  [[ "$1" != state ]] || command="test ! -e dalle-jax && echo dalle-jax state: none || $command"
  tpu tpu-vm ssh "$node" --worker="$which" "${ssh_options[@]}" --command="$command"
}

ssh_all() {
  local node="$1"
  shift
  ssh_to "$node" all "$@"
}

create() {
  local options=(--accelerator-type="$accelerator_type" --runtime-version="${runtime_version:-$default_version}")
  if ((slices > 1)); then options+=(--node-count="$slices" --node-prefix="$name"); else options+=(--node-id="$name"); fi
  ! $spot || options+=(--spot)
  ! $reserved || options+=(--reserved)
  ! $internal_ips || options+=(--internal-ips)
  [[ -z "$network" ]] || options+=(--network="$network")
  [[ -z "$subnetwork" ]] || options+=(--subnetwork="$subnetwork")
  [[ -z "$service_account" ]] || options+=(--service-account="$service_account")
  tpu queued-resources create "$name" "${options[@]}" --async --quiet
}

delete() {
  tpu queued-resources delete "$name" --force --async --quiet
}

describe() {
  tpu queued-resources describe "$name" --format="value(state.state)"
}

# The state as Google names it, ABSENT where there is no such queued resource, UNKNOWN where gcloud could not tell.
queue_state() {
  local state
  if state="$(describe 2>"$scratch/describe")"; then
    echo "$state"
  elif grep -q NOT_FOUND "$scratch/describe"; then
    echo ABSENT
  else
    cat "$scratch/describe" >&2
    echo UNKNOWN
  fi
}

wait_for_tpu() {
  local state before=""
  if $dry_run; then
    echo "# every $poll s until it is ACTIVE:"
    describe
    return
  fi
  while :; do
    state="$(queue_state)"
    [[ "$state" == "$before" ]] || say "$state"
    before="$state"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | ABSENT) refuse "the TPU was not given: gcloud compute tpus queued-resources describe $name --zone=$zone says why" ;;
    esac
    sleep "$poll"
  done
}

# The code as a clone of one commit, so that the run's config.json can name it.
pack() {
  if $dry_run; then
    echo "# dalle-jax.tgz: a clone of commit $commit_id"
    return
  fi
  [[ ! -e "$scratch/dalle-jax.tgz" ]] || return 0
  git init --quiet "$scratch/dalle-jax.new"
  git -C "$scratch/dalle-jax.new" fetch --quiet --depth=1 "file://$PWD" "$commit_id"
  git -C "$scratch/dalle-jax.new" -c advice.detachedHead=false checkout --quiet FETCH_HEAD
  tar -czf "$scratch/dalle-jax.tgz" -C "$scratch" dalle-jax.new
}

set_up_slice() {
  local archive="$scratch/dalle-jax.tgz"
  ! $dry_run || archive=dalle-jax.tgz
  tpu tpu-vm scp "$archive" "$1:" --worker=all "${ssh_options[@]}" &&
    tpu tpu-vm ssh "$1" --worker=all "${ssh_options[@]}" \
      --command="rm -rf dalle-jax.new && tar -xzf dalle-jax.tgz && bash dalle-jax.new/launch/tpu_worker.sh setup"
}

show_status() {
  describe
  on_slices ssh_all state
}

# One word for the run on all workers: none, other, running, finished, stopped, mistake, died or unreachable.
run_state() {
  local answer
  answer="$(on_slices ssh_all state "${COMMAND[@]}" 2>"$scratch/ssh")" || { echo unreachable && return; }
  answer="$(grep -o 'dalle-jax state: .*' <<<"$answer" | cut -d' ' -f3- | sort -u | tr '\n' ';')"
  case ";$answer" in
    *";other;"*) echo other ;;
    *";exit 2;"*) echo mistake ;;
    ";none;" | ";") echo none ;;
    *";none;"* | *";lost;"*) echo died ;;
    *) case "${answer//exit 0;/}" in
      "") echo finished ;;
      "exit 75;" | "exit 143;" | "exit 143;exit 75;") echo stopped ;; # 143: by SIGTERM, from a script that saves nothing
      running* | "exit 75;running;") echo running ;;
      *) echo died ;;
    esac ;;
  esac
}

# A failure that may pass: counted, so that what never works comes to an end.
again_after() {
  ((restarts > 0)) || refuse "$*, and --restarts is used up: bash launch/tpu_vm.sh logs --name=$name --zone=$zone shows why"
  restarts=$((restarts - 1))
  say "$*; starting again ($restarts more times)"
}

# Looks at a TPU that is there; returns 1 when the command has finished.
look_after() {
  local state
  state="$(run_state)"
  if $fresh && [[ "$state" == stopped || "$state" == mistake ]]; then state=none; fi
  fresh=false
  [[ "$state" == unreachable ]] || silent=0
  case "$state" in
    running) ;;
    none)
      say "setting up and starting"
      if pack && on_slices set_up_slice && on_slices ssh_all start "${COMMAND[@]}"; then
        say "started"
      else
        again_after "setting up failed"
      fi
      ;;
    died)
      again_after "the run died"
      # Without its peer no process can save: what is being written now gets a moment.
      if ! { on_slices ssh_all stop 10 && on_slices set_up_slice && on_slices ssh_all start "${COMMAND[@]}"; }; then
        say "no answer"
      fi
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
  local state before="" fresh=true silent=0
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
  on_slices ssh_all start "${COMMAND[@]}"
  echo "# every $poll s until the command has finished; after a crash it is stopped and started again:"
  describe
  on_slices ssh_all state "${COMMAND[@]}"
  echo "# after a preemption (SUSPENDED), then everything from the top:"
  delete
  ! $delete_at_end || { echo "# when the command has finished:" && delete; }
}
