"""Analyze the slopes of a trained critic: python scripts/lipschitz.py run=FOLDER [n=2000]. See docs/lipschitz.md."""

from wgangp.cli import main

if __name__ == "__main__":
    main("lipschitz")
