"""Evaluating a run, images that are there, or a pipeline: one harness, one kind of record."""
