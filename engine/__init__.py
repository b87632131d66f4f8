"""Verified ONNX -> TensorRT or TensorRT for RTX plan, and the bundle that carries it."""
