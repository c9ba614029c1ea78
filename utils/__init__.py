"""What test.py, eval.py, train.py and the data curation share: MATLAB's resize, metrics, perceptual scores, pictures."""
