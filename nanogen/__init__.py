"""NanoGen: train and evaluate diffusion transformers on ImageNet-like and text-to-image tasks."""

__version__ = "0.1.0"
