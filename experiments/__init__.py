"""Figures and studies, one runnable module each:
`python -m experiments.NAME --help`.
"""
