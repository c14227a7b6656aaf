"""The families of formats: how each writes a graph to a file and loads that file again."""
