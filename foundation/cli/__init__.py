"""Parsers, sessions and jobs that the commands share."""
