"""Small games that ``rusu.py`` distils teachers of, and the page of what was run."""
