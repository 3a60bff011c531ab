"""The output folder of the command: its tables, maps and pages, and how far it has come.

A chunk of images is written in this order: maps, pages, rows of the tables, then progress.json, which says how long
each table is. What lies beyond that length was written by a command that was stopped; the next one cuts it off.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from kacl_jax.predict import overlay, page, region_features, tables
from kacl_jax.predict.inputs import Failed, Listed
from kacl_jax.predict.prediction import Prediction
from kacl_jax.predict.region_features import RegionFeatures
from kacl_jax.report.features import Moments, OutlyingFeature, outlying_features
from kacl_jax.runtime import files
from kacl_jax.runtime.errors import UserError

_PROGRESS = "progress.json"
_FIX = "free some disk space or give another --out"


class OutputFolder:
    """The files of `out`; `done` is how many of the images are in them, `worked` how many of these have findings.

    Args:
      findings: the network's. run: its name, for the pages. moments: of its training regions' features, if it has them.
      uncalibrated: findings whose probability is the raw score.
      settings: what must be the same when a command goes on: the network, the images and the flags.
      maps, radiomics, keep_ids: write these, too. chunk: how many images `write` gets at once, but for the last time.

    Raises:
      UserError: the folder has the outputs of other settings or other images, is damaged, or cannot be written.
    """

    def __init__(
        self,
        out: Path,
        *,
        findings: Sequence[str],
        run: str,
        moments: Moments | None,
        uncalibrated: Sequence[str],
        settings: Mapping[str, Any],
        listed: Sequence[Listed],
        maps: bool,
        radiomics: bool,
        keep_ids: bool,
        chunk: int,
    ) -> None:
        self._out, self._run, self._moments = out, run, moments
        self._uncalibrated = uncalibrated
        whole, rest = divmod(len(listed), chunk)
        self._pages_in_all = whole * _pages_for(chunk) + _pages_for(rest)
        self._maps, self._settings, self._listed = maps, dict(settings), listed
        self._headers = tables.headers(findings, keep_ids=keep_ids)
        if not radiomics:
            del self._headers["radiomics.csv"]
        self.done = self.worked = self._pages = 0
        self._lengths: dict[str, int] = {}
        if (out / _PROGRESS).exists():
            self._go_on()
        else:
            self._begin()

    def write(self, results: Sequence[Prediction | Failed], ids: Sequence[Sequence[str]]) -> None:
        """Write the next images' results, in the order of the list. ids: columns of --keep_ids, empty without it.

        Raises:
          UserError: something cannot be written; what was complete before stays.
        """
        try:
            self._write(results, ids)
        except OSError as error:
            where = error.filename or self._out
            raise UserError(f"{where} cannot be written ({error.strerror}); {_FIX}") from error

    def _write(self, results: Sequence[Prediction | Failed], ids: Sequence[Sequence[str]]) -> None:
        rows: dict[str, list[list[Any]]] = {name: [] for name in self._headers}
        for start in range(0, len(results), page.IMAGES_PER_PAGE):
            some = slice(start, start + page.IMAGES_PER_PAGE)
            self._write_page(results[some], ids[some], rows)
        for name, table_rows in rows.items():
            self._append(name, table_rows)
        self.done += len(results)
        self.worked += sum(isinstance(result, Prediction) for result in results)
        self._save_progress()

    def write_index(self) -> None:
        facts = [("Images done", f"{self.done:,} of {len(self._listed):,}")]
        if self._uncalibrated:
            names = ", ".join(self._uncalibrated)
            facts.append(("Not calibrated; the probability is the raw score", names))
        page.write_index(self._out, run=self._run, facts=facts, pages=self._pages)

    def _write_page(
        self,
        results: Sequence[Prediction | Failed],
        ids: Sequence[Sequence[str]],
        rows: dict[str, list[list[Any]]],
    ) -> None:
        number = self._pages + 1
        n_columns = len(self._headers["findings.csv"])
        outlying: dict[str, dict[str, list[OutlyingFeature]]] = {}
        measured = iter(self._measure(results))
        for place, (result, own_ids) in enumerate(zip(results, ids, strict=True)):
            rows["findings.csv"].append(
                tables.findings_row(result, own_ids, page=number, n_columns=n_columns)
            )
            if isinstance(result, Failed):
                continue
            map_names = self._write_maps(result, f"{number:04d}-{place + 1:02d}")
            rows["regions.csv"] += tables.region_rows(result, map_names)
            if "radiomics.csv" in rows:
                own = [next(measured) for _ in result.shown_findings]
                rows["radiomics.csv"] += tables.radiomics_rows(result, own)
                outlying[result.name] = self._outlying(result, own)
        (self._out / "pages").mkdir(exist_ok=True)
        page.write_page(
            self._out / "pages" / page.page_name(number),
            results,
            number=number,
            run=self._run,
            outlying=outlying,
            pages=self._pages_in_all,
        )
        self._pages = number

    def _write_maps(self, result: Prediction, place: str) -> list[str]:
        """The file name of each shown finding's picture, '' without --maps. place: page and number on it."""
        if not self._maps:
            return [""] * len(result.shown_findings)
        (self._out / "maps").mkdir(exist_ok=True)
        stem = re.sub(r"[^A-Za-z0-9._-]", "_", Path(result.name).stem)[:60]
        names = []
        for finding in result.shown_findings:
            names.append(f"{place}_{stem}_{finding}.png")
            overlay.draw(result, finding).save(self._out / "maps" / names[-1])
        return names

    def _measure(self, results: Sequence[Prediction | Failed]) -> list[RegionFeatures]:
        """Of the regions of all results, in their order; none without --radiomics."""
        predictions = [result for result in results if isinstance(result, Prediction)]
        if "radiomics.csv" not in self._headers or not predictions:
            return []
        regions = [region for result in predictions for region in result.marked_regions]
        return region_features.measure(regions, predictions[0].bin_width, os.cpu_count() or 1)

    def _outlying(
        self, result: Prediction, measured: Sequence[RegionFeatures]
    ) -> dict[str, list[OutlyingFeature]]:
        if self._moments is None:
            return {}
        return {
            finding: outlying_features(found.features, self._moments)
            for finding, found in zip(result.shown_findings, measured, strict=True)
        }

    def _begin(self) -> None:
        for name, header in self._headers.items():
            path, text = self._out / name, tables.csv_text([header])
            if path.exists() and path.read_bytes() != text.encode():
                raise UserError(
                    f"{path} exists, but this command did not write it; give another --out"
                )
            files.write_text(path, text, fix=_FIX)
            self._lengths[name] = (self._out / name).stat().st_size
        self._save_progress()

    def _go_on(self) -> None:
        path = self._out / _PROGRESS
        progress = files.read_json(path)
        try:
            before, names = progress["settings"], progress["names"]
            self.done, self.worked = int(progress["done"]), int(progress["worked"])
            self._pages, self._lengths = int(progress["pages"]), dict(progress["lengths"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} is damaged ({error!r}); give another --out") from error
        changed = [
            f"{key}: {before.get(key)} → {value}"
            for key, value in self._settings.items()
            if before.get(key) != value
        ]
        if changed:
            lines = "\n  ".join(changed)
            raise UserError(
                f"{self._out} has the outputs of another command; give another --out:\n  {lines}"
            )
        if names != self._names_digest():
            raise UserError(
                f"The first {self.done} images are not those of {self._out}, because files were added or removed; give "
                "another --out, or a list of the new images"
            )
        for name, length in self._lengths.items():
            self._cut(self._out / name, length)

    def _cut(self, table: Path, length: int) -> None:
        try:
            if table.stat().st_size < length:
                raise UserError(
                    f"{table} is shorter than the part that was written; give another --out"
                )
            os.truncate(table, length)
        except OSError as error:
            raise UserError(f"{table} cannot be written ({error.strerror}); {_FIX}") from error

    def _append(self, name: str, rows: Sequence[Sequence[Any]]) -> None:
        with (self._out / name).open("ab") as file:
            file.write(_encode(tables.csv_text(rows)))
            file.flush()
            os.fsync(file.fileno())
            self._lengths[name] = file.tell()

    def _save_progress(self) -> None:
        content = {
            "settings": self._settings,
            "done": self.done,
            "worked": self.worked,
            "names": self._names_digest(),
            "pages": self._pages,
            "lengths": self._lengths,
        }
        try:
            files.write_json(self._out / _PROGRESS, content)
        except UserError as error:
            raise UserError(str(error).replace("--workdir", "--out")) from error

    def _names_digest(self) -> str:
        """Of the names of the images that are done. Names may hold identifiers, so that they are not kept."""
        names = "\0".join(listed.name for listed in self._listed[: self.done])
        return hashlib.blake2b(_encode(names), digest_size=16).hexdigest()


def _encode(text: str) -> bytes:
    """UTF-8; a file name's bytes that are none stay as they are."""
    return text.encode("utf-8", "surrogateescape")


def _pages_for(images: int) -> int:
    return -(-images // page.IMAGES_PER_PAGE)
