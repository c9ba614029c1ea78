"""Data-LDCC: choosing training images by their similarity to the test images, without letting those in."""
