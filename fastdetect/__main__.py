"""`python -m fastdetect`."""

from fastdetect.cli import main

main()
