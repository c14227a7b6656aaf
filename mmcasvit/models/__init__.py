"""CAS-ViT, its token mixers, its classifier and its deploy form; checks of the weights that are loaded into it."""
