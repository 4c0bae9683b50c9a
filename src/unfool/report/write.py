"""Write the report of a run into its folder."""

import json

from unfool.results.report_json import Summary
from unfool.results.run_folder import Run
from unfool.results.summary import summarize_run
from unfool.runtime.files import write_bytes


def write_report(run: Run) -> Summary:
    """Write `report.json`, `report.md`, `report.html` and `figures/*.png` into the run's folder.

    The run may be unfinished; the report then says so. Each file is written whole or not at all, and
    `report.json` last.

    Returns:
        What `report.json` holds.

    Raises:
        RuntimeError: The run has no outcomes yet, or a file of it is damaged.
        OSError: The folder cannot be written.
    """
    from unfool.report.examples import Gallery
    from unfool.report.page import page
    from unfool.report.plates import report_figures
    from unfool.report.text import to_markdown

    summary = summarize_run(run)
    drawn = report_figures(summary, Gallery.of(run))
    for name, plate in drawn.items():
        write_bytes(run.folder / "figures" / f"{name}.png", plate.png)
    write_bytes(run.folder / "report.md", to_markdown(summary, drawn).encode())
    write_bytes(run.folder / "report.html", page(summary, drawn).encode())
    table = json.dumps(summary, indent=1) + "\n"
    write_bytes(run.folder / "report.json", table.encode())
    return summary
