"""Train a WGAN-GP: python scripts/train.py [experiment=mnist] [key=value ...]. docs/config.md explains every key."""

from wgangp.cli import main

if __name__ == "__main__":
    main("train")
