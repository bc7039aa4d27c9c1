"""`python -m replaylab.server`: the server on its own."""

from replaylab.server.app import main

if __name__ == "__main__":
    main()
