"""Batched tensor augmentations that make anomalies and views."""
