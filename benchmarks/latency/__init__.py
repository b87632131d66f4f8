"""`fp-bench latency`: networks in runtimes, in turns, with the floor beside them. Nothing is imported here."""
