"""Many runs, and what they show together.

    __main__  the command: `python -m kacl_jax.sweep`
    hyper     arms × folds × seeds → points
    jobs      runs commands on this machine, a few at a time
    slurm     runs commands as a job array of Slurm
    plan      a config file → its points, with their configs and workdirs
    finished  the finished points, each read once → the table and the page
    measure   one finished run → its metrics over resampled patients
    compare   arms and paired differences
    table     sweep.csv and sweep.md
    page      report.html

Nothing here imports jax.
"""
