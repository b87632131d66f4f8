"""Phantom studies, the small network trained on them, and benchmarks: one module per question."""
