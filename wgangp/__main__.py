"""python -m wgangp COMMAND [key=value ...]"""

from wgangp.cli import main

if __name__ == "__main__":
    main()
