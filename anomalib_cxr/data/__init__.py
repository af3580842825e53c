"""Datasets and datamodules of chest radiographs."""
