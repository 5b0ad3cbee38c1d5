"""The runtimes that execute the model: PyTorch on CPUs and GPUs, OpenVINO on CPUs."""
