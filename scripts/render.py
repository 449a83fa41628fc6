"""Render the tables of README.md and results/README.md from results/: python scripts/render.py."""

from pathlib import Path

from wgangp.checkpoint import write_atomic
from wgangp.results import render_evidence, render_origins, render_summary

if __name__ == "__main__":
    root = Path(__file__).parent.parent
    results, readme, page = root / "results", root / "README.md", root / "results" / "README.md"
    write_atomic(readme, render_evidence(readme.read_text(), results))
    write_atomic(page, render_summary(render_origins(page.read_text(), results), results))
