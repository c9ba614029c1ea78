"""What the scripts share: MATLAB's resize and the metrics."""
