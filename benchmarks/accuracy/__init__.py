"""Training on phantoms, and what precisions and baselines keep of it. Nothing is imported here."""
