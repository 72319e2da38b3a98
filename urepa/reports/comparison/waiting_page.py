"""The page of `compare watch=true`: how it reloads itself, and what it shows before a comparison is possible."""

from __future__ import annotations

from html import escape
from typing import Any

from urepa.core.escaping import printable


def reload_tag(seconds: int) -> str:
    """The tag with which a page reloads itself."""
    return f'<meta http-equiv="refresh" content="{seconds}">'


def with_reload(html: str, seconds: int) -> str:
    """A page that reloads itself every so many seconds."""
    return html.replace("<head>", f"<head>\n{reload_tag(seconds)}", 1)


def progress_line(runs: list[Any]) -> str:
    """How many of the runs are finished."""
    return f"{sum(run.status == 'finished' for run in runs)} of {len(runs)} runs finished"


def waiting_page(reason: str, runs: list[Any]) -> str:
    """A page without a comparison: the reason, and where each run is."""
    rows = "".join(
        f"<tr><td>{escape(printable(run.name))}</td><td>{escape(run.status)}</td>"
        f"<td>{run.last_step:,} of {escape(str(run.config['trainer.max_steps']))}</td></tr>"
        for run in runs
    )
    table = f"<table><tr><th>run</th><th>status</th><th>step</th></tr>{rows}</table>" if rows else ""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>compare: waiting</title>\n'
        "<style>body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem }\n"
        "td, th { text-align: left; padding: .2rem 1rem .2rem 0 }</style>\n</head>\n"
        f"<body>\n<h1>No comparison yet</h1>\n<p>{escape(printable(reason))}</p>\n{table}\n</body>\n</html>\n"
    )
