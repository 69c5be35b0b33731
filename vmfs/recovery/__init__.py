"""Ways out for the files of a guest, and what is different between two points."""
