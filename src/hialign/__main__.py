"""``python -m hialign`` is the console script ``hialign``."""

from hialign.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
