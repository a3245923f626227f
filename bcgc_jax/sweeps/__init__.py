"""Grids of problems, solved in chunks by one program for each method, and their files."""
