"""Checkpoint -> network -> ONNX -> guards and parity -> bundle. Needs the extra [export]."""
