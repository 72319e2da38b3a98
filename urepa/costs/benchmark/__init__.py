"""What `python -m urepa.bench` times: this project's step, the description's, and what lies between."""
