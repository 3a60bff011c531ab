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
  bash launch/install.sh 'jax[tpu]'
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
  local number workdir=$2 bucket='' arguments=() argument code=0
  # Compute Engine's groups do not list their machines in the order of the slice; jax asks here, too.
  number=$(curl -sf -m 5 --retry 3 -H 'Metadata-Flavor: Google' \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number) || number=$1
  shift 2
  trap : TERM # a shutdown signals the run too; wait for it to save
  cd ~/kacl_jax
  for argument in "$@"; do
    if [[ $argument == --config.data.root=gs://* ]]; then # read from a disk
      mkdir -p "$here/data"
      gcloud storage rsync -r "${argument#*=}" "$here/data" || finish 1
      argument=--config.data.root=$here/data
    fi
    arguments+=("$argument")
  done
  if [[ $workdir == gs://* ]]; then
    bucket=$workdir workdir=$here/workdir
    mkdir -p "$workdir"
    if [ "$number" = 0 ]; then # the process that alone reads and writes what outlives the run
      # It can be written, and is there to be read: so this is said now and not after hours.
      gcloud storage cp - "$bucket/launched.txt" <<<"$(date)" || finish 1
      # Once: later this machine is ahead of the bucket.
      [ -e "$here/fetched" ] || gcloud storage rsync -r "$bucket" "$workdir" || finish 1
      touch "$here/fetched"
      (while sleep 300; do push || true; done) 9>&- &
    fi
  fi
  JAX_PLATFORMS=tpu,cpu .venv/bin/python -m kacl_jax.main --workdir="$workdir" "${arguments[@]}" 9>&- || code=$?
  if [ -n "$bucket" ] && [ "$number" = 0 ]; then
    kill $!
    if ! push && ! { sleep 30 && push; }; then
      echo "What the last minutes brought could not be copied to $bucket."
      [ "$code" != 0 ] || code=75 # not done before it is there
    fi
  fi
  finish "$code"
}

# The features' memo is left out: a new machine can do without, and a copy taken while it is written would be torn.
# Nothing is ever deleted from the bucket.
push() { gcloud storage rsync -r --exclude='features\..*|\.lock' "$workdir" "$bucket"; }

finish() {
  echo "$1" >"$here/exit_code"
  exit "$1"
}

"$@"
