#!/usr/bin/env bash
# A run on Cloud TPU virtual machines, from nothing to the end, through preemptions; `--help` tells how.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/cluster/arguments.sh

usage() {
  cat <<'END'
Runs a command on all workers of a Cloud TPU, or of several slices, and starts it again after preemptions.

  bash launch/tpu_vm.sh run --name=N --zone=Z --accelerator=v5e-256 [--slices=2] [--spot] -- \
      python -m launch.train --config=configs/decoder_12b.py --workdir=gs://BUCKET/RUN [--config.mesh.slices=2] ...

  run      everything below in order: creates what is missing, sets up, starts, and watches until the command has
           finished. After a preemption it creates the TPU anew and starts again; after a crash it starts again. It may
           itself be stopped (Ctrl-C) and started again anywhere: the run goes on meanwhile.
  create   asks for the TPU (a queued resource) and waits for it
  setup    copies the code of --commit to all workers and installs it
  start    starts the command on all workers; it goes on when this ends
  status   the queued resource's state, and the run's on every worker
  logs     follows the log of one worker (--slice=0 --worker=0 --lines=100)
  stop     SIGTERM to the run, which saves, and to `run`, which ends; `run` or `start` goes on with it
  delete   gives the TPU back, running or not

Where:
  --name=N            of the queued resource; its slices are N, or N-0, N-1, ...
  --zone=Z            us-west4-a, say; one that has the accelerator
  --project=P         default: gcloud's
What (create, run; --slices for every action but delete):
  --accelerator=A     v4-N, v5e-N, v5p-N or v6e-N, as in v5e-256; `python -m launch.plan` tells what a config needs
  --slices=1          how many of them, joined over the data centre's network; training: --config.mesh.slices too
  --spot              cheaper, may be taken away at any time
  --reserved          from a reservation
  --runtime-version=  software of the machines; default: what Google names for the accelerator
  --network= --subnetwork= --service-account= --internal-ips    as gcloud has them
How:
  --commit=HEAD       code to run (setup, run); files that differ from it are refused
  --poll=60           seconds between two looks
  --grace=120         seconds that a stopped run gets to save
  --restarts=20       crashes in a row to start again after; preemptions do not count, new checkpoints let it count anew
  --delete-at-end     give the TPU back when `run` has finished
  --dry-run           print what would run

`...` is the data and the codec, as the config's docstring has them.
Checkpoints must be where preemption does not reach: --workdir=gs://... (or under /mnt, where every worker mounts it).
Needs the gcloud command, signed in; for several workers its SSH key in the agent: ssh-add ~/.ssh/google_compute_engine
END
}

RESOURCE='[a-z][a-z0-9-]*(/[A-Za-z0-9][A-Za-z0-9.:_-]*)*' # of Google Cloud
ACTIONS="run create setup start status logs stop delete"
action="${1:-}"
if (($# == 0)) || [[ " $* " == *" --help "* || "$action" == -h || "$action" == help ]]; then
  usage
  exit
fi
shift
[[ " $ACTIONS " == *" $action "* ]] || refuse "what is '$action'? one of ${ACTIONS// /, }; --help tells more"

name="" zone="" project="" accelerator="" slices=1 spot=false reserved=false runtime_version="" network="" subnetwork=""
service_account="" internal_ips=false commit=HEAD poll=60 grace=120 restarts=20 delete_at_end=false dry_run=false
slice=0 worker=0 lines=100
parse_options "name= zone= project= accelerator= slices= spot reserved runtime-version= network= subnetwork= \
service-account= internal-ips commit= poll= grace= restarts= delete-at-end dry-run slice= worker= lines=" "$@"

check_option name "$name" '[a-z]([a-z0-9-]{0,60}[a-z0-9])?' "small letters, digits and dashes, a letter first"
check_option zone "$zone" '[a-z]+-[a-z]+[0-9]+-[a-z]' "a zone is like us-central2-b"
[[ -z "$project" ]] || check_option project "$project" '[a-z][a-z0-9.:-]{4,62}[a-z0-9]' "the ID of a project is like my-project-1"
[[ -z "$runtime_version" ]] || check_option runtime-version "$runtime_version" '[a-z0-9][a-z0-9._-]*' "as in v2-alpha-tpuv5-lite"
[[ -z "$network" ]] || check_option network "$network" "$RESOURCE" "a name, or projects/P/global/networks/N"
[[ -z "$subnetwork" ]] || check_option subnetwork "$subnetwork" "$RESOURCE" "a name, or projects/P/regions/R/subnetworks/S"
[[ -z "$service_account" ]] ||
  check_option service-account "$service_account" '[A-Za-z0-9][A-Za-z0-9._-]*@[A-Za-z0-9.-]+' "an address like me@my-project.iam.gserviceaccount.com"
check_count slices "$slices"
check_count grace "$grace"
check_count lines "$lines"
check_option poll "$poll" '[0-9]+([.][0-9]+)?' "give seconds"
check_number restarts "$restarts"
check_number slice "$slice"
check_number worker "$worker"
((slice < slices)) || refuse "--slice=$slice: there are --slices=$slices, the first is 0"
! { $spot && $reserved; } || refuse "--spot and --reserved exclude each other"
case "$action" in
  run | create | start)
    # The system's python3 may be older than what launch/ is written for.
    source launch/setup.sh
    python="$(find_python)" || exit
    ;;
esac
case "$action" in
  run | create)
    check_option accelerator "$accelerator" '.+' "the TPU to ask for, as in --accelerator=v5e-256"
    described="$("$python" -m launch.cluster.accelerators "$accelerator")" || exit
    read -r accelerator_type default_version <<<"$described"
    ;;
esac
case "$action" in
  run | start)
    check_command
    "$python" -m launch.cluster.command_checks "$slices" "${COMMAND[@]}" || exit
    ;;
esac
case "$action" in
  run | setup)
    commit_id="$(git rev-parse --verify --quiet "$commit^{commit}")" || refuse "--commit=$commit: there is no such commit in this clone"
    if [[ "$commit" == HEAD && -n "$(git status --porcelain --untracked-files=no)" ]]; then
      refuse "files here differ from the last commit and would not reach the workers: commit them, or name the commit to run, --commit=$(git rev-parse --short HEAD)"
    fi
    ;;
esac
if ! $dry_run && ! command -v gcloud >/dev/null; then
  refuse "the command gcloud is not here: install the Google Cloud CLI and sign in (gcloud auth login)"
fi
source launch/cluster/tpu_steps.sh
source launch/cluster/restarts.sh
source launch/cluster/tpu_watch.sh

case "$action" in
  run) bring_to_end ;;
  create) create && wait_for_tpu ;;
  setup) pack && on_slices set_up_slice ;;
  start) on_slices ssh_all start "${COMMAND[@]}" ;;
  status) show_status ;;
  logs) ssh_to "$(slice_name "$slice")" "$worker" logs "$lines" ;;
  stop) on_slices ssh_all stop "$grace" ;;
  delete) delete ;;
esac
