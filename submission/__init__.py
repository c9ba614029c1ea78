"""What the challenge asks a team to send: the facts about it, the checks, and the packages."""
