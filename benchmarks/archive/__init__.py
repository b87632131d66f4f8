"""Many studies at once: on all cores of a machine and on a cluster, with the results that `fp-run` writes."""
