"""The machine and the operating system under the process: cores, files, streams, signals, addresses."""
