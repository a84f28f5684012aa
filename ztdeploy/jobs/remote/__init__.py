"""Verbs on boards: from this machine over the user's own OpenSSH, on several boards at once."""
