"""CAS-ViT in place of the backbone of an existing config."""
