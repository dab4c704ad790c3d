"""The human teacher: clips, the book of labels, the page."""
