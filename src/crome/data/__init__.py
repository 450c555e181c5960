"""Readers, the row schema, and data that the project makes or fetches."""
