"""What the scripts share: MATLAB's resize, metrics, perceptual scores, pictures."""
