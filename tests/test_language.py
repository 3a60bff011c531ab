"""The pages are in plain English: short sentences, and one word for one thing."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from kacl_jax.__main__ import COMMANDS
from kacl_jax.config.keys import KEYS

REPO = Path(__file__).resolve().parents[1]
PAGES = [
    *("README.md", "CONTRIBUTING.md", "DECISIONS.md", "CHANGELOG.md", "docs/evidence/README.md"),
    *(
        f"docs/{name}.md"
        for name in (
            *("ablations", "convert", "data", "experiment", "fusion", "fuzz", "machines", "output"),
            *(
                "phantom",
                "predict",
                "radiomics",
                "recipe",
                "results",
                "scaling",
                "speed",
                "weights",
            ),
        )
    ),
]
FORBIDDEN = {
    r"(?<![\w.])\.\d": "a number without its zero",
    r"\bfigures?\b": "figure means a picture",
    r"T\(IoU\) > \.": "a number without its zero",
}
RIDDLES = {
    r"\b(goes|going|gone|go) on\b": "resumes, or continues",
    r"\banew\b": "again",
    r"\btold apart\b": "different",
    r"\bstands? out\b": "unusual",
    r"\bmake room\b": "free some disk space",
    r"\bT\(IoU\)": "IoU above 0.1",
}


def prose(text: str) -> str:
    """Without code, tables, headings, links' targets and what stands in backticks."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"^(\||#|!|<).*$", "", text, flags=re.MULTILINE)
    text = re.sub(r"\]\([^)]*\)", "]", text)
    return re.sub(r"`[^`]*`", "CODE", text)


def sentences(text: str) -> list[str]:
    parts = []
    for paragraph in re.split(r"\n\s*\n|\n(?=\* )", prose(text)):
        parts += re.split(r"(?<=[.!?:;])\s+(?=[A-Z*\[\"])", " ".join(paragraph.split()))
    return [part for part in parts if len(part.split()) > 2]


@pytest.mark.parametrize("page", PAGES)
def test_sentences_are_short(page: str) -> None:
    lengths = {part: len(part.split()) for part in sentences((REPO / page).read_text())}
    assert lengths
    assert not {part: n for part, n in lengths.items() if n > 30}
    assert statistics.median(lengths.values()) <= 15


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("form", FORBIDDEN)
def test_no_form_that_must_be_read_twice(page: str, form: str) -> None:
    text = re.sub(r"`[^`]*`", "CODE", (REPO / page).read_text())
    text = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    assert not [line for line in text.splitlines() if re.search(form, line)], FORBIDDEN[form]


def test_the_package_lists_its_commands() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "kacl_jax"], capture_output=True, text=True, check=True
    )
    package = REPO / "kacl_jax"
    modules = {path.parent.name for path in package.glob("*/__main__.py")}
    modules |= {
        path.stem
        for path in package.glob("*.py")
        if 'if __name__ == "__main__"' in path.read_text()
    }
    assert set(COMMANDS) == modules - {"__main__"}
    for name, (_, example) in COMMANDS.items():
        assert f"python -m kacl_jax.{name} {example}" in done.stdout


def test_the_help_is_short_too() -> None:
    """What --help says of every key of the config."""
    texts = {name: key.meaning for name, key in KEYS.items()}
    lengths = [len(part.split()) for text in texts.values() for part in sentences(text)]
    assert max(lengths) <= 30
    assert statistics.median(lengths) <= 15
    for form, why in FORBIDDEN.items():
        assert not [name for name, text in texts.items() if re.search(form, text)], why


def messages(node: ast.AST) -> Iterator[str]:
    """All strings of a module but docstrings; an inserted value is the word X."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield re.sub(r"%(\(\w+\))?[\d.]*[sdfgr]", "X", node.value)
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(v.value) if isinstance(v, ast.Constant) else "X" for v in node.values)
        return
    for child in ast.iter_child_nodes(node):
        yield from messages(child)


def visible(template: str) -> Iterator[str]:
    """The paragraphs of a template, without tags; what Jinja inserts is the word X."""
    template = re.sub(r"{{.*?}}", "X", re.sub(r"{%.*?%}", "", template, flags=re.DOTALL))
    template = re.sub(r"<(svg|script|style).*?</\1>|</?(a|b|i|span|code)\b[^>]*>", "", template)
    yield from re.split(r"<[^>]*>", template)


def test_what_the_program_prints_and_writes_is_short_too() -> None:
    package, lengths = REPO / "kacl_jax", []
    for path in sorted([*package.rglob("*.py"), *package.rglob("templates/*.html")]):
        text = path.read_text()
        texts = messages(ast.parse(text)) if path.suffix == ".py" else visible(text)
        for part in (part for words in texts for part in sentences(words)):
            lengths.append(len(part.split()))
            assert lengths[-1] <= 30, f"{path}: {part}"
            for form, better in (FORBIDDEN | RIDDLES).items():
                assert not re.search(form, part), f"{path}: {part} ({better})"
    assert len(lengths) > 500
    assert statistics.median(lengths) <= 15
