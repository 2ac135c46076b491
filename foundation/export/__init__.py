"""Writing policies in the formats of other libraries."""
