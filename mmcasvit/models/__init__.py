"""CAS-ViT, its token mixers, its classifier and its deploy form."""
