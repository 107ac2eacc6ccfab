"""The program `toolkit-agent`, as `python -m agent`."""

from agent.cli import main

if __name__ == "__main__":
    main()
