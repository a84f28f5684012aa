"""Run the command line from a checkout: `python cli.py build ...`."""

from ztdeploy.cli import main

if __name__ == "__main__":
    main()
