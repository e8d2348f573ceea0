"""Helpers that know nothing of MiniMax: errors, text, files, programs, privileges, secrets."""
