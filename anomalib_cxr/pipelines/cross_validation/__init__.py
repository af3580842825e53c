"""`anomalib cross-validate`: models × data × folds × seeds."""
