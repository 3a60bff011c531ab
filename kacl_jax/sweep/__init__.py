"""Many runs and what they say together.

    __main__  the command: `python -m kacl_jax.sweep`
    hyper     arms × folds × seeds → points
    jobs      a few processes at a time
    measure   one finished run → its figures over resampled patients
    compare   arms and paired differences
    table     sweep.csv and sweep.md

Nothing here imports jax.
"""
