"""What ``scripts/train_teachers.py`` is made of."""
