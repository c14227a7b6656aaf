"""Folder with a page that runs an exported model in the browser."""
