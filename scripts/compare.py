"""Compare run folders: python scripts/compare.py FOLDER FOLDER ... [out=FOLDER]. See docs/metrics.md."""

from wgangp.cli import main

if __name__ == "__main__":
    main("compare")
