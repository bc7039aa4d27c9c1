"""``python -m replaylab``: the command line."""

from replaylab.cli import main

if __name__ == "__main__":
    main()
