"""The pages for people: one self-contained HTML file per run, and the parts for that of a sweep (`sweep.page`).

    run_page    report.html of a finished run, from its files and its last evaluation
    figures     a run's tables and charts
    gallery     X-rays with their maps, regions and boxes, and the radiomic features of the regions
    cases       which images the page shows
    features    radiomic features of the test images' regions: separating positives from negatives, or unusual
    curves      the points of the charts' lines
    fusion      what the fusion of radiomics and image features adds
    cells       the fusion's grid over an X-ray, or alone
    charts      lines, intervals and bars as SVG
    pictures    an X-ray with its map, region and boxes as SVG
    page        template → file

Every string reaches the page through the escaping of jinja2 or markupsafe. The same inputs give the same bytes.
This file and everything that `sweep.page` uses import no jax.
"""

from __future__ import annotations
