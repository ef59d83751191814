"""Speed and memory, each against a plain arm in the same run: `python -m benchmarks.run`."""
