"""A DICOM node for the reading room: films arrive from the archive, results go back to it. Without torch."""
