"""``python -m combicam``: the command line, where its script is not on the path."""

from combicam.cli import main

if __name__ == "__main__":
    main()
