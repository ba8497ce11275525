"""One file per technique of a paper."""
