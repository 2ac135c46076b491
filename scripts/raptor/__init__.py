"""The pipeline of ``raptor.sh``, one file a part."""
