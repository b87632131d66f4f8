"""Calibration set -> scales -> Q/DQ and FP16-typed ONNX, judged against one FP32 baseline."""
