"""Data sets of every kind, each a file that makes a Source."""
