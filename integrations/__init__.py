"""HATFreq in other people's programs."""
