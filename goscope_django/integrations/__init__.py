"""Thin helpers for other packages. Each imports its package when it is imported itself, and nobody else imports it."""
