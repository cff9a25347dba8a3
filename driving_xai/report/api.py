"""Reports from Python: the page, tables and a recording of saved results."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from data_prep.lock import exclusive_file
from data_prep.places import local, local_output
from data_prep.shards.atomic import remove_leftovers
from driving_xai.errors import DataError
from driving_xai.evaluation.brush_cases import holds_cases
from driving_xai.evaluation.model_comparison import ModelComparison
from driving_xai.report.brush_cases import CaseFolder, read_case_folders
from driving_xai.report.models import model_comparisons
from driving_xai.report.page import PageConfig, write_page
from driving_xai.report.sanity import Sanity, holds_sanity, load_sanity
from driving_xai.report.sources import Source, load_sources
from driving_xai.report.tables import write_csv, write_markdown


@dataclass(frozen=True, kw_only=True)
class Report:
    """Saved results, read and checked, to be written in several forms; made by `read`."""

    sources: Sequence[Source]
    sanity: Sequence[Sanity]
    cases: Sequence[CaseFolder] = ()

    @cached_property
    def comparisons(self) -> Sequence[ModelComparison]:
        """Each pair of models that were scored on the same frames."""
        return model_comparisons(self.sources)

    def write(
        self,
        out: Path | None = None,
        *,
        config: PageConfig | None = None,
        markdown: Path | None = None,
        csv: Path | None = None,
        rrd: Path | None = None,
    ) -> list[Path]:
        """Writes the forms that are asked for; returns the files.

        Args:
            out: the page, one self-contained HTML file.
            config: of the page.
            markdown: the scores as tables.
            csv: the scores, a row for each method.
            rrd: a recording for the Rerun viewer.

        Raises:
            DataError: another run is writing one of these files.
        """
        others = [path for path in (markdown, csv, rrd) if path is not None]
        with _alone([*([] if out is None else [out]), *others]):
            written = (
                []
                if out is None
                else write_page(
                    self.sources, out, config, sanity=self.sanity, models=self.comparisons, cases=self.cases
                )
            )
            if markdown is not None:
                write_markdown(self.sources, markdown, models=self.comparisons)
            if csv is not None:
                write_csv(self.sources, csv)
            if rrd is not None:
                from driving_xai.report.recording import write_recording

                write_recording(self.sources, rrd)
        return [*written, *others]


def read(results: Path | str | Sequence[Path | str], *, labels: Sequence[str] = ()) -> Report:
    """Reads what a report is made of; nothing is recomputed.

    Args:
        results: folders, here or in a store, that `score`, `replay` or `sanity` wrote, or `evaluate` with `out`; and folders of brush
            cases that viewers of a live view saved.
        labels: names of the models, one for each folder of scores.

    Raises:
        DataError: a folder holds no results, or all hold sanity checks.

    Example:
        >>> read([])
        Traceback (most recent call last):
        data_prep.errors.DataError: no scores; give a folder of score or replay, sanity checks alone make no report
    """
    folders = [local(each) for each in ([results] if isinstance(results, Path | str) else results)]
    cases = [path for path in folders if holds_cases(path)]
    folders = [path for path in folders if path not in cases]
    sources = load_sources([path for path in folders if not holds_sanity(path)], labels)
    if not sources:
        raise DataError("no scores; give a folder of score or replay, sanity checks alone make no report")
    return Report(
        sources=sources,
        sanity=load_sanity([path for path in folders if holds_sanity(path)]),
        cases=read_case_folders(cases),
    )


def write(
    results: Path | str | Sequence[Path | str], out: Path | str, *, config: PageConfig | None = None
) -> list[Path]:
    """Writes the page that another person can open, look at and check.

    Args:
        results: see `read`.
        out: one self-contained HTML file.
        config: of the page.

    Raises:
        DataError: see `read`.

    Example:
        >>> write([], "report.html")
        Traceback (most recent call last):
        data_prep.errors.DataError: no scores; give ...
    """
    return read(results).write(local_output(out), config=config)


@contextmanager
def _alone(paths: Sequence[Path]) -> Iterator[None]:
    """Keeps other runs from writing these files, and removes what a killed one left of them."""
    with ExitStack() as until_written:
        for path in paths:
            until_written.enter_context(exclusive_file(path))
            remove_leftovers(path.parent, of=path.name)
        yield
