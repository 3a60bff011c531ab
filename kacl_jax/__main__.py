"""The commands of this package, with an example each: python -m kacl_jax"""

from __future__ import annotations

COMMANDS = {
    "main": (
        "Train and test a network, or check a data set.",
        "--config=configs/demo.py",
    ),
    "predict": (
        "Apply a trained network to images.",
        "--run=runs/demo --images=FOLDER --out=predictions",
    ),
    "radiomics": (
        "Measure radiomic features of regions.",
        "--images=FOLDER --masks=FOLDER --out=features.csv",
    ),
    "prepare": (
        "Resize a data set once, so that training reads it faster.",
        "--root=/path/to/nih --out=/path/to/prepared --size=512",
    ),
    "convert": (
        "Write the layout for your own X-rays from a table, a COCO file or CheXpert.",
        "--from=table --in=table.csv --columns=image=File,labels=Dx --out=FOLDER",
    ),
    "sweep": (
        "Run ablations and compare them.",
        "--config=configs/ablations.py:phantom --workdir=runs/ablations",
    ),
}


def main() -> None:
    print("Commands of kacl_jax. Add --help to one of them for its options.")
    for name, (purpose, example) in COMMANDS.items():
        print(f"\n{purpose}\n  python -m kacl_jax.{name} {example}")


if __name__ == "__main__":
    main()
