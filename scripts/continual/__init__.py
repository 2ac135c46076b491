"""Parts of ``scripts/forgetting.py``."""
