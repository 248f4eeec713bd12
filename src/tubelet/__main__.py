"""`python -m tubelet` is `tubelet`."""

from tubelet.cli import main

if __name__ == "__main__":
    main()
