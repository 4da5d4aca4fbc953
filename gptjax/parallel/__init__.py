"""Meshes, layouts, and programs of several devices."""
