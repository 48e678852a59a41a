"""Every op against its floor and its peers, in one run: `python -m bench --help`, docs/performance.md."""
