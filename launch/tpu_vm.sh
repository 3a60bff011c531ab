#!/usr/bin/env bash
# Train on a Cloud TPU VM, one host or a pod slice, that a queued resource brings.
# shellcheck disable=SC2329 # tpu_loop.sh calls the functions
set -euo pipefail
HOUSE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/tpu_loop.sh
source "$HOUSE/launch/tpu_loop.sh"

usage() {
  cat <<END
Train on a Cloud TPU VM (v2 to v6e) through a queued resource; after a pre-emption ask again and resume.

  bash launch/tpu_vm.sh --type=v5litepod-8 --zone=us-central1-a --config=configs/nih.py \\
      --workdir=gs://BUCKET/RUN --config.data.root=gs://BUCKET/DATA

  --type=…      v5litepod-8, v6e-8: one host; v4-32, v5litepod-16: pod slices, on all whose hosts the run starts
  --runtime=…   TPU software version; default: the usual one for the type
$COMMON_USAGE
END
}

TYPE='' RUNTIME=''
option() {
  case $1 in
    --type) TYPE=$2 ;;
    --runtime) RUNTIME=$2 ;;
    *) return 1 ;;
  esac
}
placeholders() { TYPE=TYPE RUNTIME=RUNTIME; }
complete() {
  need TYPE '--type=…      the accelerator, e.g. --type=v5litepod-8, or --type=v4-32 for a pod slice'
  [ -z "$RUNTIME" ] || return 0
  case $TYPE in
    v2-* | v3-* | v4-*) RUNTIME=tpu-ubuntu2204-base ;;
    v5litepod-*) RUNTIME=v2-alpha-tpuv5-lite ;;
    v5p-*) RUNTIME=v2-alpha-tpuv5 ;;
    v6e-*) RUNTIME=v2-alpha-tpuv6e ;;
    ?*) need RUNTIME "--runtime=…   the TPU software version for --type=$TYPE" ;;
  esac
}

look() {
  local found
  found=$(gcloud compute tpus queued-resources list --zone="$ZONE" --filter="name~/$NAME\$" --format='value(state.state)') || return 1
  case $found in
    '') STATE=absent ;;
    ACTIVE) STATE=ready ;;
    SUSPENDING | SUSPENDED) STATE=gone ;;
    FAILED)
      STATE=failed
      gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" || true
      ;;
    *) STATE=pending ;;
  esac
}

list_workers() {
  local addresses
  addresses=$(gcloud compute tpus tpu-vm describe "$NAME" --zone="$ZONE" --flatten='networkEndpoints[]' --format='value(networkEndpoints.ipAddress)') || return 1
  [ -n "$addresses" ] || return 1
  mapfile -t WORKERS < <(awk '{ print NR - 1 }' <<<"$addresses")
}

create() {
  local how=()
  $SPOT && how=(--spot)
  gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME" --zone="$ZONE" \
    --accelerator-type="$TYPE" --runtime-version="$RUNTIME" "${how[@]}"
}

# --force: the node along with the request.
remove() { gcloud compute tpus queued-resources delete "$NAME" --zone="$ZONE" --force --quiet; }
removal_command() { echo "  gcloud compute tpus queued-resources delete $NAME --zone=$ZONE --force --quiet"; }

on() { gcloud compute tpus tpu-vm ssh "$NAME" --zone="$ZONE" --worker="$1" --command="$2"; }
send() { gcloud compute tpus tpu-vm scp "$1" "$NAME:" --zone="$ZONE" --worker="$2"; }

main "$@"
