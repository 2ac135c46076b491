"""A page in the browser in which policies act side by side, to be watched and disturbed by hand."""
