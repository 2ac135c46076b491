"""ONNX models read into networks of torch."""
