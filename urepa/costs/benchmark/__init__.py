"""What `python -m urepa.bench` times: this project's step, the document's, and what lies between."""
