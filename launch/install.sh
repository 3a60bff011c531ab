#!/usr/bin/env bash
# The locked packages and then the given ones into .venv; does nothing where they are: bash launch/install.sh 'jax[cuda13]'
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=$(cat requirements.lock && printf '%s\n' "$@")
[ "$wanted" != "$(cat .venv/installed 2>/dev/null)" ] || exit 0
if [ ! -x .venv/bin/python ]; then
  python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "python3 is $(python3 --version 2>&1 || true); kacl_jax needs 3.11 or later: make .venv with one yourself." >&2
    exit 1
  }
  python3 -m venv .venv
fi
.venv/bin/pip install -q -r requirements.lock
.venv/bin/pip install -q "$@" # a command of its own: they have no hashes in the lock
echo "$wanted" >.venv/installed
