"""Score a trained generator: python scripts/evaluate.py run=FOLDER [scores=[...]] [n=10000]."""

from wgangp.cli import main

if __name__ == "__main__":
    main("evaluate")
