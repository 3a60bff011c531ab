"""The config's reference, from the table of keys: for --help, and as a page.

python -m kacl_jax.config.reference > docs/keys.md
"""

from __future__ import annotations

import sys

from absl import flags

from kacl_jax.config.allowed import Allowed
from kacl_jax.config.keys import KEYS, TYPE_NAMES, Key

PAGE = "docs/keys.md"
_INTRODUCTION = f"""\
# Config keys

`python -m kacl_jax.config.reference > {PAGE}` wrote this page from `kacl_jax/config/keys.py`.

Give a key as `--config.KEY=VALUE` on the command line, or set it in a file like those in `configs/`. Rules between keys
are in `kacl_jax/config/rules.py`. The program refuses a config that breaks one before it does anything else.

A run resumes only with the values that it began with. `may change` marks the exceptions. These keys change no result
except the radiomics of regions that fail or come too late, which run.json counts. *Before this key* is what the code
did before the key existed. A run that older code began counts as having that value, whatever the default is today.
"""


def as_text() -> str:
    """All keys in the form of absl's --help. Imports no jax."""
    entries = [
        flags.text_wrap(f"--config.{name}: {key.meaning}", indent="    ", firstline_indent="  ")
        + "\n"
        + flags.text_wrap(f"({_values(key, _words(key))}; default: {key.default!r})", indent="    ")
        for name, key in KEYS.items()
    ]
    return "\n".join(
        [
            "Keys of the config. Give one as --config.KEY=VALUE:",
            *entries,
            f"\nThe same list as a page: {PAGE}",
        ]
    )


def as_markdown() -> str:
    """The text of docs/keys.md. Imports jax, for the names of the encoders."""
    groups: dict[str, list[str]] = {}
    for name, key in KEYS.items():
        cells = (f"`{name}`", f"`{key.default!r}`", _values(key, key.rule().words), key.meaning)
        row = f"| {' | '.join((*cells, _when_a_run_resumes(key)))} |"
        groups.setdefault(name.rpartition(".")[0], []).append(row)
    head = "| key | default | allowed | meaning | when a run resumes |\n|---|---|---|---|---|"
    tables = [
        "\n".join([*([f"## {group}", ""] if group else []), head, *rows])
        for group, rows in groups.items()
    ]
    return "\n\n".join([_INTRODUCTION.rstrip(), *tables]) + "\n"


def _values(key: Key, rule: str) -> str:
    """The key's type and its rule: 'a whole number: ≥ 0'."""
    return ": ".join(filter(None, (TYPE_NAMES[type(key.default)], rule)))


def _words(key: Key) -> str:
    """The rule's words, or where they are if they need a slow import."""
    return key.allowed.words if isinstance(key.allowed, Allowed) else f"see {PAGE}"


def _when_a_run_resumes(key: Key) -> str:
    before = "" if key.before is None else f"`{key.before!r}` before this key"
    return ", ".join(filter(None, ("may change" if key.free else "", before)))


if __name__ == "__main__":
    sys.stdout.buffer.write(as_markdown().encode())
