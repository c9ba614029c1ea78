"""The submission, one folder a team, in the organisers' layout."""
