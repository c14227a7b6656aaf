"""An HTTP server for exported models: the application, its limits, the predictor and the batching of images."""
