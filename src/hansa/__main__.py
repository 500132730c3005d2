"""``python -m hansa``: the command ``hansa``, for launchers that start modules."""

from hansa.cli.main import main

if __name__ == "__main__":
    main(prog_name="hansa")
