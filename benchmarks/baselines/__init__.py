"""The 3D and sequence baselines of the paper, one module each. Nothing is imported here."""
