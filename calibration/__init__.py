"""Calibration set -> scales -> typed ONNX. Nothing here yet: this version builds FP32 only."""
