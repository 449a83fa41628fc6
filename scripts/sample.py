"""Draw samples from a trained generator: python scripts/sample.py run=FOLDER [what=grid] [n=64] [seed=0] [out=FILE]."""

from wgangp.cli import main

if __name__ == "__main__":
    main("sample")
