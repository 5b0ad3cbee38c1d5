"""What runs the model: PyTorch on CPUs and GPUs, OpenVINO on CPUs."""
