"""Write a model repository for NVIDIA Triton Inference Server."""
