"""The loops that `python -m urepa.bench` times: this project's, the description's, and some in between."""
