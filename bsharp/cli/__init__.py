"""The command `bsharp`."""

from bsharp.cli.main import main

__all__ = ["main"]
