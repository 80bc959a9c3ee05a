"""The rules of the house, as tests over the source: each names the file, the line and what to do."""
