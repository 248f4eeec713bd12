"""The command `tubelet`; `python -m tubelet` is the same."""

import sys


def main() -> None:
    """Run a command; Ctrl-C while its modules are imported is no traceback either."""
    try:
        from tubelet.cli import main as run
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
