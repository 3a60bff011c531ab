"""Writes an artificial data root in NIH's layout with a few small pictures, for the tests of kacl_jax.data."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

LABEL_HEADER = (
    "Image Index,Finding Labels,Follow-up #,Patient ID,Patient Age,Patient Gender,View Position,"
    "OriginalImage[Width,Height],OriginalImagePixelSpacing[x,y],"
)
BOX_HEADER = "Image Index,Finding Label,Bbox [x,y,w,h],,,"


@dataclass
class SmallRoot:
    """The lines of a root's text files; a test may change them before `write`."""

    labels: list[str] = field(default_factory=list)
    boxes: list[str] = field(default_factory=list)
    train_val: list[str] = field(default_factory=list)
    test: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)

    def write(self, root: Path, *, size: int = 24, images: bool = True) -> Path:
        root.mkdir(parents=True, exist_ok=True)
        texts = {
            "Data_Entry_2017.csv": [LABEL_HEADER, *self.labels],
            "BBox_List_2017.csv": [BOX_HEADER, *self.boxes],
            "train_val_list.txt": self.train_val,
            "test_list.txt": self.test,
        }
        for name, lines in texts.items():
            (root / name).write_text("".join(f"{line}\n" for line in lines))
        folder = root / "images"
        folder.mkdir(exist_ok=True)
        for k, name in enumerate(self.names if images else []):
            # Every pixel but a bright right edge has the image's number, so a test can see which image it got.
            picture = np.full((size, size), k % 256, np.uint8)
            picture[:, -2:] = 255
            cv2.imwrite(str(folder / name), picture)
        return root


def small_root(patients: int = 12, per_patient: int = 2, boxed: int = 6) -> SmallRoot:
    """The second half of the patients is the official test part. The last `boxed` patients have one box
    each on their first image, Mass or Nodule in turn."""
    root = SmallRoot()
    for patient in range(1, patients + 1):
        finding = ("Mass", "Nodule")[patient % 2]
        for follow_up in range(per_patient):
            name = f"{patient:08d}_{follow_up:03d}.png"
            labels = finding if follow_up == 0 else "No Finding"
            view = ("PA", "AP")[follow_up % 2]
            row = f"{name},{labels},{follow_up},{patient},{40 + patient},M,{view},2500,2048,.1,.1,"
            root.labels.append(row)
            root.names.append(name)
            (root.test if patient > patients - patients // 2 else root.train_val).append(name)
            if follow_up == 0 and patient > patients - boxed:
                root.boxes.append(f"{name},{finding},{10.5 * patient},256.0,128.0,64.0,,,")
    return root
