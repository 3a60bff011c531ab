"""How much radiomics work runs in parallel to the train step: the loop synchronous, asynchronous, without radiomics.

    python -m benchmarks.overlap [patients]

Three short runs on the same phantom, one after the other, on the same machine. The difference to the first row is what
radiomics costs the loop; ROI/s is what the workers did in the meantime.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from ml_collections import ConfigDict

from configs import demo as demo_config
from kacl_jax.data.phantom import demo
from kacl_jax.train import job


def main(patients: int = 150) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "phantom"
        demo.write_phantom(root, patients=patients, size=256, seed=0)
        print(f"{'loop':34}{'images/s':>10}{'ROI/s':>8}{'waited s':>10}{'hit rate':>10}")
        for name, overrides in {
            "focal only, no radiomics": {"loss.focal_weight": 1.0, "loss.box_weight": 0.0},
            "asynchronous, lag 8": {"feedback.lag": 8, "loss.box_weight": 0.0},
            "synchronous, lag 0": {"feedback.lag": 0, "loss.box_weight": 0.0},
        }.items():
            results = job.train_and_evaluate(
                _config(root, overrides), Path(folder) / name.replace(" ", "-")
            )
            rates, feedback = asdict(results.throughput), asdict(results.feedback)
            hit = "–" if feedback["hit_rate"] is None else f"{feedback['hit_rate']:.2f}"
            print(
                f"{name:34}{rates['images_per_s']:10.1f}{rates['rois_per_s']:8.1f}"
                f"{rates['waits']['radiomics_s']:10.2f}{hit:>10}"
            )
            print(json.dumps({"loop": name, "throughput": rates, "feedback": feedback}))


def _config(root: Path, overrides: dict[str, object]) -> ConfigDict:
    config = demo_config.get_config()
    config.data.root = str(root)
    config.train.epochs = 3
    config.eval.bootstrap = 10
    config.update_from_flattened_dict(overrides)
    return config


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
