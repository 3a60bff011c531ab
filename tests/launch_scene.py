"""A world for the launch scripts: a copy of them, a cloud of one file, and programs on PATH that record their calls."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"

# The machine is the file `machine`, which holds its state. `runs.N`: how the starts on worker N end, one a line.
GCLOUD = r"""#!/usr/bin/env bash
cd "$SCENE"
line=$(printf '%q ' "$@"); echo "$line" >>calls # in one write: two workers are called at once
take() { # the next line of a file, whose last line stays
  head -n 1 "$1"; [ "$(wc -l <"$1")" -le 1 ] || sed -i 1d "$1"
}
fails() { [ -s "$1" ] && sed -i 1d "$1"; } # as often as the file has lines
case "$*" in
  *queued-resources\ list* | *managed\ list\ *) ! fails glitches || exit 1; cat machine 2>/dev/null || true ;;
  *queued-resources\ create* | *managed\ create*)
    [ ! -e machine ] || exit 1; cat born >machine ;;
  *queued-resources\ delete* | *managed\ delete*) [ ! -e undeletable ] && rm machine ;;
  *tpu-vm\ describe*) sed 's/^/10.0.0./' hosts ;;
  *list-instances*instanceStatus*)
    case $(cat machine) in ACTIVE) sed 's/.*/RUNNING/' hosts ;; SUSPENDED) echo TERMINATED ;; *) echo ;; esac ;;
  *list-instances*) sed 's/^/kacl-x/' hosts ;;
  *scp*) ! fails deaf ;;
  *worker.sh\ install*) ! fails uninstallable ;;
  *worker.sh\ run*)
    number=$(sed 's/.*worker.sh run \([0-9]*\).*/\1/' <<<"$*")
    how=$(take "runs.$number")
    echo "start on worker $number"
    case $how in
      preempted) echo SUSPENDED >machine; exit 1 ;;
      lost) exit 1 ;;
      hang) echo $$ >hanging; exec /bin/sleep 30 ;;
      *) echo "kacl_jax ended with exit code $how" ;;
    esac ;;
  *describe*) echo "state: it is $(cat machine)" ;;
esac
"""
RECORD = (
    '#!/usr/bin/env bash\nline=$(printf "%q " "${0##*/}" "$@"); echo "$line" >>"$SCENE/calls"\n'
)


def program(folder: Path, name: str, text: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Scene:
    """A copy of the launch folder in a repository of its own, and the world around it."""

    def __init__(self, tmp: Path) -> None:
        self.house = tmp / "a house"
        self.here = tmp / "scene"
        self.bin = tmp / "bin"
        for folder in (self.house, self.here, self.bin):
            folder.mkdir()
        shutil.copytree(LAUNCH, self.house / "launch")
        (self.house / "requirements.lock").write_text("numpy\n")
        for name in ("git", "sleep"):
            program(self.bin, name, "#!/bin/sh\n")
        self.write("calls", "")
        path = f"{self.bin}:{os.environ['PATH']}"
        self.environment = {"PATH": path, "SCENE": str(self.here), "HOME": str(tmp)}

    def write(self, name: str, text: str) -> None:
        (self.here / name).write_text(text)

    def calls(self, part: str = "") -> list[str]:
        return [line for line in (self.here / "calls").read_text().splitlines() if part in line]

    def start(
        self, script: str, *arguments: str, stdin: int = subprocess.DEVNULL
    ) -> subprocess.Popen[str]:
        # Tests in the background of a shell ignore Ctrl-C, and a child would, too. Not by preexec_fn: that forks, and
        # jax warns of it.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            return subprocess.Popen(
                ["bash", str(self.house / "launch" / script), *arguments],
                cwd=self.house,
                env=self.environment,
                stdin=stdin,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
            )
        finally:
            signal.signal(signal.SIGINT, before)

    def run(self, script: str, *arguments: str) -> tuple[int, str]:
        started = self.start(script, *arguments)
        told, _ = started.communicate(timeout=120)
        return started.returncode, told

    @property
    def machine_is_there(self) -> bool:
        return (self.here / "machine").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)
