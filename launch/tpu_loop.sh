# shellcheck shell=bash disable=SC2034,SC2329 # the two scripts use them
# What tpu_vm.sh and gce_tpu.sh have in common: their flags, the loop, and that nothing is left running unsaid.
#
# They bring:  usage · option FLAG VALUE (1: not theirs) · placeholders · complete (defaults, and `need`)
#              look             STATE=absent|pending|ready|gone|failed; fails where gcloud does not answer
#              list_workers     WORKERS=(…)
#              create · remove  the machine; removal_command is what a person would type
#              on WORKER COMMAND · send FILE WORKER
# `leave` calls some of them from a trap, where a bare `return` would not hand on the last status: always `return 1`.

NAME=kacl ZONE='' WORKDIR='' LOGS='' ATTEMPTS=20 SPOT=true KEEP=false DRY=false HOSTS=1
RUN=() # arguments of kacl_jax.main
PIDS=()
MAY_COST=false # there may be a machine
STOPPED=false  # by a person or a signal
export CLOUDSDK_CORE_DISABLE_PROMPTS=1

COMMON_USAGE="  --zone=…      where; the project is gcloud's own (gcloud config set project …)
  --workdir=…   gs://BUCKET/RUN, copied there every five minutes and at the end; or a folder that all workers mount
  --config=…, --config.KEY=…, --mode=…   as for kacl_jax.main; the code and configs of the last commit are used
  --name=…      of what is created; default kacl. What is there already under this name is used.
  --on-demand   not spot: dearer, not pre-empted
  --attempts=…  how often to start at most, first start included; default 20
  --logs=…      where the workers' logs come to while they run; default runs/launch/NAME
  --keep        do not delete the machine at the end; it keeps costing money
  --dry-run     print every command and run none; alone, with placeholders

Exit code: that of the run (0 done, 1 a mistake to mend, 75 interrupted too often, 76 not finite).
Whatever ends this script deletes the machine, also one that it found there; Ctrl-C asks first. Closing the terminal ends
it, too: start it in tmux. If your computer dies, the run continues (and costs money); the same command finds it again."

say() { printf '\n» %s\n' "$*"; }
die() {
  printf '\n%s\n' "$2" >&2
  exit "$1"
}
need() { [ -n "${!1}" ] || MISSING+="  $2"$'\n'; }

parse() {
  local argument
  for argument in "$@"; do
    case $argument in
      --name=*) NAME=${argument#*=} ;;
      --zone=*) ZONE=${argument#*=} ;;
      --workdir=*) WORKDIR=${argument#*=} ;;
      --logs=*) LOGS=${argument#*=} ;;
      --attempts=*) ATTEMPTS=${argument#*=} ;;
      --on-demand) SPOT=false ;;
      --keep) KEEP=true ;;
      --dry-run) DRY=true ;;
      --help | -h)
        usage
        exit 0
        ;;
      --config=* | --config.*=* | --mode=*) RUN+=("$argument") ;;
      *) option "${argument%%=*}" "${argument#*=}" || die 1 "Not understood: $argument; flags look like --zone=ZONE. $0 --help lists them." ;;
    esac
  done
  if [ "$*" = --dry-run ]; then
    NAME=NAME ZONE=REGION-ZONE WORKDIR=gs://BUCKET/RUN RUN=(--config=CONFIG) HOSTS=2
    placeholders
  fi
  MISSING=''
  need ZONE '--zone=…      where, e.g. --zone=us-central1-a'
  need WORKDIR '--workdir=…   what outlives a pre-emption: --workdir=gs://BUCKET/RUN, or a folder that all workers mount'
  [[ " ${RUN[*]}" == *' --config='* ]] || MISSING+=$'  --config=…    as for kacl_jax.main, e.g. --config=configs/nih.py\n'
  complete
  [ -z "$MISSING" ] || die 1 "Missing:"$'\n'"$MISSING$0 --help tells more; $0 --dry-run shows every command."
  LOGS=${LOGS:-runs/launch/$NAME}
}

main() {
  parse "$@"
  if $DRY; then
    rehearse
  else
    command -v gcloud >/dev/null || die 1 'gcloud is not installed; see https://cloud.google.com/sdk/docs/install'
    mkdir -p "$LOGS"
  fi
  trap leave EXIT
  trap 'STOPPED=true; exit 130' INT
  trap 'STOPPED=true; exit 143' TERM HUP
  pack
  local attempt code
  for ((attempt = 1; attempt <= ATTEMPTS; attempt++)); do
    get_ready
    if install; then
      code=0
      train || code=$?
      case $code in
        0) exit 0 ;;
        75) say "Interrupted (start $attempt of $ATTEMPTS at most)" ;;
        *) die "$code" "The run ended with exit code $code; what it said is in $LOGS" ;;
      esac
    else
      ask_state
      [ "$STATE" != ready ] || die 1 "Installing failed; what was said is in $LOGS"
    fi
  done
  die 75 "Interrupted $ATTEMPTS times. Run the same command again to resume; --attempts=… allows more."
}

get_ready() {
  local before=''
  MAY_COST=true
  ask_state
  until [ "$STATE" = ready ]; do
    [ "$STATE" = "$before" ] || say "$NAME: $STATE"
    before=$STATE
    case $STATE in
      absent) create ;;
      gone) remove ;; # pre-empted; what is left of it stands in the way
      failed) die 1 "The request for $NAME failed; gcloud's words are above." ;;
      *) sleep 30 ;;
    esac
    ask_state
  done
}

# A glitch of the network must not end a run.
ask_state() {
  local try
  for try in 1 2 3 4 5; do
    if look && { [ "$STATE" != ready ] || list_workers; }; then return; fi
    say "gcloud did not answer (try $try of 5)"
    sleep 30
  done
  die 1 "The state of $NAME cannot be read."
}

# The commit, not the working tree, so that run.json can name it.
pack() {
  PACKED=$(mktemp -d)
  if ! $DRY; then
    git -C "$HOUSE" diff --quiet HEAD || say 'Uncommitted changes stay here: the run is that of the last commit.'
  fi
  git -C "$HOUSE" bundle create --quiet "$PACKED/kacl.bundle" HEAD
}

install() {
  say "Installing on each of ${#WORKERS[@]} worker(s)"
  local worker
  for worker in "${WORKERS[@]}"; do beside "install.$worker" install_on "$worker"; done
  wait_for_all
}

install_on() {
  local try
  for try in 1 2 3 4 5; do # a new machine may not answer yet
    if send "$PACKED/kacl.bundle" "$1" && send "$HOUSE/launch/worker.sh" "$1"; then
      on "$1" 'bash worker.sh install'
      return
    fi
    sleep 20
  done
  return 1
}

# Its exit code: one of a worker that is neither 0 nor 75 wins; no word from a worker is an interruption.
train() {
  local n=${#WORKERS[@]} i code result=0 arguments=("${RUN[@]}")
  if [ "$n" = 1 ]; then
    arguments+=(--distributed=off)
  else
    arguments+=(--distributed=on)
    [[ " ${RUN[*]}" == *' --config.data.shards='* ]] || arguments+=("--config.data.shards=$n")
  fi
  say 'Training'
  for ((i = 0; i < n; i++)); do
    beside "run.${WORKERS[i]}" on "${WORKERS[i]}" "bash worker.sh run $i $(printf '%q ' "$WORKDIR" "${arguments[@]}")"
  done
  # gcloud's own exit code is 1 for a lost connection and for a user's mistake alike: the log knows.
  wait_for_all || true
  $DRY && return
  for ((i = 0; i < n; i++)); do
    code=$(sed -n 's/^kacl_jax ended with exit code \([0-9][0-9]*\)$/\1/p' "$LOGS/run.${WORKERS[i]}.log" | tail -n 1)
    case ${code:-75} in
      0) ;;
      75) [ "$result" != 0 ] || result=75 ;;
      *) result=$code ;;
    esac
  done
  return "$result"
}

# beside LOG COMMAND…: in the background and in a process group of its own, so that `leave` can end all of it.
beside() {
  local log=$1
  shift
  set -m
  ("$@" </dev/null 2>&1 | keep "$log") &
  set +m
  PIDS+=($!)
}

# The first worker is also heard here.
keep() {
  if $DRY; then
    cat
  elif [ "${1#*.}" = "${WORKERS[0]}" ]; then
    tee "$LOGS/$1.log"
  else
    cat >"$LOGS/$1.log"
  fi
}

wait_for_all() {
  local pid failed=0
  for pid in "${PIDS[@]}"; do wait "$pid" || failed=1; done
  PIDS=()
  return "$failed"
}

# Whatever ends this script ends here: the machine goes too, or it is said that it stays.
leave() {
  local code=$? answer='' pid
  trap - EXIT
  trap '' INT TERM HUP
  for pid in "${PIDS[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
  rm -rf "${PACKED:-}"
  $MAY_COST || exit "$code"
  if $STOPPED && ! $KEEP && [ -t 0 ]; then
    read -r -p "Delete $NAME now? If not, it keeps training and costing money. [Y/n] " answer || true
    case $answer in [nN]*) KEEP=true ;; esac
  fi
  if $KEEP; then
    say "LEFT RUNNING AND COSTING MONEY: $NAME in $ZONE. The same command finds it again. To delete it:"
    removal_command
  elif ! $DRY && look && [ "$STATE" = absent ]; then
    say "$NAME is not there; nothing costs money. Logs: $LOGS"
  elif remove; then
    $DRY || say "$NAME is deleted. Logs: $LOGS"
  else
    say "COULD NOT DELETE $NAME in $ZONE; IT MAY GO ON COSTING MONEY. By hand:"
    removal_command
    [ "$code" != 0 ] || code=1
  fi
  exit "$code"
}

# --dry-run: what would touch the world prints itself instead; the machine is absent first, then ready.
rehearse() {
  say "Nothing is run: $NAME is taken to be absent, then to have $HOSTS host(s)."
  exec 3>&1
  SEEN=false
  printed() { printf '%q ' "$@" >&3 && echo >&3; }
  gcloud() { printed gcloud "$@"; }
  git() { printed git "$@"; }
  sleep() { :; }
  mktemp() { echo /tmp/PACKED; }
  ask_state() {
    look
    if $SEEN; then
      STATE=ready WORKERS=()
      list_workers || true
      mapfile -t WORKERS < <(seq -f 'WORKER-%.0f' "$HOSTS")
    fi
    SEEN=true
  }
}
