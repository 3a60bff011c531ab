"""Adds to a network's scores what a ridge regression says of the same image.

    grid        an image → the radiomic features of each cell of a fixed grid
    measuring   the same of many images, by worker processes and with a memo on the disk
    ridge       features and labels → one ridge regression per finding
    scores      the network's logits and the ridges' scores → fused logits; the weight
    fused_file  the fusion of a run as a file
    shares      which cells and features move a finding's score

Nothing here imports jax.
Axes: n images · c findings · g² cells · f radiomic features of a cell · p features of an image.
"""
