"""Writes the simple layout for a user's own X-rays from the tables and files that people have."""
