#!/usr/bin/env bash
# Train on TPU VMs of Compute Engine: an instance template and a managed instance group, one host or a pod slice.
# shellcheck disable=SC2329 # tpu_loop.sh calls the functions
set -euo pipefail
HOUSE=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/tpu_loop.sh
source "$HOUSE/launch/tpu_loop.sh"

usage() {
  cat <<END
Train on Compute Engine TPUs (v5p, v6e, TPU7x) in a managed instance group; after a pre-emption create it again and resume.
For v5e and older: launch/tpu_vm.sh.

  bash launch/gce_tpu.sh --machine=ct6e-standard-8t --zone=us-central1-b --config=configs/nih.py \\
      --workdir=gs://BUCKET/RUN --config.data.root=gs://BUCKET/DATA

  --machine=…   machine type of one host; its last number is its chips: ct6e-standard-8t, ct5p-hightpu-4t
  --topology=…  for a pod slice: its chips, e.g. --machine=ct6e-standard-4t --topology=4x4 is four hosts of four
  --image=…     image family of ubuntu-os-accelerator-images; default: the usual one for the machine
$COMMON_USAGE
END
}

MACHINE='' TOPOLOGY='' IMAGE=''
option() {
  case $1 in
    --machine) MACHINE=$2 ;;
    --topology) TOPOLOGY=$2 ;;
    --image) IMAGE=$2 ;;
    *) return 1 ;;
  esac
}
placeholders() { MACHINE=MACHINE IMAGE=IMAGE TOPOLOGY=TOPOLOGY; }
complete() {
  need MACHINE '--machine=…   e.g. --machine=ct6e-standard-8t'
  case $MACHINE in
    tpu7x-*) IMAGE=${IMAGE:-ubuntu-accel-2404-amd64-tpu-tpu7x} ;;
    *) IMAGE=${IMAGE:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e} ;;
  esac
  REGION=${ZONE%-*}
  [ -n "$MACHINE" ] && [ -n "$TOPOLOGY" ] && [ "$TOPOLOGY" != TOPOLOGY ] || return 0
  [[ $MACHINE =~ -([0-9]+)t ]] || die 1 "How many chips has --machine=$MACHINE? Its name should end like ct6e-standard-4t."
  local chips=${BASH_REMATCH[1]}
  [[ $TOPOLOGY =~ ^[0-9]+(x[0-9]+)+$ ]] || die 1 "--topology=$TOPOLOGY should look like 4x4 or 2x2x2."
  HOSTS=$((${TOPOLOGY//x/*} / chips))
  ((HOSTS > 1 && HOSTS * chips == ${TOPOLOGY//x/*})) ||
    die 1 "--topology=$TOPOLOGY is not several hosts of $chips chips; leave it out for one host."
}

look() {
  local found
  found=$(gcloud compute instance-groups managed list --zones="$ZONE" --filter="name=$NAME" --format='value(name)') || return 1
  STATE=absent
  [ -n "$found" ] || return 0
  found=$(gcloud compute instance-groups managed list-instances "$NAME" --zone="$ZONE" --format='value(instanceStatus)') || return 1
  case $found in
    *STOP* | *TERMINATED* | *SUSPEND*) STATE=gone ;;
    *) if [ "$(grep -c '^RUNNING$' <<<"$found")" = "$HOSTS" ]; then STATE=ready; else STATE=pending; fi ;;
  esac
}

list_workers() {
  local names
  names=$(gcloud compute instance-groups managed list-instances "$NAME" --zone="$ZONE" --format='value(instance.basename())') || return 1
  [ -n "$names" ] || return 1
  mapfile -t WORKERS <<<"$names"
}

create() {
  local spot=() slice=()
  $SPOT && spot=(--provisioning-model=SPOT --instance-termination-action=STOP)
  there instance-templates "name=$NAME" ||
    gcloud compute instance-templates create "$NAME" --machine-type="$MACHINE" --maintenance-policy=TERMINATE \
      --image-family="$IMAGE" --image-project=ubuntu-os-accelerator-images --boot-disk-size=200GB \
      --scopes=cloud-platform "${spot[@]}"
  if [ -n "$TOPOLOGY" ]; then
    there resource-policies "name=$NAME AND region~/$REGION\$" ||
      gcloud compute resource-policies create workload-policy "$NAME" --region="$REGION" \
        --type=HIGH_THROUGHPUT --accelerator-topology="$TOPOLOGY"
    # All hosts at once or none; a lost one is not repaired alone.
    slice=(--workload-policy="$NAME" --target-size-policy-mode=bulk --default-action-on-vm-failure=do-nothing)
  fi
  gcloud compute instance-groups managed create "$NAME" --zone="$ZONE" --template="$NAME" --size="$HOSTS" "${slice[@]}"
}

there() { [ -n "$(gcloud compute "$1" list --filter="$2" --format='value(name)')" ]; }

remove() {
  gcloud compute instance-groups managed delete "$NAME" --zone="$ZONE" --quiet || return 1
  # These cost nothing; the group does.
  gcloud compute instance-templates delete "$NAME" --quiet || true
  [ -z "$TOPOLOGY" ] || gcloud compute resource-policies delete "$NAME" --region="$REGION" --quiet || true
}
removal_command() { echo "  gcloud compute instance-groups managed delete $NAME --zone=$ZONE --quiet"; }

on() { gcloud compute ssh "$1" --zone="$ZONE" --command="$2"; }
send() { gcloud compute scp "$1" "$2:" --zone="$ZONE"; }

main "$@"
