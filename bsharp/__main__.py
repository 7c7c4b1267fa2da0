"""`python -m bsharp` is the command `bsharp`."""

from bsharp.cli import main

if __name__ == "__main__":
    main()
