"""Readers of labels with boxes or outlines, one file for each layout. All become COCO files."""
