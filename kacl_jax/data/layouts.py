"""The two layouts of a data root: NIH's, and a simple one for own X-rays. All that follows is the same for both."""

from __future__ import annotations

from pathlib import Path

from kacl_jax.data import nih_tables, own_tables
from kacl_jax.data.problems import Problems
from kacl_jax.data.tables import Tables
from kacl_jax.data.text_files import find_plain_or_gz
from kacl_jax.runtime.errors import UserError


def read_tables(root: Path | str, problems: Problems, uncertain: str = "refuse") -> Tables:
    """Reads the text files of a root in either layout.

    uncertain: what a label −1 of the own layout becomes: see `own_tables.read_own_tables`.

    Raises:
        UserError: the root does not exist or is empty.
    """
    tables = Tables(Path(root).expanduser())
    if not tables.root.is_dir():
        what = "is not a folder" if tables.root.exists() else "is not there"
        raise UserError(
            f"data root {tables.root} {what}; give NIH's folder by --config.data.root (kacl_jax.prepare: --root)"
        )
    if not any(tables.root.iterdir()):
        raise UserError(
            f"data root {tables.root} is empty; looked for images/ and {own_tables.LABEL_FILE}, or for NIH's "
            f"images/ (or images_001/images …) and {', '.join(nih_tables.TABLE_FILES)}"
        )
    if not is_own(tables.root):
        nih_tables.read_nih_tables(tables, problems)
    else:
        own_tables.read_own_tables(tables, problems, uncertain)
    return tables


def is_own(root: Path) -> bool:
    """Whether a root is in the simple layout."""
    return find_plain_or_gz(root, own_tables.LABEL_FILE) is not None


def text_file_paths(root: Path) -> list[Path]:
    """The paths of the text files that `read_tables` reads, plain or .gz."""
    names = own_tables.TABLE_FILES if is_own(root) else nih_tables.TABLE_FILES
    paths = (find_plain_or_gz(root, name) for name in names)
    return [path for path in paths if path is not None]
