"""The console script ``fano``, also as ``python -m server``."""

from server.commands.cli import app


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
