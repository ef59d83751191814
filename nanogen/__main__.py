"""`python -m nanogen` is the command `nanogen`."""

from nanogen.cli.app import main

if __name__ == "__main__":
    main()
