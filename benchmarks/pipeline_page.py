"""The pipeline's record as tables: its stages, how it grows, what a row takes on disk."""

from __future__ import annotations

from benchmarks.harness import Result

_MILLION = 1_000_000


def pipeline_table(rows: list[Result]) -> str:
    """Markdown: all tables that the rows allow."""
    parts = (stages_table(rows), growth_table(rows), stores_table(rows))
    return "\n\n".join(part for part in parts if part)


def stages_table(rows: list[Result]) -> str:
    """Images a second of every stage alone, then of the whole run and what bounds it."""
    lines = ["| stage | images/s | a million images take |", "|---|---|---|"]
    for row in rows:
        if row.name.startswith(("up to ", "store ")):
            continue
        if row.images_per_s is not None:
            hours = _MILLION / row.images_per_s / 3600
            took = f"{60 * hours:,.1f} min" if hours < 1 else f"{hours:,.1f} h"
            lines.append(f"| {row.name} | {row.images_per_s:,.0f} | {took} |")
        elif "ratio" in row.params:
            lines.append(f"| {row.name} | {row.params['ratio']:.2f} | |")
        else:
            lines.append(f"| {row.name} | failed: {row.error} | |")
    return "\n".join(lines)


def growth_table(rows: list[Result]) -> str:
    """Speed and memory as a run of a tiny network grows, and the time to restart it."""
    grown = [row for row in rows if row.name.startswith("up to ")]
    if not grown:
        return ""
    lines = ["| images so far | images/s since the row before | MiB resident |", "|---|---|---|"]
    for row in grown:
        count = int(row.name.split()[2])
        lines.append(f"| {count:,} | {row.images_per_s:,.0f} | {row.params['rss_mib']:,.0f} |")
    lines.append(f"| restart of the finished run | {grown[0].params['restart_s']:.2f} s | |")
    return "\n".join(lines)


def stores_table(rows: list[Result]) -> str:
    """Kilobytes that an image takes for every way to store maps."""
    stores = [row for row in rows if row.name.startswith("store ")]
    if not stores:
        return ""
    lines = ["| `--store` | KB an image |", "|---|---|"]
    for row in stores:
        kilobytes = row.params["bytes_per_image"] / 1000
        lines.append(f"| `{row.params['store']}` | {kilobytes:.1f} |")
    return "\n".join(lines)
