"""Answers from run folders, complete or not: the comparison of settings and the report as one HTML file."""
