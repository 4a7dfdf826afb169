"""Sandboxes: made, kept ready, ended. Runs as: root (supervisor, spawners)."""
