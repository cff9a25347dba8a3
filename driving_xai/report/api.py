"""A report from Python: the page, tables and a recording of saved results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from driving_xai.errors import DataError
from driving_xai.report.page import PageConfig, write_page
from driving_xai.report.sanity import holds_sanity, load_sanity
from driving_xai.report.sources import load_sources
from driving_xai.report.tables import write_csv, write_markdown


def write(
    results: Path | str | Sequence[Path | str],
    out: Path | str | None = None,
    *,
    config: PageConfig | None = None,
    markdown: Path | None = None,
    csv: Path | None = None,
    rrd: Path | None = None,
) -> list[Path]:
    """Writes what another person can open, look at and check; nothing is recomputed.

    Args:
        results: folders that `score`, `replay` or `sanity` wrote, or `evaluate` with `out`.
        out: the page, one self-contained HTML file.
        config: of the page.
        markdown: the scores as tables.
        csv: the scores, a row for each method.
        rrd: a recording for the Rerun viewer.

    Returns:
        The files written.

    Raises:
        DataError: a folder holds no results, or sanity checks alone.

    Example:
        >>> write("missing", "report.html")
        Traceback (most recent call last):
        driving_xai.errors.DataError: missing ...
    """
    folders = [Path(each) for each in ([results] if isinstance(results, Path | str) else results)]
    sources = load_sources([path for path in folders if not holds_sanity(path)])
    sanity = load_sanity([path for path in folders if holds_sanity(path)])
    if not sources:
        raise DataError("sanity checks alone make no report; give a folder of score or replay too")
    written = [] if out is None else write_page(sources, Path(out), config or PageConfig(), sanity=sanity)
    if markdown is not None:
        write_markdown(sources, markdown)
    if csv is not None:
        write_csv(sources, csv)
    if rrd is not None:
        from driving_xai.report.recording import write_recording

        write_recording(sources, rrd)
    return [*written, *(path for path in (markdown, csv, rrd) if path is not None)]
