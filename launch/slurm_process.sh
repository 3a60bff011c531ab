#!/usr/bin/env bash
# One process of the run under Slurm: runs the given command, and puts its exit code into the log for slurm.sbatch.
trap : TERM # Slurm signals the command, too; it saves, and this waits
"$@"
code=$?
printf '\nkacl_jax ended with exit code %s\n' "$code"
exit "$code"
