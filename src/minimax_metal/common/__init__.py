"""Helpers that know nothing about MiniMax (files, programs, privileges, text); standard library only."""
