"""What a person looks at: one self-contained HTML file per run, and one per sweep.

    run_page    what a finished run is told with, gathered from its files and its last evaluation
    sweep_page  the same for a sweep, from sweep.csv and the points' own files
    figures     a run's charts and their captions
    gallery     X-rays with what was found in them, beside the radiomic features that stand out
    contrast    what the contrastive loss did, from the points' logs
    cases       which images are shown
    features    radiomic features of the test images' regions: which tell positives from negatives, which stand out
    curves      what the lines of a chart go through
    charts      lines, intervals and bars as SVG
    pictures    an X-ray with its map, region and boxes as SVG
    page        template → file

Every string reaches the page through jinja2's or markupsafe's escaping. The same inputs give the same bytes.
This file and `sweep_page` import no jax.
"""

from __future__ import annotations
