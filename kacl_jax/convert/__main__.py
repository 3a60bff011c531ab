"""Write the simple layout for your own X-rays from a table, a COCO file or CheXpert.

    python -m kacl_jax.convert --from=table --in=table.csv --columns=image=File,labels=Dx --out=FOLDER
    python -m kacl_jax.convert --from=coco --in=instances.json --images=IMAGES --out=FOLDER
    python -m kacl_jax.convert --from=chexpert --in=train.csv --in=valid.csv --out=FOLDER

FOLDER gets images.csv, annotations.csv if there are boxes, and images/ with a symbolic link to each file. If the input
has a mistake, nothing is written, and all mistakes are listed. CheXpert: train.csv has the split train, valid.csv has
the split test. docs/convert.md explains the rest.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the slow imports, during which a signal may come
    from kacl_jax.runtime import output, signals

    signals.exit_on_signals("Stopped. Run the same command again to continue.")
    output.prepare_streams()

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from kacl_jax.convert import chexpert, coco, layout, table
from kacl_jax.convert.box_units import UNITS
from kacl_jax.convert.checked_rows import Collection, raise_problems
from kacl_jax.convert.image_folder import ImageFolder
from kacl_jax.data.problems import Problems
from kacl_jax.runtime import output, signals
from kacl_jax.runtime.errors import DONE, INTERRUPTED, USER_ERROR, UserError

_SEPARATORS = {",": ",", ";": ";", "tab": "\t"}
# What is read from some sources only; None means not given.
_FLAGS_OF = {
    "table": (
        *("separator", "columns", "label_separator", "no_finding"),
        *("boxes", "box_columns", "box_unit", "box_finding"),
    ),
    "coco": ("no_finding",),
    "chexpert": ("any_view",),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 for success, 1 for a user's mistake, 75 for an interruption."""
    signals.raise_keyboard_interrupt()
    output.silence_pydicom()
    flags = _parser().parse_args(arguments)
    try:
        _refuse_flags_of_others(flags)
        layout.refuse_used_folder(flags.out)
        collection = _read(flags)
        layout.write_folder(collection, flags.out, copy=flags.copy)
    except UserError as error:
        print(f"Error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("\nStopped. Nothing was written.", file=sys.stderr)
        return INTERRUPTED
    print(layout.summary(collection, flags.out, copy=flags.copy))
    return DONE


def _parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python -m kacl_jax.convert",
        description=lines[0],
        epilog="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--from", dest="source", required=True, choices=tuple(_FLAGS_OF), help="what you have")
    add(
        "--in",
        dest="paths",
        metavar="FILE",
        type=Path,
        required=True,
        action="append",
        help="the file, plain or .gz; chexpert takes several",
    )
    add(
        "--images",
        metavar="FOLDER",
        type=Path,
        help="the folder of the images (default: the folder of --in)",
    )
    add("--out", metavar="FOLDER", type=Path, required=True, help="a new or empty folder")
    add("--copy", action="store_true", help="copy the images instead of linking to them")
    only = parser.add_argument_group("table (coco takes --no_finding, too)")
    only.add_argument(
        "--columns", metavar="ROLES", help="image=COLUMN,… with the roles " + ", ".join(table.ROLES)
    )
    only.add_argument(
        "--separator",
        choices=tuple(_SEPARATORS),
        metavar="SEPARATOR",
        help="of cells: , ; or tab (default: ,)",
    )
    only.add_argument(
        "--label_separator",
        metavar="LETTERS",
        help="letters, each of which separates findings (default: |;,/)",
    )
    only.add_argument(
        "--no_finding",
        metavar="NAMES",
        help="names that mean no finding; a comma at the end: a blank cell means it, too (default: No Finding,normal)",
    )
    only.add_argument("--boxes", metavar="FILE", type=Path, help="a table of boxes, plain or .gz")
    only.add_argument(
        "--box_columns",
        metavar="ROLES",
        help="image=COLUMN,finding=COLUMN,x=COLUMN,y=…,w=…,h=…, or the corners x0=…,y0=…,x1=…,y1=… "
        "(default: columns of these names)",
    )
    only.add_argument("--box_unit", choices=UNITS, help="of the boxes (default: pixels)")
    only.add_argument(
        "--box_finding", metavar="NAME", help="the finding of all boxes, if no column has it"
    )
    group = parser.add_argument_group("chexpert")
    group.add_argument(
        "--any_view", action="store_true", default=None, help="keep the lateral images, too"
    )
    return parser


def _refuse_flags_of_others(flags: argparse.Namespace) -> None:
    mine = _FLAGS_OF[flags.source]
    for name in sorted({name for names in _FLAGS_OF.values() for name in names} - set(mine)):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name} has no effect with --from={flags.source}; leave it out")
    if flags.boxes is None:
        for name in ("box_columns", "box_unit", "box_finding"):
            if getattr(flags, name) is not None:
                raise UserError(f"--{name} needs --boxes, the table of boxes")
    if flags.source == "table" and not flags.columns:
        raise UserError("--columns must say which column holds what, as image=File,labels=Dx")
    if flags.source != "chexpert" and len(flags.paths) > 1:
        raise UserError(f"--in must be given once with --from={flags.source}")


def _read(flags: argparse.Namespace) -> Collection:
    problems = Problems()
    path = flags.paths[0]
    if not path.is_file():
        raise UserError(f"--in={path} is no file; give the file of your images")
    if flags.source == "chexpert":
        any_view = bool(flags.any_view)
        collection = chexpert.read(flags.paths, flags.images, any_view=any_view, problems=problems)
    else:
        folder = ImageFolder(flags.images or path.parent)
        text = "No Finding,normal" if flags.no_finding is None else flags.no_finding
        no_finding = [name.strip().casefold() for name in text.split(",")]
        if flags.source == "coco":
            collection = coco.read(path, folder, no_finding, problems)
        else:
            collection = _read_table(flags, folder, no_finding, problems)
    raise_problems(problems)
    return collection


def _read_table(
    flags: argparse.Namespace, folder: ImageFolder, no_finding: Sequence[str], problems: Problems
) -> Collection:
    separator = _SEPARATORS[flags.separator or ","]
    letters = flags.label_separator or "|;,/".replace(separator, "")
    boxes = None
    if flags.boxes:
        default = "image=image,x=x,y=y,w=w,h=h" + ("" if flags.box_finding else ",finding=finding")
        text = flags.box_columns or default
        columns = table.parse_columns("--box_columns", text, table.BOX_ROLES)
        boxes = table.BoxTable(
            flags.boxes, columns, flags.box_unit or "pixels", flags.box_finding or ""
        )
    return table.read(
        flags.paths[0],
        folder,
        table.parse_columns("--columns", flags.columns, table.ROLES),
        separator,
        table.Labels(letters, no_finding),
        boxes,
        problems,
    )


if __name__ == "__main__":
    sys.exit(main())
