"""`python -m ztdeploy` is the command line."""

from ztdeploy.cli import main

if __name__ == "__main__":
    main()
