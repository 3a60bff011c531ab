#!/usr/bin/env bash
# Train on this host: one process drives all its GPUs.
set -euo pipefail

usage() {
  cat <<'END'
Train on the GPUs of this host; one process drives them all. Installs into .venv first if need be.

  bash launch/multi_gpu.sh --config=configs/nih.py --workdir=runs/nih --config.data.root=/path/to/nih

  All flags are those of kacl_jax.main; train.batch_size and eval.batch_size must divide by the number of GPUs.
  CUDA_VISIBLE_DEVICES=0,1 takes some of them. Over ssh, start it in tmux: a lost connection interrupts the run.
  --allow_cpu   where jax finds no GPU, train on the CPU; without this flag that is an error
  --dry-run     print every command and run none; alone, with placeholders

Exit code: that of the run. After 75 (interrupted) run the same command again to resume.
END
}

DRY=false PLATFORM=(env JAX_PLATFORMS=cuda) RUN=() # cuda,cpu would take the CPU where there is no GPU
for argument in "$@"; do
  case $argument in
    --dry-run) DRY=true ;;
    --allow_cpu) PLATFORM=() ;;
    --help | -h)
      usage
      exit 0
      ;;
    *) RUN+=("$argument") ;;
  esac
done
[ "$*" != --dry-run ] || RUN=(--config=CONFIG --workdir=WORKDIR)
if [[ " ${RUN[*]}" != *' --config='* ]]; then
  echo "Missing: --config=…, e.g. --config=configs/nih.py. $0 --help tells more; $0 --dry-run shows every command." >&2
  exit 1
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
run() { if $DRY; then printf '%q ' "$@" && echo; else "$@"; fi; }
run bash launch/install.sh 'jax[cuda13]'
run exec "${PLATFORM[@]}" .venv/bin/python -m kacl_jax.main --distributed=off "${RUN[@]}"
