"""Anatomy: where the lungs are."""
