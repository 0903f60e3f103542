# Sourced by launch/tpu_vm.sh, which has checked every variable used here: what its sub-commands do.
# shellcheck shell=bash disable=SC2153,SC2154

scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT
place=(--zone="$zone")
[[ -z "$project" ]] || place+=(--project="$project")
named="--name=$name ${place[*]}" # the TPU in a command of this script that a message proposes
((slices == 1)) || named+=" --slices=$slices"
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

# ssh_to SLICE WORKER ACTION ARGUMENTS...: an action of launch/cluster/tpu_worker.sh.
ssh_to() {
  local node="$1" which="$2" command
  shift 2
  command="bash dalle-jax/launch/cluster/tpu_worker.sh $(quoted "$@")"
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
      --command="rm -rf dalle-jax.new && tar -xzf dalle-jax.tgz && bash dalle-jax.new/launch/cluster/tpu_worker.sh setup"
}

show_status() {
  describe
  on_slices ssh_all state
}
