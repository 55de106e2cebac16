"""What is written beside a model for NVIDIA Triton Inference Server."""
