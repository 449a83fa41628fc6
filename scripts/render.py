"""Render the tables of README.md and results/README.md from results/: python scripts/render.py."""

from pathlib import Path

from wgangp.checkpoint import write_atomic
from wgangp.results import render_origins, render_summary

if __name__ == "__main__":
    root = Path(__file__).parent.parent
    for path, render in ((root / "README.md", render_summary), (root / "results" / "README.md", render_origins)):
        write_atomic(path, render(path.read_text(), root / "results"))
