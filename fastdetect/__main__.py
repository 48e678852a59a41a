"""`python -m fastdetect`."""

from fastdetect.cli import main

if __name__ == "__main__":
    main()
