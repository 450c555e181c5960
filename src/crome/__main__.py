"""`python -m crome`: the command line, as launchers of several processes want it named."""

from crome.cli import main

if __name__ == "__main__":
    main()
