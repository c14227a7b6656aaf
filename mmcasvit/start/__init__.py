"""Start with your own data: look at a folder, convert what has to be converted, and write a config with reasons."""
