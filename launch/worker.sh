#!/usr/bin/env bash
# Runs on each TPU worker; tpu_loop.sh sends it there and calls it.
#
#   worker.sh install                    ~/kacl.bundle into ~/kacl_jax, with its packages
#   worker.sh run NUMBER WORKDIR ARGS…   start the run, or find the one under way; stay until it ends and tell how
#
# The run is detached: a lost connection does not end it. Whoever holds ~/kacl_run/lock is the run.
set -euo pipefail

here=$HOME/kacl_run
mkdir -p "$here"

install() {
  exec 9>"$here/lock"
  flock -n 9 || return 0 # not a file may change beneath a run
  if ! command -v git >/dev/null || ! command -v cc >/dev/null; then # pyradiomics wants a C compiler
    sudo apt-get update -q && sudo apt-get install -qy git build-essential
  fi
  [ -d ~/kacl_jax ] || git clone -q --no-checkout ~/kacl.bundle ~/kacl_jax
  cd ~/kacl_jax
  git fetch -q ~/kacl.bundle HEAD
  git checkout -q --detach FETCH_HEAD
  if [ ! -x .venv/bin/pip ]; then # Google's images bring Python 3.10
    export PATH=$HOME/.local/bin:$PATH
    command -v uv >/dev/null || curl -LsSf https://astral.sh/uv/install.sh | sh
    uv venv -q --seed --allow-existing --python 3.12 .venv
  fi
  bash launch/install.sh 'jax[tpu]' gcsfs
}

run() {
  exec 9>"$here/lock"
  if flock -n 9; then
    rm -f "$here/exit_code"
    : >"$here/log"
    setsid nohup bash "$0" body "$@" >>"$here/log" 2>&1 </dev/null & # inherits the lock
  fi
  exec 9>&-
  flock "$here/lock" true &                           # until it ends;
  tail -n +1 -f -s 0.2 --pid=$! "$here/log" 2>/dev/null # tail then reads to the end
  # No code: it was killed, and can be resumed.
  echo "kacl_jax ended with exit code $(cat "$here/exit_code" 2>/dev/null || echo 75)"
}

body() {
  local number workdir=$2 bucket='' code=0
  # Compute Engine's groups do not list their machines in the order of the slice.
  number=$(curl -sf -m 5 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) || number=$1
  shift 2
  trap : TERM # a shutdown signals the run too; wait for it to save
  cd ~/kacl_jax
  if [[ $workdir == gs://* ]]; then
    bucket=$workdir workdir=$here/workdir
    mkdir -p "$workdir"
    # It can be written, and is there to be read: told now and not after hours.
    date | gcloud storage cp - "$bucket/launched/worker-$number" || finish 1
    gcloud storage rsync -r "$bucket" "$workdir" || finish 1
    (while sleep 300; do push || true; done) 9>&- &
  fi
  JAX_PLATFORMS=tpu,cpu .venv/bin/python -m kacl_jax.main --workdir="$workdir" "$@" 9>&- || code=$?
  if [ -n "$bucket" ]; then
    kill $!
    push || { sleep 30 && push; } || echo "What the last minutes brought could not be copied to $bucket."
  fi
  finish "$code"
}

# What all hosts share is written by number 0 alone. features.sqlite is a memo that a new machine can do without, and a
# copy taken while it is written would be torn. Nothing is ever deleted from the bucket.
push() {
  if [ "$number" = 0 ]; then
    gcloud storage rsync -r --exclude='features\.sqlite.*|\.lock' "$workdir" "$bucket"
  elif [ -d "$workdir/checkpoints" ]; then
    gcloud storage rsync -r "$workdir/checkpoints" "$bucket/checkpoints"
  fi
}

finish() {
  echo "$1" >"$here/exit_code"
  exit "$1"
}

"$@"
