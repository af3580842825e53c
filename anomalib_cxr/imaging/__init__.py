"""Pixels: radiograph files in, calibrated arrays out."""
