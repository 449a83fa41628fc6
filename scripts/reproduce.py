"""Reproduce a figure: python scripts/reproduce.py figure=NAME [budget=paper] [seeds=[0]]. README.md lists them."""

from wgangp.cli import main

if __name__ == "__main__":
    main("reproduce")
