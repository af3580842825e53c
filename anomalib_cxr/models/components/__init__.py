"""What several detectors share: the training chain, post-processing, resizing, patch search."""
