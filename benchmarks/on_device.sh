#!/usr/bin/env bash
# Takes every number that only a GPU can give, in at most nine minutes, and writes them into one JSON file:
#
#     benchmarks/on_device.sh [FOLDER] [ARCHIVE]
#
# FOLDER: for on_device.json and on_device.log; default $OUT, or this folder. ARCHIVE: of benchmarks.reference_regions;
# default reference.npz. PYTHON names the interpreter. TINY=1 tries the script on a CPU, with an archive of 64 px.
# The machine needs jax, flax, optax, orbax, OpenCV and the rest of what `kacl_jax/step` imports, but no reader of data.
#
# A part that fails, or takes longer than it may, leaves its reason in the JSON file. The others still run, and the exit
# status is 1. Without PyTorch its part says so, and nothing failed.
set -uo pipefail
cd "$(dirname "$0")/.."
folder=${1:-${OUT:-.}} archive=${2:-reference.npz} python=${PYTHON:-python3}
mkdir -p "$folder"
json=$folder/on_device.json log=$folder/on_device.log
part_json=$(mktemp) part_log=$(mktemp)
trap 'rm -f "$part_json" "$part_log"' EXIT
rm -f "$json" "$log"
failed=0

add() { # NAME EXIT-STATUS: the part's numbers, and why it failed, into the JSON file
  "$python" - "$json" "$part_json" "$part_log" "$@" <<'END'
import json, sys
from pathlib import Path

all_parts, part, log = map(Path, sys.argv[1:4])
name, status = sys.argv[4], int(sys.argv[5])
found = json.loads(all_parts.read_text()) if all_parts.exists() else {}
found[name] = json.loads(part.read_text() or "{}")
if status:
    last = (log.read_text().split("\n\n")[-1].strip().splitlines() or ["it said nothing"])[-1]
    found[name]["failed"] = "it took too long" if status in (124, 137) else last
all_parts.write_text(json.dumps(found, indent=1) + "\n")
END
}

part() { # NAME DEADLINE MODULE [ARGUMENT…]; what one part leaves of its time, the next ones have
  local name=$1 left=$(($2 * patience - SECONDS)) status
  shift 2
  echo "== $name: $*" | tee -a "$log"
  : >"$part_json"
  timeout --kill-after=5 "$left" "$python" -m "$@" --json="$part_json" >"$part_log" 2>&1
  status=$?
  tee -a "$log" <"$part_log"
  ((status == 0)) || failed=1
  add "$name" "$status"
}

if [[ ${TINY:-} ]]; then
  size=64 many=4 few=4 rounds=1 deep=resnet18 steps=6 patience=20
else
  size=224 many=256 few=64 rounds=7 deep=resnet50 steps=40 patience=1
fi
images=--images=$archive
SECONDS=0

part equality 60 benchmarks.reference_regions "$archive"
part regions 160 benchmarks.regions $size $many --forms=compare,matmul,scatter "$images"
part step 230 benchmarks.step resnet18 $size $many --steps=supervised,KACL,radiomics "$images"
if "$python" -c 'import torch' 2>"$part_log"; then
  part vs_torch 330 benchmarks.vs_torch $size $many $rounds 0
else
  echo '{"left_out": "torch is not installed"}' >"$part_json"
  add vs_torch 0
fi
part bfloat16 400 benchmarks.step $deep $size $few --steps=KACL --dtype=float32,bfloat16 "$images"
part killed_run 530 benchmarks.killed_run resnet18 $size $few $steps "$images"
exit $failed
