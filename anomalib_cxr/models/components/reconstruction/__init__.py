"""Reconstruction of images: networks, bottlenecks, errors, corruptions and scores, for any detector that wants them."""
