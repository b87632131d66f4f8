"""`fp-bench gpu-check`: everything that needs a GPU, in one kit. Nothing is imported here."""
