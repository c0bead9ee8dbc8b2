"""The console script ``fano``, also as ``python -m server``."""

import sys


def main() -> None:
    """Run the command line."""
    try:
        # Loading takes a second or two; an interrupt meanwhile ends the command like one that comes later.
        from server.commands.cli import app

        app()
    except KeyboardInterrupt:
        sys.exit(130)  # cli.INTERRUPTED, which may not be there yet


if __name__ == "__main__":
    main()
